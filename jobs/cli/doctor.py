"""`doctor`: the settings, where each comes from, and whether every part is as it should be."""

from __future__ import annotations

from collections.abc import Callable

import click

from jobs.cli import checks, errors, output, service


@click.command()
@output.json_option
def doctor(as_json: bool) -> None:
    """Check the settings and every part.

    Prints each setting and where it comes from, then what was checked: ok, warn or fail. What is not running
    is no failure. The exit code is 1 if a check failed.
    """
    settings = service.settings()
    found = [_checked(check) for check in checks.ALL]
    failed = any(result.mark == "fail" for result in found)
    if as_json:
        output.emit_json({"ok": not failed, "settings": settings.describe(), "checks": found})
    else:
        output.table(
            ("setting", "value", "from"),
            [(setting.name, setting.value, setting.origin) for setting in settings.describe()],
        )
        output.heading("checks")
        output.table(("mark", "part", "found"), [(r.mark, r.part, r.found) for r in found], wrap="found")
    raise click.exceptions.Exit(errors.FAILED if failed else errors.OK)


def _checked(check: Callable[[], checks.Result]) -> checks.Result:
    """The check's result; an expected error of the part it looks at is a failure of that part."""
    try:
        return check()
    except Exception as error:
        failure = errors.translate(error)
        if failure is None:
            raise
        return checks.Result(check.__name__.strip("_").replace("_", " "), "fail", failure.format_message())
