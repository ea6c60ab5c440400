"""A record as rows for people: the figures that one looks at first, with their units. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Row = tuple[str, str, float | int | None, str]


def rows(record: dict[str, Any]) -> list[Row]:
    """(group, metric, value, unit or remark) of a record's figures, in the order of the groups."""
    metrics = record["metrics"]
    found: list[Row] = []
    for group, of in _GROUPS:
        if group in metrics:
            found += [(group, *row) for row in of(metrics[group])]
    return found


def left_out(record: dict[str, Any]) -> list[str]:
    """What was not measured, and why, one line each."""
    return [f"{group}: not measured: {why}" for group, why in record["left_out"].items()]


def _likelihood(m: dict[str, Any]) -> Iterator[tuple[str, float | int | None, str]]:
    iw = m["importance_weighted"]
    yield "reconstruction", m["reconstruction"], "nats a review"
    yield "KL", m["kl"], "nats a review"
    yield "-ELBO", m["negative_elbo"]["review"], f"nats a review, {m['reviews']:,} reviews"
    yield "-ELBO", m["negative_elbo"]["word"], "nats a word"
    how = "exact" if iw["exact"] else f"K = {iw['samples']}"
    yield "NLL", iw["review"], f"nats a review, {how}, {iw['reviews']:,} reviews"
    yield "NLL standard error", iw["standard_error"], "nats a review"
    yield "NLL", iw["token"], "nats a token"
    yield "NLL", iw["word"], f"nats a word (perplexity {_number(iw['word_perplexity'])})"
    yield "NLL", iw["bits_per_byte"], "bits a byte"
    yield "token accuracy", m["teacher_forced_token_accuracy"], "teacher-forced"
    yield "all-positions accuracy", m["all_positions_accuracy"], "as the original counted"


def _latent(m: dict[str, Any]) -> Iterator[tuple[str, float | int | None, str]]:
    n = m["mutual_information_reviews"]
    yield "mutual information", m["mutual_information"], f"nats, N = {n:,}"
    if m["training"]:
        training = m["training"]
        n = training["mutual_information_reviews"]
        yield "mutual information", training["mutual_information"], f"nats, N = {n:,} training reviews"
    yield "marginal KL", m["marginal_kl"], "nats"
    yield "active units", m["active_units"], f"of {m['dimensions']}"
    yield "delta-reconstruction", m["delta_reconstruction"], "nats a review"


def _sentiment(m: dict[str, Any]) -> Iterator[tuple[str, float | int | None, str]]:
    for name in ("head", "probe"):
        found = m[name]
        if found is None:
            continue
        remark = f"+- {_number(found['standard_error'])}, {found['labelled']:,} reviews"
        if name == "head" and not m["head_trained"]:
            remark += ", trained without labels"
        yield f"{name}: accuracy", found["accuracy"], remark
        if found["unseen"] and m["reviews_in_training"]:
            yield (
                f"{name}: accuracy",
                found["unseen"]["accuracy"],
                f"without the {m['reviews_in_training']:,} reviews that were trained on",
            )
        yield f"{name}: ROC-AUC", found["roc_auc"], ""
        yield f"{name}: calibration error", found["calibration_error"], f"{m['bins']} bins"


def _text(m: dict[str, Any]) -> Iterator[tuple[str, float | int | None, str]]:
    yield "token accuracy", m["free_running_token_accuracy"], f"free-running, {m['reviews']:,} reviews"
    yield "BLEU-4", m["bleu"], "free-running"


def _samples(m: dict[str, Any]) -> Iterator[tuple[str, float | int | None, str]]:
    ppl, real = m["perplexity"], m["real"]
    if ppl is not None:
        yield "forward perplexity", ppl["forward"], f"a word (real: {_number(ppl['real'])})"
        yield "reverse perplexity", ppl["reverse"], f"a word (real: {_number(ppl['real'])})"
    yield "self-BLEU", m["self_bleu"], f"{m['samples']:,} samples (real: {_number(real['self_bleu'])})"
    for n in range(1, 5):
        yield f"distinct-{n}", m[f"distinct_{n}"], f"(real: {_number(real[f'distinct_{n}'])})"


def _transfer(m: dict[str, Any]) -> Iterator[tuple[str, float | int | None, str]]:
    for step in m["steps"]:
        name = "no push" if step["step"] is None else f"push to {step['step']:g}"
        judged = "" if step["judged"] is None else f", {_number(step['judged'])} by the judge"
        # Records of before there was one lack it.
        source = f" ({_number(step['source_bleu'])} with the review)" if "source_bleu" in step else ""
        yield f"{name}: flipped", step["flipped"], f"BLEU {_number(step['bleu'])}{source}{judged}"
    between = m["interpolation"]
    yield (
        "interpolation: BLEU",
        between["neighbour_bleu"],
        f"of neighbours ({_number(between['ends_bleu'])} of ends)",
    )
    yield "interpolation: deviation", between["deviation"], "from an even walk"


_GROUPS = (
    ("likelihood", _likelihood),
    ("latent", _latent),
    ("sentiment", _sentiment),
    ("text", _text),
    ("samples", _samples),
    ("transfer", _transfer),
)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
