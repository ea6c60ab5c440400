"""`explore`: a latent space in words: reconstructions, neighbours, ways between reviews, samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from jobs.cli import arguments, checkpoints, errors, output, progress, service

if TYPE_CHECKING:
    from rich.text import Text

    from jobs.cli.checkpoints import Found
    from textvae.explore import Explorer, Neighbour, Place, Reading
    from textvae.predict import Predictor
    from textvae.sources import Slice

_KNOWN = 2000  # validation reviews among which neighbours are sought
_MOST_PLACES = 10_000  # that are written in one call
_SHOWN = 300  # characters of a text that are printed; JSON has all of them
_BAR = 10  # characters of a probability's bar on a terminal
# Okabe & Ito's light colours: told apart by people of every colour vision, on dark and on light ground.
_NEGATIVE, _POSITIVE = "#E69F00", "#56B4E9"


@dataclass(frozen=True)
class _Told:
    """All that is printed; None where the model has nothing to say."""

    checkpoint: str
    job: str | None
    latent: int
    reconstructions: list[Reading] | None
    neighbours: list[dict[str, Any]] | None
    interpolation: dict[str, Any] | None
    transfer: dict[str, Any] | None
    samples: list[Place] | None


@click.command()
@checkpoints.argument
@click.option(
    "--text",
    "texts",
    multiple=True,
    help="A review to look at; may be repeated. Default: a validation review of each sentiment, drawn.",
)
@click.option("--other", help="The review at the other end of the interpolation. Default: another one.")
@click.option(
    "--steps",
    type=click.IntRange(2, _MOST_PLACES),
    default=5,
    show_default=True,
    help="Places on a way from one review to another, both ends included.",
)
@click.option(
    "--samples",
    type=click.IntRange(0, _MOST_PLACES),
    default=5,
    show_default=True,
    help="Samples from the prior.",
)
@click.option(
    "--neighbours",
    type=arguments.count(0),
    default=5,
    show_default=True,
    help="Nearest validation reviews of each review; 0 for none.",
)
@arguments.seed_option("Seed of reviews and samples drawn.")
@output.json_option
def explore(
    what: str,
    texts: tuple[str, ...],
    other: str | None,
    steps: int,
    samples: int,
    neighbours: int,
    seed: int,
    as_json: bool,
) -> None:
    """Look around in the latent space of a checkpoint.

    Prints what the model writes again of reviews, which validation reviews are nearest to them, what lies
    between two of them, one pushed from negative to positive, and samples from the prior.
    """
    for given in (*texts, *([other] if other is not None else [])):
        if not given.strip():
            raise errors.Wrong("a review is empty: there is nothing to read in it")
    named = checkpoints.find(what)

    from textvae.explore import Explorer
    from textvae.predict import Predictor

    explorer = Explorer(Predictor.load(named.folder, digest=named.digest))
    if explorer.latent == 0:
        output.talk(
            "this model is a language model without a latent: there is nothing to explore in it but samples"
        )
        told = _language_model(named, explorer, samples, seed)
    else:
        told = _look(named, explorer, list(texts), other, steps, samples, neighbours, seed)
    if as_json:
        output.emit_json(told)
    else:
        _show(told)


def _language_model(named: Found, explorer: Explorer, samples: int, seed: int) -> _Told:
    written = explorer.samples(samples, seed) if samples else None
    job = named.job.id if named.job else None
    return _Told(str(named.folder), job, 0, None, None, None, None, written)


def _look(
    named: Found,
    explorer: Explorer,
    texts: list[str],
    other: str | None,
    steps: int,
    samples: int,
    neighbours: int,
    seed: int,
) -> _Told:
    from textvae.explore import draw

    # With texts of one's own, the data is wanted for neighbours alone.
    enough = len(texts) > 1 or (texts and other)
    if neighbours or not enough:
        explorer.known = _known(explorer.predictor, required=not enough)
    if not enough:
        assert explorer.known is not None
        try:
            drawn = draw(explorer.known, seed)
        except ValueError as error:
            raise errors.Wrong(str(error)) from error
        if not texts:
            texts = drawn
        elif other is None:
            # Of the two drawn, the one whose sentiment is the other than the text's.
            positive = explorer.predictor.sentiment(texts[:1])[0] >= 0.5
            other = drawn[0 if positive else 1]
    end = other if other is not None else texts[1]
    readings = explorer.read([*texts, *([end] if end not in texts else [])])
    for number, reading in enumerate(readings, 1):
        if reading.cut:
            limit = explorer.predictor.config.vocabulary.max_length
            output.talk(
                f"warning: review {number} is longer than the {limit} tokens that the model reads: it is cut"
            )
    near = None
    if neighbours and explorer.known is not None:
        near = [
            {"text": reading.text, "neighbours": explorer.neighbours(reading.text, neighbours)}
            for reading in readings
        ]
    return _Told(
        checkpoint=str(named.folder),
        job=named.job.id if named.job else None,
        latent=explorer.latent,
        reconstructions=readings,
        neighbours=near,
        interpolation={"from": texts[0], "to": end, "places": explorer.between(texts[0], end, steps)},
        transfer={"text": texts[0], "places": explorer.push(texts[0], steps)},
        samples=explorer.samples(samples, seed) if samples else None,
    )


def _known(predictor: Predictor, required: bool) -> Slice | None:
    """The validation reviews of the checkpoint's own data; None, with a warning, if they cannot be had."""
    import numpy as np

    from textvae.sources import SourceError, prepare

    config = predictor.config
    try:
        with progress.bars() as tell:
            corpus = prepare(config.data, service.settings().data, seed=config.seed, progress=tell)
        return corpus.validation.read(np.arange(min(len(corpus.validation), _KNOWN)))
    except SourceError as error:
        if required:
            raise errors.Wrong(
                f"no reviews can be drawn: {error}; give --text and --other, which need no data"
            ) from error
        output.talk(f"warning: no neighbours: {error}")
        return None


