"""evaluate(): every metric of a model over a set of reviews, as one record that JSON can hold."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from textvae import checkpoint, objective
from textvae.batches import Batch, framing
from textvae.evaluate import language, latent, likelihood, moving, sentiment, surface, writing
from textvae.evaluate.arguments import PARTS
from textvae.evaluate.errors import EvaluationError
from textvae.evaluate.likelihood import Explained, Floats, Posterior
from textvae.evaluate.meter import Meter
from textvae.evaluate.overlap import trained_on
from textvae.evaluate.reading import Progress, Texts, read
from textvae.predict import Predictor
from textvae.sources.permutation import key_of
from textvae.sources.reviews import Reviews

FORMAT = 1

_OF_LANGUAGE_MODELS = ("likelihood",)


_MOST = 2**31 - 1  # of any number: more is a slip of the hand, and not every generator takes it


@dataclass(frozen=True)
class Options:
    """What is measured, and on how much. EvaluationError for a number that makes no sense."""

    parts: tuple[str, ...] = PARTS  # groups of metrics
    reviews: int | None = None  # drawn of the part; None takes them all
    samples: int = 500  # K of importance weighting
    weighted_reviews: int = 250  # reviews that importance weighting is done on: each costs K decodings
    information_reviews: int = 10_000  # N of the mutual information
    text_reviews: int = 250  # written again, running free
    written: int = 500  # samples of the prior
    temperature: float = 1.0  # of the samples
    transfer_reviews: int = 100  # pushed to the other sentiment, and paired for interpolation
    probe_reviews: int = 10_000  # labelled training reviews for the probe and the judge of transfer
    seed: int = 0  # of every draw: which reviews, and all noise

    def __post_init__(self) -> None:
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown or not self.parts:
            raise EvaluationError(
                f"parts must be some of {', '.join(PARTS)}, not {', '.join(unknown) or 'none'}"
            )
        least = {
            "reviews": 1,
            "samples": 1,
            "weighted_reviews": 1,
            "information_reviews": 2,
            "text_reviews": 1,
            "written": 2,
            "transfer_reviews": 2,
            "probe_reviews": 2,
        }
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise EvaluationError(f"{name.replace('_', ' ')} must be at least {low}, got {value}")
        for name in (*least, "seed"):
            if (getattr(self, name) or 0) > _MOST:
                raise EvaluationError(f"{name.replace('_', ' ')} must be at most {_MOST}")
        if self.seed < 0:
            raise EvaluationError(f"seed must be at least 0, got {self.seed}")
        if not 0 < self.temperature < math.inf:
            raise EvaluationError(f"temperature must be above 0, and finite, got {self.temperature}")


def evaluate(
    model: Predictor | Path | str,
    reviews: Reviews,
    *,
    part: str = "validation",
    training: Reviews | None = None,
    labelled: Reviews | None = None,
    options: Options | None = None,
    digest: str | None = None,
    device: torch.device | str = "cpu",
    scratch: Path | None = None,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Measure a model on reviews; returns a record of numbers, strings, lists and None, never NaN.

    model: a Predictor, or a checkpoint's folder (verified, of `digest` if that is given). part: what the
    reviews are called in the record. training: all that the model was trained on, to know which of the
    reviews it has seen, and for the language models of the samples. labelled: training reviews with labels,
    for the probe and the judge of transfer; by default `training`. scratch: where the samples' language
    models are trained; by default a temporary folder that is removed.

    The record's metrics stand in groups, one for each of `options.parts`; what a group could not measure for
    want of labels or training reviews is None in it, and a group that makes no sense for the model (a
    language model has a likelihood alone) is told in `left_out` with the reason. docs/metrics.md has every
    key. Raises EvaluationError if there is nothing to measure, CheckpointError for a checkpoint not whole.
    """
    options = options or Options()
    began = clock()
    saved: dict[str, Any] = {"digest": digest, "epoch": None, "step": None, "training_seconds": None}
    if not isinstance(model, Predictor):
        saved = _identity(Path(model), digest)
        model = Predictor.load(model, device, digest=saved["digest"])
    if len(reviews) == 0:
        raise EvaluationError(f"there are no {part} reviews to measure")
    texts = read(reviews, model.vocabulary, framing(model.config), options.reviews, seed=options.seed)
    subject = _Subject(model, texts, part, training, labelled or training, options, scratch, progress)
    metrics: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for name in (name for name in PARTS if name in options.parts):
        why = subject.lacks(name)
        if why is not None:
            left_out[name] = why
            continue
        start = clock()
        metrics[name] = getattr(subject, f"measure_{name}")()
        seconds[name] = clock() - start
    record = {
        "format": FORMAT,
        "checkpoint": saved,
        "config": model.config.model_dump(mode="json"),
        "vocabulary": {"kind": model.vocabulary.kind, "size": model.vocabulary.size},
        "parameters": sum(p.numel() for p in model.model.parameters()),
        "part": part,
        "reviews": len(texts),
        "reviews_of_part": len(reviews),
        "N": metrics.get("latent", {}).get("mutual_information_reviews"),
        "K": options.samples if "likelihood" in metrics else None,
        "options": asdict(options),
        "metrics": metrics,
        "left_out": left_out,
        "seconds": clock() - began,
        "seconds_of": seconds,
    }
    plain = strict(record)
    assert isinstance(plain, dict)
    return plain


