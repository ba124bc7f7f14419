"""The spool's files on a login node, as ``Files``; everything else stays on this host.

There is no copy of the spool here: what the harvester has written counts once it is on stable
storage where the runners read it, and a connection that is cut is a file system that stalls.
"""

from __future__ import annotations

import errno
from pathlib import Path

from harvester.remote.channel import Channel
from payload_runner.files import AppendFile, Files
from payload_runner.fileserver import Frame


class RemoteFiles:
    """Implements ``Files`` for the paths under ``root`` by one round trip each.

    An operation that fails for want of a connection may or may not have happened, and so may
    happen twice. Of a creation that is tried again the file's content says whether it was ours.
    """

    def __init__(self, channel: Channel, root: Path) -> None:
        self._channel = channel
        self._root = root
        self._in_doubt: set[Path] = set()  # creations whose answer was lost

    def create_log(self, path: Path) -> AppendFile:
        self._create("create_log", path, b"")
        return _RemoteLog(self, path)

    def continue_log(self, path: Path) -> AppendFile:
        self.append(path, b"")  # it must be there
        return _RemoteLog(self, path)

    def append(self, path: Path, data: bytes) -> None:
        """Append to a log that is there already, synced."""
        self._ask("append", path, data)

    def read(self, path: Path, offset: int, limit: int) -> bytes:
        _, body = self._ask("read", path, offset=offset, limit=limit)
        return body

    def create_exclusive(self, path: Path, data: bytes) -> None:
        self._create("create", path, data)

    def replace(self, path: Path, data: bytes) -> None:
        self._ask("replace", path, data)

    def rename(self, source: Path, target: Path) -> None:
        self._ask("rename", source, to=self._relative(target))

    def listdir(self, path: Path) -> tuple[str, ...]:
        return tuple(self._ask("listdir", path)[0]["result"])

    def make_dir(self, path: Path) -> None:
        self._ask("make_dir", path)

    def exists(self, path: Path) -> bool:
        return bool(self._ask("exists", path)[0]["result"])

    def remove(self, path: Path) -> None:
        self._ask("remove", path)

    def remove_tree(self, path: Path) -> None:
        self._ask("remove_tree", path)

    def _create(self, op: str, path: Path, data: bytes) -> None:
        try:
            self._ask(op, path, data)
        except FileExistsError:
            if path not in self._in_doubt or self.read(path, 0, len(data) + 1) != data:
                raise
        except OSError as error:
            if error.errno in (errno.ENOTCONN, errno.ETIMEDOUT):
                self._in_doubt.add(path)
            raise
        self._in_doubt.discard(path)

    def _ask(self, op: str, path: Path, data: bytes = b"", **more: str | int) -> Frame:
        asked = {"op": op, "path": self._relative(path), **more}
        head, body = self._channel.request(asked, data)
        if "errno" in head:
            raise OSError(int(head["errno"]), str(head.get("error", "")), str(path))
        return head, body

    def _relative(self, path: Path) -> str:
        return str(path.relative_to(self._root))


class _RemoteLog:
    """A log over there that this process is the only one to write."""

    def __init__(self, files: RemoteFiles, path: Path) -> None:
        self._files = files
        self._path = path
        self._closed = False

    def write(self, data: bytes) -> int:
        """Synced already when it comes back: writing and syncing apart would cost two trips.

        It is all in, or it raises. Then the log may hold more than its writer counts, never
        less: who reads it again from there sees records twice, and misses none.
        """
        if self._closed:
            raise OSError(errno.EBADF, "the log is closed", str(self._path))
        self._files.append(self._path, data)
        return len(data)

    def sync(self) -> None:
        return None

    def close(self) -> None:
        self._closed = True


class SiteFiles:
    """Implements ``Files``: paths under the spool are far, all others near.

    ``status``: a file that lies in the spool by its name and is kept near, at ``published``: the
    views of this host read it, and no runner does.
    """

    def __init__(self, near: Files, far: Files, spool: Path, status: Path, published: Path) -> None:
        self._near = near
        self._far = far
        self._spool = spool
        self._status = status
        self._published = published

    def create_log(self, path: Path) -> AppendFile:
        files, path = self._place(path)
        return files.create_log(path)

    def continue_log(self, path: Path) -> AppendFile:
        files, path = self._place(path)
        return files.continue_log(path)

    def read(self, path: Path, offset: int, limit: int) -> bytes:
        files, path = self._place(path)
        return files.read(path, offset, limit)

    def create_exclusive(self, path: Path, data: bytes) -> None:
        files, path = self._place(path)
        files.create_exclusive(path, data)

    def replace(self, path: Path, data: bytes) -> None:
        files, path = self._place(path)
        files.replace(path, data)

    def rename(self, source: Path, target: Path) -> None:
        files, source = self._place(source)
        beside, target = self._place(target)
        if files is not beside:
            raise OSError(errno.EXDEV, "one of the two is on another host", str(target))
        files.rename(source, target)

    def listdir(self, path: Path) -> tuple[str, ...]:
        files, path = self._place(path)
        return files.listdir(path)

    def make_dir(self, path: Path) -> None:
        files, path = self._place(path)
        files.make_dir(path)

    def exists(self, path: Path) -> bool:
        files, path = self._place(path)
        return files.exists(path)

    def remove(self, path: Path) -> None:
        files, path = self._place(path)
        files.remove(path)

    def remove_tree(self, path: Path) -> None:
        files, path = self._place(path)
        files.remove_tree(path)

    def _place(self, path: Path) -> tuple[Files, Path]:
        if path == self._status:
            return self._near, self._published
        return (self._far if path.is_relative_to(self._spool) else self._near), path
