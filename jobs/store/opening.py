"""Opening a database: connections, transactions, migrations; driver errors are translated here."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
    ProgrammingError,
)
from sqlalchemy.pool import ConnectionPoolEntry

from jobs.migrations import HEAD
from jobs.store.values import StoreError, StoreUnavailable
from textvae.urls import masked

Clock = Callable[[], datetime]

BUSY_SECONDS = 10  # how long a writer waits for another one
MIGRATING_SECONDS = 60  # and for one that migrates
IDLE_SECONDS = 5  # how long a writer may be in the middle of its transaction and do nothing

# libpq by itself waits two minutes and more for a server that cannot be reached, and two hours for one that
# is gone without a word. Here as long as for another writer. A server that is there and slow is waited for.
_REACH = {
    "connect_timeout": BUSY_SECONDS,
    "keepalives_idle": 4,
    "keepalives_interval": 2,
    "keepalives_count": (BUSY_SECONDS - 4) // 2,
    "tcp_user_timeout": BUSY_SECONDS * 1000,
}

_WAITING, _IDLE = "lock_timeout", "idle_in_transaction_session_timeout"  # PostgreSQL has none by default
_OURS = "textvae_limits"  # where a connection keeps which of them nobody else has set


def utc_now() -> datetime:
    """This moment, in UTC."""
    return datetime.now(UTC)


class Database:
    """An open database at the newest schema. Safe to share between threads, not between forked processes."""

    def __init__(self, url: str, clock: Clock = utc_now):
        """Open the database at `url`, creating or migrating its tables if they are behind.

        Raises StoreUnavailable if it cannot be reached, StoreError if the URL or the schema is not ours.
        """
        self.clock = clock
        try:
            parsed = _parsed(url)
            self.name = masked(parsed.render_as_string(hide_password=True))
            self._engine = _engine(parsed)
        except ModuleNotFoundError as error:
            raise StoreError(
                f"the database {self.name} needs the package {error.name}; "
                "for PostgreSQL: pip install 'textvae-jobs[postgresql]'"
            ) from error
        except (ArgumentError, NoSuchModuleError) as error:
            raise StoreError(
                f"the database URL cannot be used ({error}); sqlite:////path/to/file.db and "
                "postgresql+psycopg://user:password@host/name can"
            ) from error
        with self._translated():
            _bring_up_to_date(self._engine, parsed)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A consistent view of the database, as of the first statement."""
        with self._translated(), self._engine.connect() as connection:
            if self._engine.dialect.name == "postgresql":  # SQLite has nothing less
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that may write; it is rolled back if the block raises."""
        with self._translated(), self._engine.connect() as connection:
            connection = connection.execution_options(textvae_writes=True)
            with connection.begin():
                yield connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise  # the verbs know what it means
        except DBAPIError as error:
            if isinstance(error, OperationalError | InterfaceError) or error.connection_invalidated:
                raise StoreUnavailable(f"the database {self.name} does not answer: {error.orig}") from error
            raise StoreError(f"the database {self.name} refuses: {error.orig}") from error


def _parsed(url: str) -> URL:
    try:
        return make_url(url)
    except ValueError as error:  # it tells what stands there: of a URL that is none, perhaps a password
        raise ArgumentError("its port is no number") from error


def _engine(url: URL) -> Engine:
    kind = url.get_backend_name()
    if kind == "postgresql":
        return _postgresql(url)
    return _sqlite(url) if kind == "sqlite" else create_engine(url, pool_pre_ping=True)


def _postgresql(url: URL) -> Engine:
    """An engine with limits. What the URL, the role or the server's configuration says counts before them.

    They are set by statements, not by libpq's `options`: those would replace the user's own PGOPTIONS, and
    PgBouncer refuses connections that have them.
    """
    libpq = url.get_driver_name() in ("psycopg", "psycopg2")
    reach = {name: value for name, value in _REACH.items() if libpq and name not in url.query}
    engine = create_engine(url, pool_pre_ping=True, connect_args=reach)

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        cursor.execute(
            f"SELECT name FROM pg_settings WHERE name IN ('{_WAITING}', '{_IDLE}') AND source = 'default'"
        )
        record.info[_OURS] = ours = {name for (name,) in cursor.fetchall()}
        if _WAITING in ours:
            cursor.execute(f"SET {_WAITING} = '{BUSY_SECONDS}s'")
        cursor.close()
        connection.commit()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # Who is frozen or cut off here holds rows that others need. The server ends such a session, early
        # enough for whoever waits to come through. One that only reads holds nothing, and may take long.
        writes = connection.get_execution_options().get("textvae_writes", False)
        if writes and _IDLE in connection.info[_OURS]:
            connection.exec_driver_sql(f"SET LOCAL {_IDLE} = '{IDLE_SECONDS}s'")

    return engine


def _sqlite(url: URL) -> Engine:
    if url.database in (None, "", ":memory:"):
        raise StoreError("an SQLite database must be a file, such as sqlite:////path/to/file.db")
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        # The driver's own BEGINs come too late: it is told to leave transactions to `begin` below.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
        cursor.execute("PRAGMA foreign_keys = ON")
        # A job that submit has acknowledged must survive a power cut. In WAL mode only FULL syncs the log
        # at every commit; NORMAL may lose the last ones. Our writes are a few a second: the cost is small.
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A transaction that begins with a read and then writes can fail at once with "database is locked",
        # whatever the time-out. IMMEDIATE takes the write lock first, and waits for it.
        writes = connection.get_execution_options().get("textvae_writes", False)
        if writes:
            _wait_for_turn(connection)
        else:
            connection.exec_driver_sql("BEGIN")

    return engine


def _wait_for_turn(connection: Connection) -> None:
    """Take SQLite's write lock, in about the order of arrival; OperationalError after `BUSY_SECONDS`.

    SQLite itself asks for its lock ever more rarely, so that of a few busy writers whoever came first waits
    longest, for seconds. Here one asks the more often the longer one has waited.
    """
    raw = connection.connection.dbapi_connection
    assert raw is not None  # a pool hands out open connections only
    raw.execute("PRAGMA busy_timeout = 0")
    try:
        began = time.monotonic()
        while (waited := time.monotonic() - began) < BUSY_SECONDS:
            try:
                raw.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    break  # SQLAlchemy is to see it
            # Drawn, so that two who came together do not ask together for ever.
            time.sleep(max(0.003, 0.03 / (1 + waited / 0.05)) * random.uniform(0.5, 1.0))
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    finally:
        raw.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")


def _revision(engine: Engine) -> str | None:
    """The schema's revision, none for an empty database. A plain SELECT: Alembic takes long to import."""
    try:
        with engine.connect() as connection:
            return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    except (OperationalError, ProgrammingError) as error:
        if "alembic_version" not in str(error.orig):  # not the missing table: a database that does not answer
            raise
        return None


