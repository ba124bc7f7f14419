"""The files of tasks and results: content-addressed, on disk beside the database.

A file comes in chunks and may be taken up again where it stopped; it exists once its SHA-256 has
been checked. Files are 0600 in a 0700 directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
from pathlib import Path

from sqlalchemy import Connection, insert, select

from harvester.errors import InputError, NotFound, Problem, StorageUnavailable
from harvester.steering.database import Database
from harvester.steering.tables import FILES
from payload_runner.files import RealFiles, sync_dir

CHUNK_LIMIT_BYTES = 8 * 1024 * 1024
FILE_LIMIT_BYTES = 1024 * 1024 * 1024  # ten times a checkpoint; larger data travels by staging
PART_KEPT_S = 7 * 86_400.0  # a transfer that nobody took up for a week is given up
_SHA256 = re.compile(r"[0-9a-f]{64}")


class OffsetMismatch(InputError):
    """A chunk does not follow what has arrived."""

    def __init__(self, offset: int, have: int) -> None:
        expected = f"expected {have}, which is how much has arrived"
        super().__init__(Problem("request", "offset", str(offset), expected))
        self.have = have


class FileStore:
    """Files by their SHA-256. Safe for several threads."""

    def __init__(self, directory: Path, database: Database) -> None:
        self._directory = directory
        self._database = database
        self._locks = tuple(threading.Lock() for _ in range(64))
        RealFiles().make_dir(directory)

    def have(self, sha256: str) -> int | None:
        """How many bytes of a file have arrived; None if nothing has."""
        check_sha256(sha256)
        for path in (self._path(sha256), self._part(sha256)):
            with contextlib.suppress(FileNotFoundError):
                return path.stat().st_size
        return None

    def find(self, sha256: str) -> Path:
        """Where a complete file lies.

        Raises:
            NotFound: there is none.
        """
        check_sha256(sha256)
        path = self._path(sha256)
        if not path.exists():
            raise NotFound(f"there is no file {sha256}")
        return path

    def add(
        self, sha256: str, offset: int, size: int, chunk: bytes, uploader: str, now: float
    ) -> tuple[int, bool]:
        """Append a chunk; answers how much has arrived and whether the file is complete.

        Raises:
            OffsetMismatch: the chunk does not follow.
            InputError: too large, or the content does not have that SHA-256.
            StorageUnavailable: the disk refuses.
        """
        check_sha256(sha256)
        if size > FILE_LIMIT_BYTES:
            expected = f"expected at most {FILE_LIMIT_BYTES} bytes"
            raise InputError(Problem("request", "size", str(size), expected))
        with self._locks[int(sha256[:2], 16) % len(self._locks)]:
            try:
                return self._add(sha256, offset, size, chunk, uploader, now)
            except OSError as error:
                raise StorageUnavailable(f"the file store refuses {sha256}: {error}") from error

    def missing(self, connection: Connection, sha256s: set[str]) -> set[str]:
        """Those of the files that are not complete."""
        query = select(FILES.c.sha256).where(FILES.c.sha256.in_(sorted(sha256s)))
        return sha256s - set(connection.scalars(query))

    def sweep(self, now: float) -> None:
        """Give up transfers that nobody has taken up for a week."""
        for path in self._directory.glob("*.part"):
            with contextlib.suppress(FileNotFoundError):
                if now - path.stat().st_mtime > PART_KEPT_S:
                    path.unlink()

    def _add(
        self, sha256: str, offset: int, size: int, chunk: bytes, uploader: str, now: float
    ) -> tuple[int, bool]:
        if self._path(sha256).exists():
            self._note(sha256, uploader, now)
            return self._path(sha256).stat().st_size, True
        have = self.have(sha256) or 0
        if offset != have:
            raise OffsetMismatch(offset, have)
        if have + len(chunk) > size:
            expected = f"expected at most {size - have} more bytes of the {size} announced"
            raise InputError(Problem("request", "body", f"{len(chunk)} bytes", expected))
        have = self._append(self._part(sha256), chunk)
        if have < size:
            return have, False
        self._complete(sha256)
        self._note(sha256, uploader, now)
        return have, True

    def _append(self, part: Path, chunk: bytes) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(part, flags, 0o600)
        try:
            view = memoryview(chunk)
            while view:
                view = view[os.write(fd, view) :]
            return os.fstat(fd).st_size
        finally:
            os.close(fd)

    def _complete(self, sha256: str) -> None:
        part = self._part(sha256)
        with part.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        if found != sha256:
            part.unlink()
            expected = f"the content has SHA-256 {found}; send the file again from the start"
            raise InputError(Problem("request", "sha256", sha256, expected))
        part.replace(self._path(sha256))
        sync_dir(self._directory)

    def _note(self, sha256: str, uploader: str, now: float) -> None:
        size = self._path(sha256).stat().st_size
        with self._database.write() as connection:
            if self.missing(connection, {sha256}):
                connection.execute(
                    insert(FILES).values(
                        sha256=sha256, size=size, uploader=uploader, completed_at=now
                    )
                )

    def _path(self, sha256: str) -> Path:
        return self._directory / sha256

    def _part(self, sha256: str) -> Path:
        return self._directory / f"{sha256}.part"


def check_sha256(value: str) -> None:
    """Let pass what is a SHA-256 in hex.

    Raises:
        InputError: it is not, so it must not become a path.
    """
    if not _SHA256.fullmatch(value):
        expected = "expected a SHA-256 in 64 lower-case hex digits"
        raise InputError(Problem("request", "sha256", value[:80], expected))
