"""The sections of a config that say what is trained: data, vocabulary, model, objective, training.

Like `textvae.parsing` it imports neither torch nor numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from textvae.parsing import Section, parse, read_yaml

Metric = Literal[
    "loss",
    "reconstruction",
    "kl",
    "sentiment_loss",
    "sentiment_accuracy",
    "token_accuracy",
    "all_positions_accuracy",
    "active_units",
]
METRICS: tuple[str, ...] = get_args(Metric)

# Sections that only the service reads; a config that holds them still trains without the service.
SERVICE_SECTIONS = frozenset({"name", "resources", "select", "max_attempts", "retry", "time_limit", "sweep"})


class Data(Section):
    """Which reviews to train on."""

    source: Literal["imdb", "snippets", "files"] = Field(
        "snippets", description="where the reviews come from"
    )
    folder: str | None = Field(
        None,
        description="imdb: a folder that already holds train.parquet, unsupervised.parquet and test.parquet; "
        "none fetches the official archive once",
    )
    train_size: int | None = Field(
        None, ge=1, description="training reviews to draw without replacement; none takes them all"
    )
    validation_size: int | None = Field(
        None, ge=1, description="validation reviews to draw without replacement; none takes them all"
    )
    unlabelled: bool = Field(True, description="train on reviews without a label too (objective elbo)")
    train: tuple[str, ...] = Field((), description="files: paths, globs or URIs of the training reviews")
    validation: tuple[str, ...] = Field(
        (),
        description="files: paths, globs or URIs of the validation reviews; "
        "none holds out validation_fraction of the training reviews",
    )
    test: tuple[str, ...] = Field((), description="files: paths, globs or URIs of the test reviews")
    validation_fraction: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="files: share of the labelled training reviews to hold out for validation",
    )
    text_column: str = Field("text", description="files: the column that holds the text")
    label_column: str = Field(
        "label", description="files: the column that holds the label, 0 or 1; empty or -1 means none"
    )
    min_characters: int = Field(
        2, ge=1, description="reviews shorter than this after trimming are dropped and counted"
    )

    @model_validator(mode="after")
    def _files_need_paths(self) -> Data:
        if self.source == "files" and not self.train:
            raise ValueError("source files needs at least one path under data.train")
        if self.source != "files" and (self.train or self.validation or self.test):
            raise ValueError(
                f"data.train, data.validation and data.test go with source files, not {self.source}"
            )
        if self.folder is not None and self.source != "imdb":
            raise ValueError(f"data.folder goes with source imdb, not {self.source}")
        return self


class Vocabulary(Section):
    """How text becomes token ids."""

    kind: Literal["words", "bpe"] = Field(
        "bpe", description="words: the Keras IMDB convention, ids by frequency; bpe: byte-level BPE"
    )
    size: int = Field(
        8000, ge=5, description="token ids, the four special ones included (Keras calls it num_words)"
    )
    max_length: int = Field(300, ge=2, description="tokens kept of a review")
    truncation: Literal["pre", "post", "middle"] = Field(
        "post",
        description="where a longer review is cut: pre drops its beginning, post its end, middle keeps a "
        "quarter of max_length from its beginning and three from its end",
    )

    @model_validator(mode="after")
    def _bpe_needs_bytes(self) -> Vocabulary:
        if self.kind == "bpe" and self.size < 260:
            raise ValueError("vocabulary.size must be at least 260 for bpe (256 bytes and 4 special tokens)")
        return self


def _none_is_zero(value: Any) -> Any:
    """`latent: none`, and YAML's own null, are short for `latent: 0`."""
    return 0 if value is None or value == "none" else value


