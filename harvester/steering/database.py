"""The central service's database: SQLite embedded, or PostgreSQL by URL, one source for both.

There is one writer at a time on either (a lock and ``BEGIN IMMEDIATE`` on SQLite, an advisory
lock on PostgreSQL): every call is one batch in one transaction, so the lock is held for
milliseconds, no two calls can lease the same point, no transaction can deadlock, and the change
feed has the order of the commits. Readers never wait.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import alembic.util
from sqlalchemy import URL, Connection, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DatabaseError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from harvester.errors import ConfigurationError, Problem, StorageUnavailable

_MIGRATIONS = Path(__file__).with_name("migrations")
_WRITER_LOCK = 0x6861727665737472  # names our advisory lock in PostgreSQL
_SQLITE_HEAD = b"SQLite format 3\0"  # https://sqlite.org/fileformat.html
_VERSIONS = "alembic_version"  # the migrations' own table
_NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "cifs", "smb3", "ceph", "afs", "panfs", "wekafs"}
)


def parse_database_url(value: str | None, default: Path) -> URL:
    """The URL of the database; None is SQLite at ``default``, a bare path is SQLite too.

    Raises:
        ConfigurationError: neither SQLite nor PostgreSQL, or SQLite on a network file system.
    """
    if value is None:
        url = URL.create("sqlite", database=str(default))
    elif "://" not in value:
        url = URL.create("sqlite", database=value)
    else:
        url = _make_url(value)
    if url.get_backend_name() == "sqlite":
        return _checked_sqlite(url)
    if url.get_backend_name() == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    raise _bad_url(url.get_backend_name(), "expected sqlite:///PATH or postgresql://HOST/NAME")


def _make_url(value: str) -> URL:
    try:
        return make_url(value)
    except (ArgumentError, ValueError):  # the latter of a port that is no number
        # The value may hold a password: only its scheme is repeated.
        expected = "is not a database URL; expected sqlite:///PATH or postgresql://HOST/NAME"
        raise _bad_url(value.split("://")[0], expected) from None


def _checked_sqlite(url: URL) -> URL:
    if not url.database or url.database == ":memory:" or "\0" in url.database:
        raise _bad_url("sqlite", "expected a file, as in sqlite:////var/lib/harvester/central.db")
    path = Path(url.database).absolute()
    kind = _file_system(path)
    if kind in _NETWORK_FILE_SYSTEMS:
        raise _bad_url(
            str(path),
            f"lies on a network file system ({kind}), where SQLite loses data; "
            "give --db a path on a local disk, under /var/tmp for instance, or PostgreSQL",
        )
    return url.set(drivername="sqlite", database=str(path))


def _bad_url(value: str, expected: str) -> ConfigurationError:
    return ConfigurationError(Problem("command line", "--db", value, expected))


def _file_system(path: Path) -> str:
    """The type of the file system that holds a path, "" where the system does not say."""
    resolved = str(path.resolve())
    best, kind = "", ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mounts").read_text().splitlines():
            _, mount, found = line.split(" ")[:3]
            inside = resolved == mount or resolved.startswith(mount.rstrip("/") + "/")
            if inside and len(mount) >= len(best):
                best, kind = mount, found
    return kind


class Database:
    """Connections to one database.

    Errors of the database itself come out as ``StorageUnavailable``.
    """

    def __init__(self, url: URL) -> None:
        self.url = url
        self.is_sqlite = url.get_backend_name() == "sqlite"
        self.commits = 0  # grows with every write of this process
        self._writer = threading.Lock() if self.is_sqlite else contextlib.nullcontext()
        if self.is_sqlite:
            _create_private(Path(str(url.database)))
            self._engine = create_engine(url, pool_size=16, max_overflow=32)
            event.listen(self._engine, "connect", _prepare_sqlite)
            event.listen(self._engine, "begin", _begin_sqlite)
        else:
            self._engine = create_engine(url, pool_size=16, max_overflow=32, pool_pre_ping=True)

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A consistent view for reading."""
        with _mapped(), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """The one writing transaction: committed when the block ends, rolled back if it raises."""
        with _mapped(), self._writer, self._engine.connect() as plain:
            connection = plain.execution_options(harvester_writes=True)
            with connection.begin():
                if not self.is_sqlite:
                    connection.execute(
                        text("SELECT pg_advisory_xact_lock(:key)"), {"key": _WRITER_LOCK}
                    )
                yield connection
            self.commits += 1

    def migrate(self) -> None:
        """Bring the tables to this release's form.

        Raises:
            ConfigurationError: the database belongs to a newer release or another program, or is
                damaged.
        """
        try:
            self._upgrade()
        except DatabaseError as error:
            if not _is_damaged(error.orig):
                raise
            raise _bad_url(
                self.display,
                f"is damaged ({error.orig}); bring it back from a backup, or name another file",
            ) from error

    def _upgrade(self) -> None:
        config = alembic.config.Config()
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        with self.write() as connection:
            if self.is_sqlite:
                self._refuse_foreign(connection)
            config.attributes["connection"] = connection
            try:
                alembic.command.upgrade(config, "head")
            except alembic.util.CommandError as error:
                raise _bad_url(
                    self.display, f"cannot be brought to this release's tables: {error}"
                ) from error

    def _refuse_foreign(self, connection: Connection) -> None:
        tables = inspect(connection).get_table_names()
        if tables and _VERSIONS not in tables:
            expected = "is the database of another program; name one of its own for the service"
            raise _bad_url(self.display, expected)

    @property
    def display(self) -> str:
        """The URL without its password."""
        return self.url.render_as_string(hide_password=True)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()


@contextlib.contextmanager
def _mapped() -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError, PoolTimeout) as error:
        cause = error if isinstance(error, PoolTimeout) else error.orig
        raise StorageUnavailable(f"the database does not answer: {cause}") from error


def _create_private(path: Path) -> None:
    # SQLite gives its -wal and -shm files the mode of the database.
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _bad_url(str(path), f"cannot be opened: {error.strerror}") from error
    try:
        _check_is_ours(fd, path)
        os.fchmod(fd, 0o600)
    finally:
        os.close(fd)


def _check_is_ours(fd: int, path: Path) -> None:
    """Before a file of somebody's is closed to others, or a device taken for a disk."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise _bad_url(str(path), "is no regular file; name the file of a database")
    head = os.pread(fd, len(_SQLITE_HEAD), 0)
    if head and head != _SQLITE_HEAD:
        raise _bad_url(str(path), "is no SQLite database; name one, or a file that is not there")


def _is_damaged(error: BaseException | None) -> bool:
    damage = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)
    return isinstance(error, sqlite3.Error) and error.sqlite_errorcode in damage


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver is not to open transactions by itself: _begin_sqlite does.
    connection.isolation_level = None
    for pragma in (
        "busy_timeout=10000",
        "journal_mode=WAL",
        "synchronous=FULL",
        "cache_size=-32000",
        "temp_store=MEMORY",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("harvester_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
