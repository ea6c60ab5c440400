"""What one may ask the served models, and what they answer. Every size is bounded."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MAX_TEXTS = 64
MAX_CHARACTERS = 10_000
MAX_BODY = 1_000_000  # bytes

Text = Annotated[str, StringConstraints(min_length=1, max_length=MAX_CHARACTERS)]


class Body(BaseModel):
    """Base of every request: closed to unknown keys."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(
        None, description="a model name of GET /v1/models; not needed if only one is served"
    )


class Texts(Body):
    """Reviews to read."""

    texts: list[Text] = Field(min_length=1, max_length=MAX_TEXTS, description="reviews; none may be blank")


class Sampling(Body):
    """How to draw texts from the prior."""

    n: int = Field(1, ge=1, le=32, description="texts to write")
    temperature: float = Field(
        1.0, ge=0, le=5, description="0, as anything below 0.000001, writes the likeliest token each time"
    )
    seed: int | None = Field(
        None, ge=0, lt=2**63, description="the same seed writes the same texts; none draws one"
    )


class Interpolation(Body):
    """Two reviews and how many texts to write on the way from one to the other."""

    a: Text
    b: Text
    steps: int = Field(5, ge=2, le=32, description="texts to write, both ends included")


class Answer(BaseModel):
    """Base of every answer: which model version gave it."""

    model: str
    version: int


class Sentiment(BaseModel):
    """The sentiment of one review."""

    positive: float = Field(description="the probability that the review is positive")
    label: Literal["positive", "negative"]
    truncated: bool = Field(description="whether the review is longer than what the model reads of it")


class Sentiments(Answer):
    """One result for each text, in their order."""

    results: list[Sentiment]


class Vectors(Answer):
    """One latent vector for each text, in their order."""

    dimensions: int
    vectors: list[list[float]]


class Written(Answer):
    """Texts that the model wrote."""

    texts: list[str]


class Sampled(Written):
    """Texts drawn from the prior, and the seed that writes them again."""

    seed: int


class ServedModel(BaseModel):
    """One served model version."""

    name: str
    version: int
    digest: str = Field(description="SHA-256 of the checkpoint")
    objective: str
    latent: int = Field(description="dimensions of the latent vector")
    max_length: int = Field(description="tokens that the model reads of a review")
    metrics: dict[str, float] = Field(
        description="of the validation reviews, when the checkpoint was written"
    )


class Problem(BaseModel):
    """A version that should be served and could not be loaded; an earlier one, if any, stays."""

    name: str
    version: int
    digest: str
    reason: str


class Models(BaseModel):
    """What is served."""

    models: list[ServedModel]
    default: str | None = Field(description="the model that answers when a request names none")
    problems: list[Problem]


class Health(BaseModel):
    """Whether there is a model to ask."""

    status: Literal["ok", "no model"]
    models: list[str]


class Error(BaseModel):
    """What is wrong with a request."""

    code: str
    message: str
    field: str | None = Field(None, description="the part of the body that is wrong, such as texts.2")


class Errors(BaseModel):
    """The body of every answer with status 4xx or 5xx."""

    error: Error