class Model(Section):
    """The parts and sizes of the network."""

    embedding: int = Field(128, ge=1, description="width of the token embedding")
    tied: bool = Field(False, description="the softmax uses the token embedding as its weights")
    encoder: Literal["lstm", "mingru", "ngrams"] = Field(
        "lstm",
        description="lstm: bidirectional LSTMs; mingru: minimal GRUs both ways; ngrams: the sum of the "
        "vectors of a review's n-grams",
    )
    encoder_hidden: int = Field(
        256,
        ge=1,
        description="lstm, mingru: units of each layer, each way; ngrams: width of an n-gram's vector",
    )
    encoder_layers: int = Field(1, ge=1, description="lstm, mingru: stacked layers of the encoder")
    naive_bayes_order: int = Field(
        0,
        ge=0,
        le=8,
        description="one more feature beside the encoder's: the log-odds of a linear classifier of n-grams "
        "of up to this many tokens, fitted to labelled reviews before training (NB-SVM); the sentiment then "
        "leaves the vectors of ngrams as the reconstruction wants them; 0: none",
    )
    naive_bayes_buckets: int = Field(
        2**21, ge=1, description="coefficients that its n-grams of two tokens and more share by a hash"
    )
    ngram_order: int = Field(3, ge=1, le=8, description="ngrams: tokens of the longest n-gram")
    ngram_buckets: int = Field(
        2**19, ge=1, description="ngrams: vectors that the n-grams of two tokens and more share by a hash"
    )
    ngram_dropout: float = Field(
        0.5, ge=0, lt=1, description="share of the n-grams left out at random in training"
    )
    pooling: Literal["last", "all"] = Field(
        "last",
        description="lstm, mingru: what is passed on; last: both directions' last states; all: the "
        "largest and the mean state of all tokens beside them",
    )
    dense: int | None = Field(
        None, ge=1, description="units of a relu layer before the latent; none leaves it out"
    )
    latent: Annotated[int, BeforeValidator(_none_is_zero)] = Field(
        32,
        ge=0,
        description="dimensions of the latent vector; none (or 0) leaves out encoder, latent and sentiment: "
        "the decoder alone, a language model",
    )
    mean_scale: float | None = Field(
        None,
        gt=0,
        description="standard deviation over reviews that a batch norm gives each latent mean, so that the "
        "latent cannot collapse; none: no such norm",
    )
    variance: Literal["learned", "fixed"] = Field(
        "learned",
        description="of the posterior; fixed: 1 - mean_scale^2 for every review and dimension, so that the "
        "draws of all reviews together vary as the prior's do",
    )
    noise_std: float = Field(
        1.0, gt=0, description="standard deviation of eps in z = mean + exp(log_var / 2) * eps"
    )
    decoder: Literal["repeat", "autoregressive", "mingru", "transformer"] = Field(
        "autoregressive",
        description="repeat: z at every position (the original); autoregressive: LSTMs fed z and the "
        "previous token; mingru: the same of minimal GRUs, faster; transformer: causal attention, z at "
        "every layer",
    )
    decoder_hidden: int = Field(256, ge=1, description="units of each decoder layer")
    decoder_layers: int = Field(1, ge=1, description="stacked layers in the decoder")
    decoder_heads: int = Field(
        4, ge=1, description="transformer: heads of each layer, which share decoder_hidden evenly"
    )
    sentiment_hidden: int | None = Field(
        None,
        ge=1,
        description="units of a linear layer between the latent and the sentiment; none leaves it out",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on embeddings and on the decoder's output")
    dropout_mask: Literal["position", "review"] = Field(
        "position",
        description="what dropout is drawn for; review: the same units at all positions of a review",
    )
    embedding_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of all token ids whose embedding a step does without"
    )
    weight_drop: float = Field(
        0.0, ge=0, lt=1, description="share of the LSTMs' recurrent weights that a step does without"
    )

    @model_validator(mode="after")
    def _fixed_variance_is_what_the_means_leave(self) -> Model:
        if self.variance == "fixed" and (self.mean_scale is None or self.mean_scale >= 1):
            raise ValueError("model.variance fixed needs a model.mean_scale below 1")
        return self

    @model_validator(mode="after")
    def _options_have_what_they_are_of(self) -> Model:
        read_by_lstm = self.latent > 0 and self.encoder == "lstm"
        if self.naive_bayes_order and self.latent == 0:
            raise ValueError("model.naive_bayes_order needs a latent")
        if self.pooling == "all" and (self.latent == 0 or self.encoder == "ngrams"):
            raise ValueError("model.pooling all needs a latent and model.encoder lstm or mingru")
        if self.weight_drop and not read_by_lstm and self.decoder in ("mingru", "transformer"):
            raise ValueError(
                "model.weight_drop needs model.encoder lstm or model.decoder autoregressive: only LSTMs have "
                "recurrent weights"
            )
        if self.dropout_mask == "review" and self.dropout == 0:
            raise ValueError("model.dropout_mask review needs a model.dropout above 0")
        if self.decoder == "transformer" and self.decoder_hidden % (2 * self.decoder_heads):
            raise ValueError(
                f"model.decoder_hidden ({self.decoder_hidden}) must be a multiple of twice "
                f"model.decoder_heads ({self.decoder_heads}): a head's units come in pairs"
            )
        return self

    @model_validator(mode="after")
    def _tied_widths_agree(self) -> Model:
        if self.tied and self.decoder_hidden != self.embedding:
            raise ValueError("model.tied needs model.decoder_hidden equal to model.embedding")
        return self


