"""A shared file system in memory: what is not synced can be lost, what others wrote shows late.

Each host looks at it through its own :class:`MemoryFiles` on one common :class:`SharedDisk`. A
host sees its own changes at once and those of others after the disk's ``delay_s``, names included.
Exclusive creation is decided by the server, so it is exact for everybody.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from payload_runner.files import AppendFile


@dataclass(slots=True)
class _Version:
    """One content of a name; None stands for a name that was removed."""

    host: str
    at: float
    content: bytearray | None
    synced: int = 0
    growth: list[tuple[float, int]] = field(default_factory=list)  # (when, size from then on)
    before: _Version | None = None

    def seen_size(self, host: str, horizon: float) -> int:
        """How many bytes a host sees that learns of others' changes up to ``horizon``."""
        assert self.content is not None
        if host == self.host:
            return len(self.content)
        while len(self.growth) > 1 and self.growth[1][0] <= horizon:
            del self.growth[0]
        return self.growth[0][1] if self.growth and self.growth[0][0] <= horizon else 0


class SharedDisk:
    """The server's side: contents, what of them is on stable storage, and when they changed.

    ``delay_s`` may be changed at any time. ``fault`` is called with the operation's name and path
    before each change and may raise ``OSError`` (ENOSPC, EIO, ...).
    """

    def __init__(self, monotonic: Callable[[], float], delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self.fault: Callable[[str, Path], None] = _no_fault
        self.operations = 0  # metadata operations and syncs, for budgets
        self._monotonic = monotonic
        self._newest: dict[Path, _Version] = {}
        self._directories: dict[Path, tuple[str, float]] = {Path("/"): ("", -1e18)}
        self._names: dict[Path, set[str]] = {}

    def host(self, name: str) -> MemoryFiles:
        """The file system as one host sees it."""
        return MemoryFiles(self, name)

    def lose_unsynced(self, host: str) -> None:
        """A host dies without a word: what it had not synced is gone."""
        for version in self._newest.values():
            if version.host == host and version.content is not None:
                del version.content[version.synced :]
                version.growth = [(at, min(size, version.synced)) for at, size in version.growth]

    def change(self, operation: str, path: Path) -> None:
        """Count a change, and let it fail if it is to."""
        self.operations += 1
        self.fault(operation, path)

    def put(self, host: str, path: Path, content: bytes | None, *, synced: bool) -> _Version:
        """Give a name a new content, or none."""
        if path.parent not in self._directories:
            raise FileNotFoundError(errno.ENOENT, "No such directory", str(path.parent))
        now = self._monotonic()
        data = None if content is None else bytearray(content)
        version = _Version(host, now, data, before=self._newest.get(path))
        if data is not None:
            version.growth = [(now, len(data))]
            version.synced = len(data) if synced else 0
        self._newest[path] = version
        self._names.setdefault(path.parent, set()).add(path.name)
        return version

    def grow(self, version: _Version, data: bytes) -> None:
        """Append to a content."""
        assert version.content is not None
        version.content += data
        version.growth.append((self._monotonic(), len(version.content)))

    def newest(self, path: Path) -> _Version | None:
        """The server's own truth of a name; None if it is not there."""
        version = self._newest.get(path)
        return None if version is None or version.content is None else version

    def seen(self, host: str, path: Path) -> _Version | None:
        """What a host finds under a name."""
        version = self._newest.get(path)
        horizon = self.horizon()
        while version is not None and version.host != host and version.at > horizon:
            version = version.before
        if version is None or version.content is None:
            return None
        if version is self._newest[path] and version.at <= horizon:
            version.before = None  # nobody can see it any more
        return version

    def horizon(self) -> float:
        """Changes by others are seen if they are no younger than this."""
        return self._monotonic() - self.delay_s

    def make_directory(self, host: str, path: Path) -> None:
        """Create a directory and its parents."""
        for directory in (*reversed(path.parents), path):
            if directory not in self._directories:
                self._directories[directory] = (host, self._monotonic())
                self._names.setdefault(directory.parent, set()).add(directory.name)

    def sees_directory(self, host: str, path: Path) -> bool:
        """Whether a host finds a directory."""
        found = self._directories.get(path)
        return found is not None and (found[0] == host or found[1] <= self.horizon())

    def remove_tree(self, path: Path) -> None:
        """Forget a directory with all in it, for every host at once."""
        for inside in [name for name in self._newest if path in name.parents]:
            del self._newest[inside]
        for inside in [name for name in self._directories if path in (name, *name.parents)]:
            del self._directories[inside]
            self._names.pop(inside, None)
        self._names.get(path.parent, set()).discard(path.name)

    def names(self, path: Path) -> Iterable[str]:
        """Every name that ever was in a directory."""
        return self._names.get(path, ())


class MemoryFiles:
    """One host's :class:`~payload_runner.files.Files` on a shared disk."""

    def __init__(self, disk: SharedDisk, host: str) -> None:
        self.disk = disk
        self._host = host

    def create_log(self, path: Path) -> AppendFile:
        self._refuse_existing(path)
        self.disk.change("create", path)
        return _MemoryAppendFile(self.disk, path, self.disk.put(self._host, path, b"", synced=True))

    def continue_log(self, path: Path) -> AppendFile:
        version = self.disk.newest(path)
        if version is None:
            raise FileNotFoundError(errno.ENOENT, "No such file", str(path))
        version.host = self._host
        return _MemoryAppendFile(self.disk, path, version)

    def read(self, path: Path, offset: int, limit: int) -> bytes:
        version = self.disk.seen(self._host, path)
        if version is None or version.content is None:
            raise FileNotFoundError(errno.ENOENT, "No such file", str(path))
        end = min(version.seen_size(self._host, self.disk.horizon()), offset + limit)
        return bytes(version.content[offset:end])

    def create_exclusive(self, path: Path, data: bytes) -> None:
        self._refuse_existing(path)
        self.disk.change("create", path)
        self.disk.put(self._host, path, data, synced=True)

    def replace(self, path: Path, data: bytes) -> None:
        self.disk.change("replace", path)
        self.disk.put(self._host, path, data, synced=True)

    def rename(self, source: Path, target: Path) -> None:
        version = self.disk.newest(source)
        if version is None or version.content is None:
            raise FileNotFoundError(errno.ENOENT, "No such file", str(source))
        self.disk.change("rename", target)
        self.disk.put(self._host, target, bytes(version.content), synced=True)
        self.disk.put(self._host, source, None, synced=True)

    def listdir(self, path: Path) -> tuple[str, ...]:
        if not self.disk.sees_directory(self._host, path):
            raise FileNotFoundError(errno.ENOENT, "No such directory", str(path))
        return tuple(sorted(name for name in self.disk.names(path) if self.exists(path / name)))

    def make_dir(self, path: Path) -> None:
        self.disk.change("mkdir", path)
        self.disk.make_directory(self._host, path)

    def exists(self, path: Path) -> bool:
        if self.disk.sees_directory(self._host, path):
            return True
        return self.disk.seen(self._host, path) is not None

    def remove(self, path: Path) -> None:
        if self.disk.newest(path) is not None:
            self.disk.change("remove", path)
            self.disk.put(self._host, path, None, synced=True)

    def remove_tree(self, path: Path) -> None:
        self.disk.change("remove", path)
        self.disk.remove_tree(path)

    def _refuse_existing(self, path: Path) -> None:
        if self.disk.newest(path) is not None:
            raise FileExistsError(errno.EEXIST, "File exists", str(path))


class _MemoryAppendFile:
    def __init__(self, disk: SharedDisk, path: Path, version: _Version) -> None:
        self._disk = disk
        self._path = path
        self._version: _Version | None = version

    def write(self, data: bytes) -> int:
        self._disk.fault("write", self._path)
        self._disk.grow(self._open(), data)
        return len(data)

    def sync(self) -> None:
        self._disk.change("sync", self._path)
        version = self._open()
        assert version.content is not None
        version.synced = len(version.content)

    def close(self) -> None:
        self._version = None

    def _open(self) -> _Version:
        if self._version is None:
            raise OSError(errno.EBADF, "Bad file descriptor", str(self._path))
        return self._version


def _no_fault(operation: str, path: Path) -> None:
    del operation, path
