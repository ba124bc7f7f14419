"""The file operations that the on-disk contract needs, behind one small seam.

Production uses :class:`RealFiles`; tests put a simulated shared file system in its place that
delays, reorders, tears and fails. Nothing else in the project opens a spool or state file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import Protocol


class UnsafePath(OSError):
    """A directory of ours is open to others, or is not what it should be."""


class AppendFile(Protocol):
    """One file that this process created and is the only one to write."""

    def write(self, data: bytes) -> int:
        """Append ``data``; returns how many bytes went in, which may be fewer than given."""

    def sync(self) -> None:
        """Return only when everything written so far is on stable storage."""

    def close(self) -> None:
        """Close without syncing. Calling twice is safe."""


class Files(Protocol):
    """What the spool, the state directory and the runner need of a file system.

    Every method raises ``OSError`` as the operating system does. Reads may be stale on a shared
    file system; callers treat absence and shortness as "not yet".
    """

    def create_log(self, path: Path) -> AppendFile:
        """Create ``path`` (mode 0600) for appending; FileExistsError if it is there already."""

    def continue_log(self, path: Path) -> AppendFile:
        """Open a log for appending whose writer closed it for good and handed it on (rule 13).

        Only the next run of one state directory after a clean exit may do this; FileNotFoundError
        if the log is missing.
        """

    def read(self, path: Path, offset: int, limit: int) -> bytes:
        """Up to ``limit`` bytes from ``offset``, through a descriptor opened for this call only."""

    def create_exclusive(self, path: Path, data: bytes) -> None:
        """Create ``path`` with ``data`` and sync it; FileExistsError if somebody was first."""

    def replace(self, path: Path, data: bytes) -> None:
        """Put ``data`` at ``path`` whole or not at all: written beside it, synced, renamed."""

    def rename(self, source: Path, target: Path) -> None:
        """Sync a finished file and give it its final name in the same file system, durably."""

    def listdir(self, path: Path) -> tuple[str, ...]:
        """The names in a directory, sorted; FileNotFoundError if it is missing."""

    def make_dir(self, path: Path) -> None:
        """Create a private (0700) directory and its missing parents. Calling twice is safe."""

    def exists(self, path: Path) -> bool:
        """Whether a name can be seen; on a shared file system "no" may be stale."""

    def remove(self, path: Path) -> None:
        """Remove one file; a missing one is fine."""

    def remove_tree(self, path: Path) -> None:
        """Remove a directory with all in it, following no links; a missing one is fine.

        Cut short it leaves some of it; calling it again removes the rest.
        """


class _RealAppendFile:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, data: bytes) -> int:
        return os.write(self._fd, data)

    def sync(self) -> None:
        os.fsync(self._fd)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class RealFiles:
    """:class:`Files` on the operating system's own calls."""

    def create_log(self, path: Path) -> AppendFile:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(path, flags, 0o600)
        # The umask may only have taken bits away; take none for granted.
        os.fchmod(fd, 0o600)
        sync_dir(path.parent)
        return _RealAppendFile(fd)

    def continue_log(self, path: Path) -> AppendFile:
        flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        return _RealAppendFile(os.open(path, flags))

    def read(self, path: Path, offset: int, limit: int) -> bytes:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return os.pread(fd, limit, offset)
        finally:
            os.close(fd)

    def create_exclusive(self, path: Path, data: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(path, flags, 0o600)
        try:
            _write_all(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        sync_dir(path.parent)

    def replace(self, path: Path, data: bytes) -> None:
        beside = path.with_name(f".{path.name}.{os.getpid()}.part")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(beside, flags, 0o600)
        try:
            _write_all(fd, data)
            os.fsync(fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(beside)
            raise
        finally:
            os.close(fd)
        os.replace(beside, path)
        sync_dir(path.parent)

    def rename(self, source: Path, target: Path) -> None:
        fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(source, target)
        sync_dir(target.parent)

    def listdir(self, path: Path) -> tuple[str, ...]:
        return tuple(sorted(os.listdir(path)))

    def make_dir(self, path: Path) -> None:
        # Not makedirs: its parents follow the umask, and who may write to one can replace us.
        if not path.parent.exists():
            self.make_dir(path.parent)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)

    def exists(self, path: Path) -> bool:
        return os.path.lexists(path)

    def remove(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def remove_tree(self, path: Path) -> None:
        import shutil  # not at the start of every runner

        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)


def sync_dir(path: Path) -> None:
    """Make the names in ``path`` durable; a file system that cannot sync directories is left be."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def require_private_dir(path: Path) -> None:
    """Refuse a spool or state directory that is a link, not ours, or open to others.

    Raises:
        UnsafePath: naming the directory and the cure.
    """
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise UnsafePath(f"{path} is not a directory (a link does not count); give the real path")
    if found.st_uid != os.getuid():
        raise UnsafePath(f"{path} belongs to user id {found.st_uid}, not to you; choose another")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise UnsafePath(f"{path} is open to other users; run: chmod 700 {path}")


def require_own_dir(path: Path) -> None:
    """Refuse a spool or state directory in which others could put or replace files.

    One that is not there yet is fine: it is made private.

    Raises:
        UnsafePath: naming the directory and the cure.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(found.st_mode):
        raise UnsafePath(f"{path} is not a directory (a link does not count); give the real path")
    if found.st_uid != os.getuid():
        raise UnsafePath(f"{path} belongs to user id {found.st_uid}, not to you; choose another")
    if stat.S_IMODE(found.st_mode) & 0o022:
        raise UnsafePath(f"{path} can be written by others; run: chmod 700 {path}")


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