class SeedObjective(Section):
    """The loss of the 2017 tutorial, as it was."""

    kind: Literal["seed"] = "seed"


class ElboObjective(Section):
    """A true evidence lower bound with a sentiment loss on the latent mean."""

    kind: Literal["elbo"] = "elbo"
    kl_weight: float = Field(1.0, ge=0, description="weight of the KL term after the warm-up")
    kl_warmup_epochs: float = Field(2.0, ge=0, description="epochs over which that weight grows from 0")
    kl_cycle_epochs: float | None = Field(
        None, gt=0, description="epochs after which the warm-up begins again; none: it happens once"
    )
    pretraining: Literal["autoencoder", "language_model"] = Field(
        "language_model",
        description="what the first pretraining_epochs train: reconstruction alone, with z or without",
    )
    pretraining_epochs: int = Field(
        0,
        ge=0,
        description="epochs before KL term and sentiment count; the warm-up begins after them",
    )
    encoder_lm_weight: float = Field(
        0.0,
        ge=0,
        description="weight, in pretraining, of the encoder as two language models: the next token read off "
        "the states of its way ahead, and the one before off those of its way back (lstm of one layer, "
        "mingru)",
    )
    pretraining_token_drop: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of a review's tokens replaced by out-of-vocabulary for the encoder in "
        "pretraining; what is asked for stays whole (a denoising autoencoder)",
    )
    reset_decoder: bool = Field(False, description="draw the decoder's weights anew after pretraining")
    sentiment_after_epochs: int = Field(
        0,
        ge=0,
        description="epochs after pretraining before the sentiment counts, with its entropy and adversarial "
        "terms: until then the bound alone is trained",
    )
    word_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of the decoder's previous tokens replaced by out-of-vocabulary"
    )
    free_bits: float = Field(
        0.0,
        ge=0,
        description="nats a latent dimension may cost, on the mean of a step's reviews, before it is charged",
    )
    decorrelation_weight: float = Field(
        0.0,
        ge=0,
        description="weight of the squared correlations between the latent means' dimensions; it needs a "
        "model.mean_scale",
    )
    scored_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of the tokens, drawn anew at each step, that the reconstruction is estimated from "
        "in training",
    )
    sentiment_weight: float = Field(
        1.0, ge=0, description="weight of the sentiment loss of a labelled review"
    )
    entropy_weight: float = Field(
        0.0, ge=0, description="weight of the entropy of the sentiment of a review without a label"
    )
    adversarial_weight: float = Field(
        0.0,
        ge=0,
        description="weight of what the worst small step of a review's inputs does to its sentiment (virtual "
        "adversarial training), with a label or without",
    )
    adversarial_norm: float = Field(
        1.0,
        gt=0,
        description="length of that step, in standard deviations of what it changes: the embeddings of all "
        "of a review's tokens (lstm), its summed n-grams (ngrams)",
    )
    words_weight: float = Field(
        0.0, ge=0, description="weight of the loss of a review's words, in no order, read off z alone"
    )

    @model_validator(mode="after")
    def _a_cycle_holds_its_warmup(self) -> ElboObjective:
        if self.kl_cycle_epochs is not None and self.kl_cycle_epochs < self.kl_warmup_epochs:
            raise ValueError(
                f"objective.kl_cycle_epochs ({self.kl_cycle_epochs}) must be at least "
                f"objective.kl_warmup_epochs ({self.kl_warmup_epochs}): the weight never grew to kl_weight"
            )
        return self


def _kind_alone(value: Any) -> Any:
    """`objective: elbo` is short for `objective: {kind: elbo}`."""
    return {"kind": value} if isinstance(value, str) else value


Objective = Annotated[
    Annotated[SeedObjective | ElboObjective, Field(discriminator="kind")], BeforeValidator(_kind_alone)
]


class Training(Section):
    """How the model is trained."""

    epochs: int = Field(10, ge=1, description="passes over the training reviews")
    batch_size: int = Field(32, ge=1, description="reviews a step, over all ranks together")
    learning_rate: float = Field(1e-3, gt=0, description="Adam's step size")
    schedule: Literal["constant", "linear"] = Field(
        "constant",
        description="linear: the step size falls evenly to nothing at the end of the last epoch",
    )
    adam_epsilon: float = Field(1e-8, gt=0, description="Adam's epsilon (Keras: 1e-7)")
    clip_norm: float | None = Field(
        None, gt=0, description="largest norm of the gradient; none leaves it as it is"
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="factor of the step size a layer down from the latent, to the encoder's layers and the "
        "embedding below them, after pretraining",
    )
    averaging: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of a moving average of the weights over the steps, which is validated, kept and "
        "served; none: the weights themselves",
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="bf16: autocast to bfloat16, on devices with units for it; others use fp32 and say so",
    )
    keep_last: int = Field(2, ge=1, description="newest checkpoints kept beside the best one")


