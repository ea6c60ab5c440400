"""`data fetch` and `data show`: where the reviews come from, and what they are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.cli import arguments, output

if TYPE_CHECKING:
    from textvae.config import Data
    from textvae.sources import Corpus

_SOURCES = ("imdb", "snippets")


@click.group()
def data() -> None:
    """Fetch and describe the reviews.

    \b
    NAME is one of
      imdb      the Large Movie Review Dataset: 25,000 labelled reviews, 50,000 without
                a label and 25,000 to test on
      snippets  10,604 sentences of movie reviews
      FILE      a config, for your own files under `data: {source: files, ...}`
    """


def _common(command: Any) -> Any:
    command = click.option(
        "--folder",
        type=click.Path(file_okay=False),
        help="imdb: a folder that already holds train, unsupervised and test .parquet.",
    )(command)
    return click.argument("name", metavar="NAME", shell_complete=_complete)(command)


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    from click.shell_completion import CompletionItem

    names = [CompletionItem(name) for name in _SOURCES if name.startswith(incomplete)]
    return [*names, CompletionItem(incomplete, type="file")]


@data.command()
@_common
def fetch(name: str, folder: str | None) -> None:
    """Fetch and convert a source, once; later calls find it there."""
    corpus = prepare(name, folder)
    output.talk(
        f"{corpus.name}: {len(corpus.train):,} training, {len(corpus.validation):,} validation and "
        f"{len(corpus.test):,} test reviews are ready"
    )
    click.echo(corpus.folder)


@data.command()
@_common
@output.json_option
def show(name: str, folder: str | None, as_json: bool) -> None:
    """Describe a source: counts, label balance, length quantiles, three examples."""
    described = prepare(name, folder).describe()
    if as_json:
        output.emit_json(described)
        return
    output.table(
        ("reviews", "positive", "negative", "no label", "all", "positive share"),
        [
            (
                name,
                c.positive,
                c.negative,
                c.unlabelled,
                c.reviews,
                _share(c.positive, c.positive + c.negative),
            )
            for name, c in described.counts.items()
        ],
        right=("positive", "negative", "no label", "all", "positive share"),
    )
    output.heading("lengths")
    output.table(
        ("unit", *described.words),
        [("words", *described.words.values()), ("characters", *described.characters.values())],
        right=described.words,
    )
    output.heading("examples")
    for example in described.examples:
        label = {1: "positive", 0: "negative"}.get(-1 if example.label is None else example.label, "no label")
        rating = "" if example.rating is None else f" ({example.rating:g})"
        click.echo(f"{output.styled(label)}{rating}: {output.shorten(example.text, 200)}")
    output.talk(f"\n{described.dropped:,} reviews were too short and left out")


def _share(part: int, whole: int) -> str | None:
    return f"{part / whole:.1%}" if whole else None


def prepare(name: str, folder: str | None) -> Corpus:
    """The corpus of that name, fetched and converted if it is not there yet."""
    from jobs.cli import progress, service
    from textvae.sources import prepare

    settings = service.settings()
    wanted, seed = _data(name, folder)
    settings.create_home()
    with progress.bars() as tell:
        return prepare(wanted, settings.data, seed=seed, progress=tell)


def _data(name: str, folder: str | None) -> tuple[Data, int]:
    """The data section that a name stands for, and the seed of its subsets."""
    from textvae.config import Data
    from textvae.parsing import parse

    if name in _SOURCES and not Path(name).is_file():
        section: dict[str, Any] = {"source": name}
        if folder:
            section["folder"] = str(Path(folder).absolute())
        return parse(Data, section, name), 0
    loaded = arguments.load(name, [f"data.folder={Path(folder).absolute()}"] if folder else [])
    return loaded.data, loaded.seed
