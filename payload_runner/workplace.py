"""The node's directory for payloads: their working directories and a checked copy of inputs.

The spool is read once per input file and node. Only the agent of the node writes here.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import json
import os
import shutil
import stat
import threading
from pathlib import Path, PurePosixPath
from typing import Dict, Iterable, List, Optional, Set, Tuple, Union

from payload_runner.commits import Broken, digest, fetch
from payload_runner.protocol import InputFile, Order, PayloadSpec, SpoolPaths

_IN_MEMORY_BYTES = 64 * 1024
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BATCH = 10_000  # names of a directory that are read at a time
_PLAIN_FILES = 16  # so many are removed faster than a thread is woken
_FIRST_READ_BYTES = 16 * 1024  # what nearly every file fits in
_IN_MEMORY_TOTAL = 2 * 1024 * 1024


class Workplace:
    """Owns ``root``, which ``open`` makes and ``close`` removes."""

    def __init__(
        self, spool: SpoolPaths, root: Path, *, node_local: bool, keep: bool = False
    ) -> None:
        """``node_local``: inputs are copied to ``root``; else they are used from the spool.

        ``keep``: what payloads left behind stays when this closes.
        """
        self.root = root
        self._root_text = str(root)
        self.node_local = node_local
        self._spool = spool
        self._keep = keep
        self._checked: Set[str] = set()
        self._small: Dict[str, bytes] = {}
        self._small_bytes = 0
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)

    def open(self) -> None:
        """Make the private directory. Raises OSError, also when it is there already."""
        self.root.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.root.mkdir(mode=0o700)
        if self.node_local:
            self._inputs.mkdir(mode=0o700)

    def close(self) -> None:
        """Remove everything that is not to be kept, as far as that goes."""
        shutil.rmtree(self._inputs if self._keep else self.root, ignore_errors=True)

    def directory(self, attempt: str) -> Path:
        return self.root / attempt

    def directory_text(self, attempt: str) -> str:
        """As ``directory``; making paths costs more than using them."""
        return f"{self._root_text}/{attempt}"

    def set_aside(self, attempt: str) -> Path:
        """Make room for another working directory of an attempt; where the old one lies now.

        Without an old one nothing is done. Raises OSError.
        """
        aside = self.root / f".{attempt}.left.{next(self._numbers)}"
        with contextlib.suppress(FileNotFoundError):
            self.directory(attempt).rename(aside)
        return aside

    def staging(self, attempt: str, purpose: str) -> Path:
        return self.root / f".{attempt}.{purpose}"

    def has_inputs(self, spec: PayloadSpec) -> bool:
        """Whether ``lay_out`` will not have to read the spool."""
        return all(item.sha256 in self._checked for item in spec.files)

    def lay_out(self, order: Order, spec: PayloadSpec) -> None:
        """Make an attempt's working directory with its input files. Safe in any thread.

        Raises:
            Broken: an input file in the spool is not what its name says.
            OSError: no space, no permission, no input file.
        """
        for item in spec.files:
            self._check(item)
        place = self.directory_text(order.attempt)
        os.mkdir(place, 0o700)
        for item in spec.files:
            self._place(item, _target(place, item.name))
        _write(_target(place, spec.training_name), _training_json(spec.training_files), 0o600)
        _write(_target(place, spec.input_name), _encode(order.parameters).encode(), 0o600)

    @property
    def _inputs(self) -> Path:
        return self.root / ".inputs"

    def _source(self, item: InputFile) -> Path:
        return self._inputs / item.sha256 if self.node_local else self._spool.input(item.sha256)

    def _check(self, item: InputFile) -> None:
        if item.sha256 in self._checked:
            return
        with self._lock:
            if item.sha256 in self._checked:
                return
            source = self._spool.input(item.sha256)
            if self.node_local:
                fetch(source, self._inputs / item.sha256, item.size, item.sha256)
            elif digest(source) != (item.size, item.sha256):
                raise Broken(f"inputs/{item.sha256} is not what its name says")
            self._remember(item)
            self._checked.add(item.sha256)

    def _remember(self, item: InputFile) -> None:
        if item.size > _IN_MEMORY_BYTES or self._small_bytes + item.size > _IN_MEMORY_TOTAL:
            return
        data = self._source(item).read_bytes()
        if len(data) == item.size:
            self._small[item.sha256] = data
            self._small_bytes += len(data)

    def _place(self, item: InputFile, target: str) -> None:
        # Copies, not hard links: a payload may write to its files.
        mode = 0o700 if item.executable else 0o600
        data = self._small.get(item.sha256)
        if data is not None:
            _write(target, data, mode)
        else:
            shutil.copyfile(self._source(item), target)
            os.chmod(target, mode)


def usual_files(spec: PayloadSpec) -> List[str]:
    """What a payload that does nothing unusual leaves in its working directory itself."""
    names = [item.name for item in spec.files]
    names += [spec.training_name, spec.input_name, spec.output_name]
    # What lies deeper may be reached through a link of the payload's by now.
    return [name for name in names if "/" not in name]


def remove_tree(directory: Path) -> None:
    """Remove a directory with all that can be removed in it; a million files are fine.

    ``shutil.rmtree`` reads each directory whole, which an agent's memory does not bear.
    """
    try:
        fd = os.open(directory, _DIRECTORY)
        try:
            _empty(fd)
        finally:
            os.close(fd)
        os.rmdir(directory)
    except (OSError, RecursionError):
        shutil.rmtree(directory, ignore_errors=True)


def _empty(fd: int) -> None:
    while True:
        with os.scandir(fd) as items:
            batch = [
                (item.name, item.is_dir(follow_symlinks=False))
                for item in itertools.islice(items, _BATCH)
            ]
        for name, is_directory in batch:
            if not is_directory:
                os.unlink(name, dir_fd=fd)
                continue
            below = os.open(name, _DIRECTORY, dir_fd=fd)
            try:
                _empty(below)
            finally:
                os.close(below)
            os.rmdir(name, dir_fd=fd)
        if not batch:
            return


def remove_if_plain(directory: Path, likely: Iterable[str] = ()) -> bool:
    """Remove a directory that holds a few files and nothing else; False where that is not so.

    ``likely``: files that are probably there; where they are all there is, it need not be read.
    """
    try:
        for name in likely:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(directory, name))
        with contextlib.suppress(OSError):
            os.rmdir(directory)
            return True
        with os.scandir(directory) as items:
            names = [item.name for item in itertools.islice(items, _PLAIN_FILES + 1)]
        if len(names) > _PLAIN_FILES:
            return False
        for name in names:
            os.unlink(os.path.join(directory, name))
        os.rmdir(directory)
    except OSError:
        return False
    return True


def read_bounded(
    path: Union[Path, str], limit_bytes: int, *, within: Optional[Path] = None
) -> Optional[bytes]:
    """Up to ``limit_bytes`` + 1 bytes of a regular file; None if it is missing or something else.

    ``within``: where the file has to lie, whatever links lead to it.

    Raises OSError for what a missing file does not explain.
    """
    try:
        # O_NONBLOCK: what the payload left there may be a FIFO.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode):
            return None
        if within is not None:
            _refuse_outside(fd, within)
        return _read_all(fd, limit_bytes + 1)
    finally:
        os.close(fd)


def read_plain(path: Union[Path, str], limit_bytes: int, *, within: Path) -> Optional[bytes]:
    """As ``read_bounded``, but only what has no entry at all is None: the rest raises OSError."""
    data = read_bounded(path, limit_bytes, within=within)
    if data is None and os.path.lexists(path):
        raise OSError(errno.EINVAL, f"it is {_kind(Path(path))}, not a plain file")
    return data


def _read_all(fd: int, limit_bytes: int) -> bytes:
    """The file up to a limit. Most are small: room for the limit is only made when it is needed."""
    data = os.read(fd, min(_FIRST_READ_BYTES, limit_bytes))
    if len(data) < _FIRST_READ_BYTES:
        return data
    parts, left = [data], limit_bytes - len(data)
    while left > 0:
        data = os.read(fd, left)
        if not data:
            break
        parts.append(data)
        left -= len(data)
    return b"".join(parts)


def _kind(path: Path) -> str:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return f"a link to {os.readlink(path)}"
    return "a FIFO" if stat.S_ISFIFO(mode) else "a device or socket"


def _refuse_outside(fd: int, directory: Path) -> None:
    # Asked of the open file: a link could be turned between a look at its name and the opening.
    found = os.readlink(f"/proc/self/fd/{fd}")
    if not found.startswith(f"{_real(directory.parent)}/{directory.name}/"):
        raise OSError(errno.EXDEV, "it is a link that leaves the working directory")


@functools.lru_cache(maxsize=4)
def _real(root: Path) -> str:
    """The path of a directory that is ours and stays where it is, without links."""
    return os.path.realpath(root)


def usage_bytes(directory: Path, max_files: int = 50_000) -> int:
    """The space that a directory takes, counting at most ``max_files`` entries."""
    total = count = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
            except OSError:
                continue
            count += 1
            if count >= max_files:
                return total
    return total


def _target(workdir: str, name: str) -> str:
    parts = _parts(name)
    if len(parts) > 1:
        Path(workdir, *parts[:-1]).mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.path.join(workdir, *parts)


@functools.lru_cache(maxsize=1024)
def _parts(name: str) -> Tuple[str, ...]:
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise Broken(f"input file name {name!r:.200} leaves the working directory")
    return path.parts


# The point is JSON of the user's choice. Making an encoder costs as much as using it.
_encode = json.JSONEncoder(allow_nan=False).encode


@functools.lru_cache(maxsize=16)
def _training_json(names: Tuple[str, ...]) -> bytes:
    return _encode(list(names)).encode()


def _write(path: str, data: bytes, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        written = os.write(fd, data)
        while written < len(data):
            written += os.write(fd, data[written:])
    finally:
        os.close(fd)
