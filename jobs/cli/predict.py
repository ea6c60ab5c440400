"""`predict`: the sentiment of texts, from the served model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from jobs.cli import errors, output, service

if TYPE_CHECKING:
    from jobs.store import Version

_SOON = 60.0  # seconds in which a promoted version is served, unless something is wrong


@click.command()
@click.argument("texts", metavar="TEXT...", nargs=-1)
@click.option("--model", help="The model to ask, if several are served.")
@output.json_option
def predict(texts: tuple[str, ...], model: str | None, as_json: bool) -> None:
    """Ask the served model for the sentiment of texts.

    With no TEXT or with `-`, each line of standard input is one.
    """
    if texts in ((), ("-",)):
        if sys.stdin.isatty():
            raise errors.Wrong('give at least one text, such as: textvae-jobs predict "A lovely film."')
        texts = tuple(line.strip() for line in sys.stdin if line.strip())
    if not texts:
        raise errors.Wrong("there is no text on standard input")
    from jobs.cli import http

    question = {"texts": list(texts)} | ({"model": model} if model else {})
    try:
        answer = http.ask("/v1/sentiment", question)
    except (http.NotYet, errors.NotFound):
        version = _on_its_way(model)
        if version is None:
            raise
        output.talk(
            f"waiting for {version.model} version {version.version}, which was promoted, to be served"
        )
        http.wait_until_served(version.model, version.version, _SOON)
        answer = http.ask("/v1/sentiment", question)
    if as_json:
        output.emit_json(answer)
    else:
        show(texts, answer)


def _on_its_way(model: str | None) -> Version | None:
    """A promoted version of that model name (of any) that the HTTP server does not serve yet."""
    from jobs.cli import http

    promoted = [version for version in service.store().served() if model in (None, version.model)]
    served = http.served() if promoted else {}
    return next((version for version in promoted if version.model not in served), None)


def show(texts: Sequence[str], answer: Any) -> None:
    """Print the answer of /v1/sentiment beside the texts."""
    output.table(
        ("sentiment", "positive", "text"),
        [
            (word(p), f"{p:.1%}", output.shorten(text, 200))
            for text, p in zip(texts, probabilities(answer), strict=True)
        ],
        right=("positive",),
        wrap="text",
    )


def probabilities(answer: Any) -> list[float]:
    """The probability that each text is positive, from the answer of /v1/sentiment."""
    return [float(result["positive"]) for result in answer["results"]]


def word(probability: float) -> str:
    """`positive` or `negative`."""
    return "positive" if probability >= 0.5 else "negative"