def strict(value: Any) -> Any:
    """The value as JSON has it: a number that is not finite becomes None."""
    if isinstance(value, dict):
        return {str(key): strict(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [strict(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _identity(folder: Path, digest: str | None) -> dict[str, Any]:
    saved = checkpoint.load(folder, digest=digest, optimizer=False)
    return {
        "digest": saved.digest,
        "epoch": saved.position.epoch,
        "step": saved.position.step,
        "training_seconds": saved.metrics.get("seconds"),
    }


class _Subject:
    """One model and the reviews that it is measured on; what several groups need is computed once."""

    def __init__(
        self,
        predictor: Predictor,
        texts: Texts,
        part: str,
        training: Reviews | None,
        labelled: Reviews | None,
        options: Options,
        scratch: Path | None,
        progress: Progress | None,
    ):
        self.predictor, self.model, self.texts, self.part = predictor, predictor.model, texts, part
        self.training, self.options, self.scratch = training, options, scratch
        self.labelled = labelled if labelled is not None and len(labelled) else None
        self.progress = progress
        self.latent = predictor.config.model.latent

    def lacks(self, group: str) -> str | None:
        """Why a group cannot be measured; None if it can."""
        if self.latent == 0 and group not in _OF_LANGUAGE_MODELS:
            return "a language model has no latent"
        if group == "sentiment" and not (self.texts.labels >= 0).any():
            return f"no {self.part} review has a label"
        if group == "transfer" and not bool(self.model.sentiment_direction()[0].any()):
            return "the sentiment head is all zeros"
        if group in ("latent", "transfer") and len(self.texts) < 2:
            return "it compares reviews, and there is only one"
        return None

    @cached_property
    def posterior(self) -> Posterior:
        return likelihood.posterior(self.model, self.texts, self.progress)

    @cached_property
    def z(self) -> Floats:
        """One draw of each review's posterior."""
        return self.posterior.sample(self.options.seed)

    @cached_property
    def explained(self) -> Explained:
        return likelihood.explain(self.model, self.texts, self.z, self.progress)

    @cached_property
    def taught(self) -> Texts | None:
        """Labelled training reviews."""
        if self.labelled is None:
            return None
        vocabulary, frame = self.texts.vocabulary, self.texts.framing
        return read(self.labelled, vocabulary, frame, self.options.probe_reviews, seed=self.options.seed)

    @cached_property
    def head(self) -> tuple[Floats, float]:
        weight, bias = self.model.sentiment_direction()
        return weight.double().cpu().numpy(), float(bias)

    def measure_likelihood(self) -> dict[str, Any]:
        texts, explained = self.texts, self.explained
        bound = likelihood.negative_elbo(explained, self.posterior)
        few = texts.first(self.options.weighted_reviews)
        n = len(few)
        weighted = likelihood.importance_weighted(
            self.model,
            few,
            self.posterior.first(n),
            self.options.samples,
            seed=self.options.seed,
            progress=self.progress,
        )
        return {
            "reviews": len(texts),
            "reviews_cut": int(texts.cut.sum()),
            "tokens": int(explained.tokens.sum()),
            "words": int(texts.words.sum()),
            "bytes": int(texts.bytes.sum()),
            "reconstruction": float(explained.loss.mean()),
            "kl": float(likelihood.kl(self.posterior).mean()),
            "elbo": -float(bound.mean()),
            "negative_elbo": likelihood.per_unit(bound, texts, explained.tokens),
            "importance_weighted": {
                "reviews": n,
                "samples": self.options.samples if self.latent else None,
                "exact": self.latent == 0,
                **likelihood.per_unit(weighted, few, explained.tokens[:n]),
                "negative_elbo_of_these": float(bound[:n].mean()),
            },
            "teacher_forced_token_accuracy": explained.accuracy,
            "all_positions_accuracy": self._all_positions(),
        }

    @torch.no_grad()
    def _all_positions(self) -> float:
        """All-positions accuracy: sum_n sum_t [argmax_v p_nt(v) = x_nt] / (N L), t = 1 ... L.

        L is the model's full length, so padding is counted, and short reviews make it large. As the original
        counted: the categorical accuracy that Keras (Chollet et al., 2015) reports of one-hot targets. Of
        objective elbo, which foresees nothing past END, see `Meter.result`. One z ~ q(z | x) a review.
        """
        meter = Meter(self.predictor.config, self.predictor.device)
        generator = torch.Generator(self.predictor.device)
        generator.manual_seed(key_of(self.options.seed, "meter") % 2**63)
        weight = objective.kl_weight(self.predictor.config, math.inf)
        for rows, tokens, lengths in self.texts.batches(self.predictor.device):
            labels = torch.from_numpy(self.texts.labels[rows].astype(np.int64)).to(tokens.device)
            batch = Batch(tokens, lengths, labels, len(rows))
            meter.update(self.model(batch, kl_weight=weight, generator=generator))
        return meter.result()["all_positions_accuracy"]

    def measure_latent(self) -> dict[str, Any]:
        texts, q, options = self.texts, self.posterior, self.options
        found = latent.mutual_information(
            q.first(options.information_reviews), seed=options.seed, progress=self.progress
        )
        active = latent.active_units(q.mean)
        return {
            "dimensions": self.latent,
            "kl": float(likelihood.kl(q).mean()),
            "kl_per_dimension": likelihood.kl_per_dimension(q).mean(axis=0).tolist(),
            "active_units": active,
            "active_share": active / self.latent,
            "mutual_information": found.mutual_information,
            "marginal_kl": found.marginal_kl,
            "mutual_information_reviews": found.reviews,
            "mutual_information_bound": found.bound,
            "training": self._training_information(),
            "delta_reconstruction": latent.delta_reconstruction(
                self.model, texts, self.z, self.explained, seed=options.seed, progress=self.progress
            ),
        }

    def _training_information(self) -> dict[str, Any] | None:
        """The mutual information over training reviews, where the part has fewer than were asked for."""
        wanted = self.options.information_reviews
        if len(self.texts) >= wanted or self.training is None or len(self.training) <= len(self.texts):
            return None
        texts = read(self.training, self.texts.vocabulary, self.texts.framing, wanted, seed=self.options.seed)
        q = likelihood.posterior(self.model, texts, self.progress)
        found = latent.mutual_information(q, seed=self.options.seed, progress=self.progress)
        return {
            "mutual_information": found.mutual_information,
            "marginal_kl": found.marginal_kl,
            "mutual_information_reviews": found.reviews,
            "mutual_information_bound": found.bound,
            "kl": float(likelihood.kl(q).mean()),
        }

    def measure_sentiment(self) -> dict[str, Any]:
        means, labels = self.posterior.mean, self.texts.labels
        fitted = None
        if self.taught is not None and len(np.unique(self.taught.labels[self.taught.labels >= 0])) == 2:
            frozen = likelihood.posterior(self.model, self.taught, self.progress).mean
            fitted = sentiment.probe(frozen, self.taught.labels)
        seen = None
        if self.training is not None and self.part != "train":
            seen = trained_on(self.texts.texts, self.training)

        def told(weight: Floats, bias: float) -> dict[str, Any]:
            odds = sentiment.log_odds(means, weight, bias)
            unseen = None
            if seen is not None and (labels[~seen] >= 0).any():
                unseen = asdict(sentiment.scores(odds[~seen], labels[~seen]))
            return {**asdict(sentiment.scores(odds, labels)), "unseen": unseen}

        config = self.predictor.config
        trained = config.objective.kind == "seed" or config.objective.sentiment_weight > 0
        return {
            "head_trained": trained,
            "head": told(*self.head),
            "probe": None if fitted is None else told(*fitted),
            "probe_reviews": 0 if fitted is None or self.taught is None else len(self.taught),
            "bins": sentiment.BINS,
            "reviews_in_training": None if seen is None else int(seen.sum()),
        }

    def measure_text(self) -> dict[str, Any]:
        few = self.texts.first(self.options.text_reviews)
        found = writing.rewrite(self.model, few, self.posterior.mean[: len(few)], self.progress)
        return {
            "reviews": len(few),
            "free_running_token_accuracy": found.token_accuracy,
            "bleu": found.bleu,
            "words_written": float(np.mean([len(text.split()) for text in found.texts])),
            "words_of_reviews": float(few.words.mean()),
        }

    def measure_samples(self) -> dict[str, Any]:
        options, vocabulary = self.options, self.predictor.vocabulary
        written = writing.sample(
            self.model,
            vocabulary,
            options.written,
            seed=options.seed,
            temperature=options.temperature,
            progress=self.progress,
        )
        held_out = self.texts.first(options.written)
        real = [held_out.readable(row) for row in range(len(held_out))]
        return {
            "samples": len(written),
            "temperature": options.temperature,
            "words": float(np.mean([len(text.split()) for text in written])),
            **_variety(written),
            "real": {"texts": len(real), **_variety(real)},
            "perplexity": self._perplexity(written, real),
        }

    def _perplexity(self, written: list[str], held_out: list[str]) -> dict[str, Any] | None:
        if self.training is None:
            return None
        given = read(
            self.training, self.texts.vocabulary, self.texts.framing, len(written), seed=self.options.seed + 1
        )
        real = [given.readable(row) for row in range(len(given))]
        if self.progress is not None:
            self.progress("training language models of the samples", 0, None)
        with tempfile.TemporaryDirectory(dir=self.scratch, prefix="language-models-") as folder:
            try:
                found = language.perplexities(
                    written,
                    real,
                    held_out,
                    Path(folder),
                    seed=self.options.seed,
                    device=self.predictor.device,
                )
            except language.TooFew:
                return None
        return asdict(found)

    def measure_transfer(self) -> dict[str, Any]:
        few = self.texts.first(self.options.transfer_reviews)
        means = self.posterior.mean[: len(few)]
        judge = accuracy = None
        if self.taught is not None and len(np.unique(self.taught.labels[self.taught.labels >= 0])) == 2:
            judge = moving.classifier(self.taught.texts, self.taught.labels)
            known = self.texts.labels >= 0
            if known.any():
                some = [self.texts.texts[row] for row in np.flatnonzero(known)]
                accuracy = float((judge(some) == (self.texts.labels[known] > 0)).mean())
        weight, bias = self.head
        rows = moving.transfer(self.model, few, means, weight, bias, judge=judge, progress=self.progress)
        return {
            "reviews": len(few),
            "judge_accuracy": accuracy,
            "steps": [asdict(row) for row in rows],
            "interpolation": asdict(moving.interpolate(self.model, few, means, progress=self.progress)),
        }


def _variety(texts: list[str]) -> dict[str, Any]:
    return {
        "self_bleu": surface.self_bleu(texts) if len(texts) > 1 else None,
        **{f"distinct_{n}": surface.distinct(texts, n) for n in range(1, 5)},
    }