def _show(told: _Told) -> None:
    numbers = {reading.text: number for number, reading in enumerate(told.reconstructions or (), 1)}
    for reading in told.reconstructions or ():
        output.heading(f"review {numbers[reading.text]}")
        output.fields(
            [
                ("text", _line(reading.text)),
                ("positive", f"{reading.positive:.1%}"),
                ("written again", _line(reading.written)),
            ]
        )
    for near in told.neighbours or ():
        output.heading(f"nearest to review {numbers[near['text']]}")
        _neighbours(near["neighbours"])
    if told.interpolation is not None:
        ends = [numbers[told.interpolation[end]] for end in ("from", "to")]
        output.heading(f"on the way from review {ends[0]} to review {ends[1]}")
        _places(told.interpolation["places"])
    if told.transfer is not None:
        output.heading(f"review {numbers[told.transfer['text']]}, pushed from negative to positive")
        _places(told.transfer["places"])
    if told.samples is not None:
        output.heading("samples from the prior")
        _places(told.samples)


def _neighbours(found: Sequence[Neighbour]) -> None:
    words = {1: "positive", 0: "negative"}
    rated = any(each.rating is not None for each in found)
    output.table(
        ("distance", "label", *(["rating"] if rated else []), "text"),
        [
            (
                f"{each.distance:.2f}",
                None if each.label is None else words[each.label],
                *([None if each.rating is None else f"{each.rating:g}"] if rated else []),
                _line(each.text),
            )
            for each in found
        ],
        right=("distance", "rating"),
        wrap="text",
    )


def _places(places: Sequence[Place]) -> None:
    """A table of places: what the head says there, what it says of the text written there, the text.

    A language model has texts alone.
    """
    told = any(place.positive is not None for place in places)
    columns = (*(("positive", "read back") if told else ()), "text")
    if output.terminal():
        _bars(columns, places, told)
        return
    rows = [
        (
            *((_share(place.positive), _share(place.read_back)) if told else ()),
            _line(place.text),
        )
        for place in places
    ]
    output.table(columns, rows, right=("positive", "read back"), wrap="text")


def _bars(columns: Sequence[str], places: Sequence[Place], told: bool) -> None:
    """The same on a terminal: each probability has a bar, in the colour of its sentiment."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, no_wrap=name != "text", overflow="fold" if name == "text" else "ellipsis")
    for place in places:
        cells = [_bar(place.positive), _bar(place.read_back)] if told else []
        table.add_row(*cells, Text(_line(place.text) or output.NONE))
    output.console().print(table)


def _bar(probability: float | None) -> Text:
    from rich.text import Text

    if probability is None:
        return Text(output.NONE)
    full = round(probability * _BAR)
    style = _POSITIVE if probability >= 0.5 else _NEGATIVE
    return Text.assemble(
        ("━" * full, style), ("━" * (_BAR - full), "bright_black"), f" {_share(probability):>6}"
    )


def _line(text: str) -> str:
    """The beginning of a text on one line; IMDB's line breaks, which are HTML, become spaces."""
    return output.shorten(text.replace("<br />", " "), _SHOWN)


def _share(probability: float | None) -> str | None:
    return None if probability is None else f"{probability:.1%}"
