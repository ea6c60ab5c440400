"""`usage`: who used how much of the cluster."""

from __future__ import annotations

from datetime import datetime

import click

from jobs.cli import arguments, errors, output, service


@click.command()
@click.option("--jobs", "by_job", is_flag=True, help="By job instead of by user.")
@click.option("--user", help="Only this user's.")
@click.option(
    "--since",
    metavar="TIME",
    help="Only from then on: a length of time before now, such as 7d or 12h, or a moment such as 2030-01-31.",
)
@arguments.limit_option(" lines")
@output.json_option
def usage(by_job: bool, user: str | None, since: str | None, limit: int, as_json: bool) -> None:
    """Show CPU-hours and GPU-hours by user, or by job.

    Counted is what an attempt held while its ranks trained, running ones up to now.
    """
    store = service.store()
    begin = None if since is None else _moment(since, store.clock())
    found = store.usage_by_job(begin, owner=user) if by_job else store.usage(begin)
    if user is not None and not by_job:
        found = {owner: used for owner, used in found.items() if owner == user}
    most = sorted(found.items(), key=lambda item: (-item[1].gpu_seconds, -item[1].cpu_seconds, item[0]))
    what = "job" if by_job else "user"
    if as_json:
        output.emit_json(
            [
                {
                    what: of,
                    "cpu_hours": used.cpu_seconds / 3600,
                    "gpu_hours": used.gpu_seconds / 3600,
                    "hours": used.seconds / 3600,
                    "attempts": used.attempts,
                }
                for of, used in most[:limit]
            ]
        )
        return
    if not most:
        output.talk("nothing was used")
        return
    columns = (what, "cpu-hours", "gpu-hours", "trained", "attempts")
    output.table(
        columns,
        [
            (
                of,
                f"{used.cpu_seconds / 3600:.2f}",
                f"{used.gpu_seconds / 3600:.2f}",
                output.duration(used.seconds),
                used.attempts,
            )
            for of, used in most[:limit]
        ],
        right=columns[1:],
    )
    if len(most) > limit:
        output.talk(f"these are the {limit} that used most, of {len(most)}; --limit shows more")


def _moment(text: str, now: datetime) -> datetime:
    from jobs.durations import LOCAL, ago, moment, seconds

    try:
        seconds(text)
    except ValueError:
        read = moment
    else:
        read = ago
    try:
        return read(text, now.astimezone(LOCAL))
    except ValueError as error:
        raise errors.Wrong(f"--since: {error}") from error
