"""The database under the store: its tables, how it is opened, and its errors in the user's words.

Everything that differs between SQLite and PostgreSQL is here, so that `mmmo.store` is written once.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Double,
    Engine,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    func,
    inspect,
    select,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from mmmo.errors import StoreError

SCHEMA_VERSION = 1
BUSY_S = 30.0
"""How long a statement waits for another process before it gives up; `?timeout=` in the URL."""

_SCHEMA_LOCK = 0x6D6D6D6F  # "mmmo": PostgreSQL's advisory lock while the tables are created
_Id = BigInteger().with_variant(Integer, "sqlite")

METADATA = MetaData()

SCHEMA = Table("schema_version", METADATA, Column("version", Integer, nullable=False))

CAMPAIGNS = Table(
    "campaigns",
    METADATA,
    Column("id", _Id, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("created_at", Double, nullable=False),
    Column("config", Text, nullable=False),
    Column("config_digest", String(64), nullable=False),
    Column("versions", Text, nullable=False),
    Column("sources", Text, nullable=False),
)

EVENTS = Table(
    "events",
    METADATA,
    Column("id", _Id, primary_key=True),
    Column("campaign_id", _Id, ForeignKey("campaigns.id"), nullable=False),
    Column("trial", Integer),
    Column("kind", Text, nullable=False),
    Column("payload", Text, nullable=False),
    Column("at", Double, nullable=False),
    Index("events_of_campaign", "campaign_id", "id"),
    sqlite_autoincrement=True,  # an id is never used twice
)

LEASES = Table(
    "leases",
    METADATA,
    Column("campaign_id", _Id, ForeignKey("campaigns.id"), primary_key=True),
    Column("owner", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("machine", Text, nullable=False),
    Column("started", Text, nullable=False),
    Column("since", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
)

_HINTS = {
    "is locked": "another program holds the file; close it and try again",
    "No space left": "free some space, then resume the campaign",
    "disk is full": "free some space, then resume the campaign",
    "disk I/O error": "check the disk and its free space, then resume the campaign",
    "readonly": "make the file and its folder writable, or choose another store",
    "not a database": "this file is something else; choose another path",
    "malformed": "the file is damaged; restore a copy",
    "unable to open": "check that the path is a file in a folder that you may write to",
    "resolve host": "check the host name in the URL",
    "connection": "start the server, or check host, port, user, password and database name",
}
_ANY_HINT = "check the path or URL of the store"


class Database:
    """One SQLite file or one PostgreSQL database, with our tables in it.

    Args:
        url: `sqlite:///relative/path`, `sqlite:////absolute/path` or `postgresql+psycopg://…`.

    Raises:
        StoreError: the URL is not one of those, or the driver is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = _checked(url)
        self.name = self.url.render_as_string(hide_password=True)
        self._engine = self._new_engine()
        self._ready = False

    def missing(self) -> bool:
        """Whether there is no SQLite file yet, so that reading need not create one."""
        return self._is_sqlite and not Path(str(self.url.database)).exists()

    @property
    def files(self) -> tuple[Path, ...]:
        """The file of an SQLite database, and those that SQLite keeps beside it."""
        if not self._is_sqlite:
            return ()
        return tuple(Path(f"{self.url.database}{end}") for end in ("", "-wal", "-shm", "-journal"))

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a transaction that sees one state and locks nobody out."""
        with self._explained():
            self._prepare()
            with self._engine.begin() as connection:
                yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Open a transaction; it is committed, durably, if the block ends without an error."""
        with self._explained():
            self._prepare()
            with self._engine.execution_options(mmmo_writes=True).begin() as connection:
                yield connection

    def now(self, connection: Connection) -> float:
        """Seconds since 1970 by the clock that all writers share: the server's, if there is one."""
        if self._is_sqlite:
            return time.time()
        return float(
            connection.execute(select(func.extract("epoch", func.clock_timestamp()))).scalar_one()
        )

    def close(self) -> None:
        """Give every connection back."""
        self._engine.dispose()

    @property
    def _is_sqlite(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    def _new_engine(self) -> Engine:
        waits = "timeout" if self._is_sqlite else "connect_timeout"
        arguments = {} if waits in self.url.query else {waits: BUSY_S if self._is_sqlite else 10}
        with self._explained():
            engine = create_engine(
                self.url, connect_args=arguments, pool_pre_ping=not self._is_sqlite
            )
        if self._is_sqlite:
            event.listen(engine, "connect", _set_pragmas)
            event.listen(engine, "begin", _begin)
        return engine

    def _prepare(self) -> None:
        """Create the tables at the first use, or check that they are ours.

        Raises:
            StoreError: a newer `mmmo` wrote this store, or the file holds something else.
        """
        if self._ready:
            return
        if self._is_sqlite:
            Path(str(self.url.database)).parent.mkdir(parents=True, exist_ok=True)
        with self._engine.begin() as connection:
            known = self._version(connection)
        if known is None:
            with self._engine.execution_options(mmmo_writes=True).begin() as connection:
                self._create(connection)
        elif known > SCHEMA_VERSION:
            raise StoreError(
                f"store {self.name}: schema {known}, but this mmmo knows up to {SCHEMA_VERSION}",
                hint="a newer mmmo wrote it: upgrade mmmo, or choose another store",
            )
        self._ready = True

    def _version(self, connection: Connection) -> int | None:
        tables = inspect(connection).get_table_names()
        if SCHEMA.name in tables:
            return int(connection.execute(select(SCHEMA.c.version)).scalar_one())
        if self._is_sqlite and tables:
            raise StoreError(
                f"store {self.name}: a database of another program (its table {tables[0]!r})",
                hint="choose another path",
            )
        return None

    def _create(self, connection: Connection) -> None:
        if not self._is_sqlite:
            connection.execute(select(func.pg_advisory_xact_lock(_SCHEMA_LOCK)))
        if self._version(connection) is None:  # nobody was faster
            METADATA.create_all(connection)
            connection.execute(SCHEMA.insert().values(version=SCHEMA_VERSION))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn whatever the driver raises into one line."""
        try:
            yield
        except ModuleNotFoundError as error:
            raise StoreError(
                f"store {self.name}: the package {error.name!r} is not installed",
                hint="pip install 'mmmo[postgres]'",
            ) from error
        except (SQLAlchemyError, OSError) as error:
            found = _first_line(error)
            hint = next((text for part, text in _HINTS.items() if part in found), _ANY_HINT)
            raise StoreError(f"store {self.name}: {found}", hint) from error


def _checked(text: str) -> URL:
    hint = "write sqlite:///path/to/file.db or postgresql+psycopg://user:password@host/database"
    scheme = text.partition("://")[0][:40]  # what follows may hold a password
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:
        raise StoreError(f"store: not a database URL: {scheme!r}…", hint) from error
    if url.drivername not in ("sqlite", "postgresql+psycopg"):
        raise StoreError(f"store: {scheme!r} is neither sqlite nor postgresql+psycopg", hint)
    if url.drivername == "sqlite":
        if url.host or url.database in (None, "", ":memory:"):
            raise StoreError(f"store: {text!r} names no file (three slashes before it)", hint)
        timeout = url.query.get("timeout", "0")
        if set(url.query) - {"timeout"} or not str(timeout).replace(".", "", 1).isdigit():
            raise StoreError(f"store: {text!r}: only ?timeout=<seconds> may follow the path", hint)
    return url


def _first_line(error: Exception) -> str:
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    lines = str(cause).strip().splitlines()
    return lines[0] if lines else type(cause).__name__


def _set_pragmas(connection: sqlite3.Connection, _record: Any) -> None:
    """Durable commits, and transactions that begin where we say (the driver's own are lazy)."""
    connection.isolation_level = None
    for pragma in ("foreign_keys=ON", "synchronous=FULL"):
        connection.execute(f"PRAGMA {pragma}")
    _use_wal(connection)


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch the journal; SQLite does not wait for another process here, so we do."""
    give_up = time.monotonic() + BUSY_S
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.01)


def _begin(connection: Connection) -> None:
    """Lock at once if writing: a reader that turns writer may be refused without waiting."""
    writes = connection.get_execution_options().get("mmmo_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
