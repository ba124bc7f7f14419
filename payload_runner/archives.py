"""Checkpoint archives (tar.gz): written under a size limit, verified, and unpacked safely.

Archives are read as if a stranger had made them: nothing is ever written outside the directory
that was named, and an archive that is torn or unsafe leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Iterator, List, Mapping, Optional, Sequence

from payload_runner.commits import Broken

MAX_FILES = 20_000
MAX_RAW_BYTES = 2_000_000_000  # before compression; also what unpacking may write
_CHUNK = 1024 * 1024


class TooLarge(ValueError):
    """The archive passes its limit."""


@dataclass(frozen=True)
class Member:
    """One entry of an archive. ``source``: where a file's content lies; None: a directory."""

    name: str
    mode: int
    mtime: float
    size: int = 0
    source: Optional[Path] = None
    link: Optional[str] = None  # a symbolic link's target


def write_archive(target: Path, members: Sequence[Member], limit_bytes: int) -> None:
    """Write a tar.gz.

    Raises:
        TooLarge: it would pass ``limit_bytes``.
        OSError: it cannot be written or a source cannot be read.
    """
    raw = sum(member.size for member in members)
    # Speed, unless only compression can bring it under the limit.
    level = 1 if raw < limit_bytes * 0.9 else 6
    with open(target, "wb") as file:
        bounded = _Bounded(file, limit_bytes)
        with (
            gzip.GzipFile("", "wb", level, bounded, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for member in members:
                _add(tar, member)


def verify_archive(path: Path, members: Sequence[Member]) -> None:
    """Read an archive back and compare names and sizes, checksum included.

    Raises:
        Broken: it does not hold what was put in.
    """
    expected = {member.name: member.size for member in members}
    found = {}
    with _reading(path) as packed:
        with tarfile.open(fileobj=packed, mode="r|") as tar:
            for item in tar:
                found[item.name] = item.size
        while packed.read(_CHUNK):  # the checksum comes at the end
            pass
    if found != expected:
        raise Broken(f"{path.name}: holds {len(found)} entries, {len(expected)} were put in")


def unpack(path: Path, directory: Path) -> None:
    """Unpack into ``directory``, which must be new and empty.

    Absolute names, "..", links that leave the directory and anything but files, directories and
    symbolic links are refused.

    Raises:
        Broken: torn, unsafe, or too much; ``directory`` may then hold parts and is to be removed.
        OSError: it cannot be written.
    """
    links: List[tarfile.TarInfo] = []
    written = 0
    with _reading(path) as packed, tarfile.open(fileobj=packed, mode="r|") as tar:
        for count, item in enumerate(tar):
            written += item.size
            if count >= MAX_FILES or written > MAX_RAW_BYTES:
                raise Broken(f"{path.name}: more than {MAX_FILES} entries or {MAX_RAW_BYTES} bytes")
            if item.isdir() and item.name in (".", ""):
                continue  # as `tar -C dir .` writes it
            if item.issym():
                links.append(item)
            else:
                _unpack_one(tar, item, directory)
    # Links come last, so that nothing is ever written through one.
    for item in links:
        _link_one(item, directory)
    root = os.path.realpath(directory)
    for item in links:
        resolved = os.path.realpath(directory.joinpath(*safe_parts(item.name)))
        if not is_inside(resolved, root):
            raise Broken(f"archive entry {item.name!r}: its link leaves the directory")


def safe_parts(name: str) -> Sequence[str]:
    """The parts of a relative name that stays where it is.

    Raises:
        Broken: absolute, with "..", or empty.
    """
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise Broken(f"archive entry {name!r:.200} leaves the directory")
    return path.parts


def is_inside(path: str, root: str) -> bool:
    """Whether a resolved path is ``root`` or lies below it."""
    return path == root or path.startswith(root + os.sep)


class _Bounded:
    """A file that refuses to grow beyond its limit."""

    def __init__(self, file: BinaryIO, limit_bytes: int) -> None:
        self._file = file
        self._left = limit_bytes

    def write(self, data: bytes) -> int:
        self._left -= len(data)
        if self._left < 0:
            raise TooLarge
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def _add(tar: tarfile.TarFile, member: Member) -> None:
    item = tarfile.TarInfo(member.name)
    item.mode, item.mtime, item.size = member.mode, int(member.mtime), member.size
    if member.link is not None:
        item.type, item.linkname = tarfile.SYMTYPE, member.link
    elif member.source is None:
        item.type = tarfile.DIRTYPE
    else:
        with open(member.source, "rb") as content:
            tar.addfile(item, content)
        return
    tar.addfile(item)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[gzip.GzipFile]:
    try:
        with gzip.open(path, "rb") as packed:
            yield packed
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, UnicodeError) as error:
        raise Broken(f"{path.name}: not a whole archive: {error}") from error


def _unpack_one(tar: tarfile.TarFile, item: tarfile.TarInfo, directory: Path) -> None:
    target = directory.joinpath(*safe_parts(item.name))
    if item.isdir():
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        return
    content = tar.extractfile(item) if item.isreg() else None
    if content is None:
        raise Broken(f"archive entry {item.name!r}: neither file, directory nor symbolic link")
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(target, flags, 0o600)
    except FileExistsError:
        raise Broken(f"archive entry {item.name!r} comes twice") from None
    with open(fd, "wb") as file:
        while True:
            chunk = content.read(_CHUNK)
            if not chunk:
                break
            file.write(chunk)
        os.fchmod(file.fileno(), item.mode & 0o700 | 0o600)
    os.utime(target, (item.mtime, item.mtime))


def _link_one(item: tarfile.TarInfo, directory: Path) -> None:
    target = directory.joinpath(*safe_parts(item.name))
    if os.path.isabs(item.linkname):
        raise Broken(f"archive entry {item.name!r}: its link leaves the directory")
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_inside(os.path.realpath(target.parent), os.path.realpath(directory)):
        raise Broken(f"archive entry {item.name!r} leaves the directory")
    try:
        os.symlink(item.linkname, target)
    except FileExistsError:
        raise Broken(f"archive entry {item.name!r} comes twice") from None


def largest(sizes: Mapping[str, int], count: int = 3) -> str:
    """The names of the largest files with their sizes, for people."""
    top = sorted(sizes.items(), key=lambda pair: -pair[1])[:count]
    return ", ".join(f"{name} ({size / 1e6:.1f} MB)" for name, size in top)