def _bring_up_to_date(engine: Engine, url: URL) -> None:
    if url.get_backend_name() != "sqlite":
        if _revision(engine) != HEAD:
            _migrate(engine)
        return
    path = Path(str(url.database))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreUnavailable(
            f"the folder {path.parent} cannot be made: {error.strerror or error}"
        ) from error
    if path.exists() and path.stat().st_size and _revision(engine) == HEAD:
        return
    try:
        # Two processes that open a new database at once would both create the tables.
        with FileLock(f"{path}.lock", timeout=MIGRATING_SECONDS):
            if _revision(engine) == HEAD:
                return
            with engine.connect() as connection:
                # The file keeps the mode. It is changed outside of a transaction, with nobody else in.
                raw = connection.connection.dbapi_connection
                assert raw is not None  # a pool hands out open connections only
                raw.execute("PRAGMA journal_mode = WAL")
            _migrate(engine)
    except Timeout as error:
        raise StoreUnavailable(
            f"{path}.lock is held by another process that is migrating the database"
        ) from error


def _migrate(engine: Engine) -> None:
    from jobs.migrations import UnknownRevision, upgrade

    with engine.connect().execution_options(textvae_writes=True) as connection, connection.begin():
        if connection.dialect.name == "postgresql":
            # The other process takes its time, and this one too: Alembic is imported in between.
            for limit in connection.info[_OURS]:
                connection.exec_driver_sql(f"SET LOCAL {limit} = '{MIGRATING_SECONDS}s'")
            connection.execute(text("SELECT pg_advisory_xact_lock(7350071)"))
        try:
            upgrade(connection)
        except UnknownRevision as error:
            raise StoreError(str(error)) from error
