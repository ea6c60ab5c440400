"""The documentation is true: every command has help, and every command line in it is one that exists."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from jobs.cli import main
from jobs.cli.errors import EXIT_CODES
from jobs.cli.reference import markdown

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")
_ENDS = {"|", "||", "&&", ";", "&", ">", ">>", "2>", "<", "#"}


def commands(
    group: click.Group, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command below a group with the words that call it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, name
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


ALL = dict(commands(main))


@pytest.mark.parametrize("words", [(), *ALL], ids=" ".join)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_command_has_help(words: tuple[str, ...], flag: str) -> None:
    result = CliRunner().invoke(main, [*words, flag])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("Usage: textvae-jobs")


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_every_command_and_option_says_what_it_does(words: tuple[str, ...]) -> None:
    command = ALL[words]
    assert command.help and command.help.strip().split("\n")[0].endswith(".")
    silent = [p.name for p in command.params if isinstance(p, click.Option) and not p.help]
    assert silent == []


def test_the_table_of_commands_says_what_their_help_says() -> None:
    told = {name: entry.help for name, entry in main.entries.items()}
    assert told == {
        name: (ALL[name,].help or "").strip().split("\n\n")[0].replace("\n", " ") for name in told
    }


def test_the_exit_codes_are_in_the_help() -> None:
    text = CliRunner().invoke(main, ["--help"]).output
    for code in (0, 1, 2, 3, 4, 5, 124):
        assert re.search(rf"^ +{code}  \S", text, re.MULTILINE), code


def test_the_exit_codes_are_in_the_documentation() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    told = {int(code): text for code, text in re.findall(r"^\| `(\d+)` \| (.+) \|$", page, re.MULTILINE)}
    assert told == EXIT_CODES


def lines(page: str) -> Iterator[str]:
    """Every `textvae-jobs ...` that a page tells its reader to type, without the program's name."""
    fenced = _FENCE.findall(page)
    rest = _FENCE.sub("", page)
    candidates = [line for block in fenced for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    candidates += _INLINE.findall(rest)
    for candidate in candidates:
        match = re.match(
            r"(?:[$>] )?(?:[A-Z_]+=\S* )*(?:\.venv/bin/)?textvae-jobs(?: (.*))?$", candidate.strip()
        )
        if match:
            yield match.group(1) or ""


def words_of(line: str) -> list[str]:
    """The arguments of one command line, up to a pipe; a synopsis loses its brackets and dots."""
    line = re.sub(r"\[([^\]]*)\]", r" \1 ", line).replace("...", " ").replace("…", " ")
    found: list[str] = []
    for word in shlex.split(line, comments=True):
        if word in _ENDS:
            break
        # `data fetch|show NAME` stands for two commands; the first one is looked at.
        found.append(word.split("|")[0] if re.fullmatch(r"[a-z|]+", word) else word)
    return found


def parse(words: list[str]) -> None:
    """Raises click.ClickException unless a command takes these arguments."""
    command: click.Command = main
    context = click.Context(main, info_name="textvae-jobs")
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name, found, words = command.resolve_command(context, words)
        assert found is not None, name
        command = found
        context = click.Context(command, info_name=name, parent=context)
    try:
        if not isinstance(command, click.Group) or words:
            command.make_context(context.info_name, list(words), parent=context.parent)
    except click.exceptions.Exit as end:
        assert end.exit_code == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_command_line_in_the_documentation_parses(page: Path) -> None:
    for line in lines(page.read_text(encoding="utf-8")):
        try:
            parse(words_of(line))
        except click.ClickException as error:
            pytest.fail(f"{page.name}: `textvae-jobs {line}`: {error.format_message()}")


def test_the_documentation_names_commands_at_all() -> None:
    assert sum(len(list(lines(page.read_text(encoding="utf-8")))) for page in PAGES) >= 10


@pytest.mark.parametrize(
    "line",
    [
        "frobnicate",
        "list --sate queued",
        "submit",
        "models show",
        "data fetch imdb --florder x",
        "list --state done",
    ],
)
def test_a_command_line_that_does_not_exist_is_caught(line: str) -> None:
    with pytest.raises(click.ClickException):
        parse(words_of(line))


def test_command_lines_are_found_in_blocks_and_in_prose() -> None:
    page = "Type `textvae-jobs up`.\n```console\n$ textvae-jobs list \\\n  --json | head  # newest\n{}\n```\n"
    assert [words_of(line) for line in lines(page)] == [["list", "--json"], ["up"]]


def test_the_config_reference_is_the_generated_one() -> None:
    assert markdown() in (ROOT / "README.md").read_text(encoding="utf-8")
