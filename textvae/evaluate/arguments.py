"""The options of both command lines that evaluate. Imports no torch, so that help answers at once."""

from __future__ import annotations

PARTS = ("likelihood", "latent", "sentiment", "text", "samples", "transfer")

# Name in evaluation.Options, default (None: all), what it is.
OPTIONS: tuple[tuple[str, int | float | None, str], ...] = (
    ("reviews", None, "Reviews to measure, drawn at random"),
    ("samples", 500, "K: draws of the latent a review in importance weighting"),
    (
        "weighted_reviews",
        250,
        "Reviews that importance weighting is done on, each of which costs K decodings",
    ),
    ("information_reviews", 10_000, "N: reviews of the mutual information"),
    ("text_reviews", 250, "Reviews that are written again"),
    ("written", 500, "Texts that are drawn from the prior"),
    ("temperature", 1.0, "Temperature of those"),
    ("transfer_reviews", 100, "Reviews that are pushed to the other sentiment"),
    ("probe_reviews", 10_000, "Labelled training reviews for the probe and the judge"),
    ("seed", 0, "Seed of every draw"),
)


def parts(text: str) -> tuple[str, ...]:
    """`likelihood,latent` as a tuple; evaluation.Options checks the names."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