class Config(Section):
    """What is trained, and how: everything that decides the weights."""

    seed: int = Field(0, ge=0, lt=2**31, description="seed of every random choice")
    data: Data = Field(default_factory=Data)
    vocabulary: Vocabulary = Field(default_factory=Vocabulary)
    model: Model = Field(default_factory=Model)
    objective: Objective = Field(default_factory=ElboObjective)
    training: Training = Field(default_factory=Training)

    @model_validator(mode="after")
    def _decoder_fits_objective(self) -> Config:
        seed, model = self.objective.kind == "seed", self.model
        if seed != (model.decoder == "repeat"):
            wanted = "repeat" if seed else "autoregressive, mingru or transformer"
            raise ValueError(f"model.decoder must be {wanted} with objective {self.objective.kind}")
        objective = self.objective
        if objective.kind == "elbo":
            self._stages_fit(objective)
        if objective.kind == "elbo" and objective.decorrelation_weight and not model.mean_scale:
            raise ValueError("objective.decorrelation_weight needs a model.mean_scale")
        if objective.kind == "elbo" and model.latent == 0:
            for name in (
                "adversarial_weight",
                "words_weight",
                "pretraining_token_drop",
                "sentiment_after_epochs",
            ):
                if getattr(objective, name):
                    raise ValueError(f"objective.{name} needs a latent (model.latent above 0)")
        if objective.kind == "elbo" and objective.encoder_lm_weight:
            self._encoder_foresees(objective)
        if self.training.layer_decay < 1 and model.latent == 0:
            raise ValueError("training.layer_decay needs a latent: it is for the layers below it")
        for name in ("pooling", "naive_bayes_order", "dropout_mask", "embedding_dropout", "weight_drop"):
            usual = Model.model_fields[name].default
            if seed and getattr(model, name) != usual:
                raise ValueError(f"objective seed needs model.{name} {usual}")
        if seed and self.vocabulary.kind != "words":
            raise ValueError("vocabulary.kind must be words with objective seed")
        if seed and (model.encoder != "lstm" or model.latent == 0 or model.tied or model.mean_scale):
            raise ValueError(
                "objective seed needs model.encoder lstm, a latent, no model.tied and no model.mean_scale"
            )
        return self

    def _stages_fit(self, objective: ElboObjective) -> None:
        first, epochs = objective.pretraining_epochs, self.training.epochs
        if first >= epochs:
            raise ValueError("objective.pretraining_epochs must be below training.epochs")
        if first + objective.sentiment_after_epochs >= epochs:
            raise ValueError(
                "objective.pretraining_epochs and objective.sentiment_after_epochs together must be below "
                "training.epochs: the sentiment would never count"
            )
        if objective.pretraining_token_drop:
            name = "objective.pretraining_token_drop"
            if first == 0:
                raise ValueError(
                    f"{name} needs objective.pretraining_epochs above 0: it counts in those alone"
                )
            if objective.pretraining == "language_model" and not objective.encoder_lm_weight:
                raise ValueError(
                    f"{name} needs objective.pretraining autoencoder or an objective.encoder_lm_weight: else "
                    "pretraining asks nothing of the encoder"
                )

    def _encoder_foresees(self, objective: ElboObjective) -> None:
        model, name = self.model, "objective.encoder_lm_weight"
        if objective.pretraining_epochs == 0:
            raise ValueError(f"{name} needs objective.pretraining_epochs above 0: it counts in those alone")
        if model.latent == 0 or model.encoder == "ngrams":
            raise ValueError(f"{name} needs a latent and model.encoder lstm or mingru")
        if model.encoder == "lstm" and model.encoder_layers > 1:
            raise ValueError(
                f"{name} needs model.encoder_layers 1 with model.encoder lstm: further layers have seen what "
                "they would foresee"
            )
        if model.encoder_hidden != model.decoder_hidden:
            raise ValueError(
                f"{name} needs model.encoder_hidden equal to model.decoder_hidden: they share the softmax"
            )


def load(path: str | Path) -> Config:
    """The Config in a YAML file. Sections that only the service reads are passed over."""
    return without_service(read_yaml(path), str(path))


def without_service(mapping: Mapping[str, Any], origin: str = "config") -> Config:
    """The Config in a mapping. Sections that only the service reads are passed over."""
    return parse(Config, {k: v for k, v in mapping.items() if k not in SERVICE_SECTIONS}, origin)
