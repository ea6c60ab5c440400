"""The database's schema over time, as Alembic migrations that ship inside the package.

To add one: change jobs/store/tables.py, write versions/<number>_<what>.py by hand, and set HEAD to it.
`tests/jobs/test_migrations.py` fails while the migrations and the tables say different things.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection

HEAD = "0004"
"""The newest revision: what an open database must be at."""


class UnknownRevision(Exception):
    """The database was written by a version of the package that this one does not know."""


def configuration(connection: Connection | None = None) -> Config:
    """Alembic's configuration for our migrations, over an open connection."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Bring the schema up to `revision`, inside the transaction that is open on `connection`."""
    from alembic import command
    from alembic.util import CommandError

    try:
        command.upgrade(configuration(connection), revision)
    except CommandError as error:
        raise UnknownRevision(
            f"the database is at a schema that this version does not know ({error}); "
            "upgrade textvae-jobs to the version that wrote it"
        ) from error
