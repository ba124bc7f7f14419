"""Checkpoints of one attempt: looking for changes, saving, keeping the newest two, restoring.

Blocks on files: everything here but construction runs in a worker thread, one call at a time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Callable, Iterator, List, Optional, Set, Tuple

from payload_runner.archives import (
    MAX_FILES,
    MAX_RAW_BYTES,
    Member,
    TooLarge,
    is_inside,
    largest,
    unpack,
    verify_archive,
    write_archive,
)
from payload_runner.commits import Broken, commit, fetch
from payload_runner.protocol import (
    CHECKPOINT_LIMIT_BYTES,
    CheckpointRule,
    FileRef,
    IncarnationPaths,
    SpoolPaths,
)

Copy = Callable[[Path, Path, os.stat_result], None]

KEPT = 2  # per attempt; the older one for whoever has not heard of the newer yet
RETRY_WAITS_S = (0.05, 0.1, 0.2, 0.4, 0.0)  # between copies of files that did not hold still
GIVE_UP_AFTER = 5  # looks in a row that found files changing
_CHUNK = 1024 * 1024


class Refused(ValueError):
    """This checkpoint cannot be taken; the text says why and names the files."""


class Unsettled(Exception):
    """Files changed while they were copied."""


@dataclass(frozen=True)
class Entry:
    """A file, directory (``kind`` "d") or symbolic link ("l") of the checkpoint set."""

    name: str
    kind: str
    found: os.stat_result
    link: Optional[str] = None


@dataclass(frozen=True)
class Survey:
    """The checkpoint set as it was found."""

    entries: Tuple[Entry, ...]
    skipped: Tuple[str, ...]  # what cannot be saved, with the reason

    @property
    def signature(self) -> str:
        """Changes when any file of the set changes; "" for an empty set."""
        files = [entry for entry in self.entries if entry.kind != "d"]
        if not files:
            return ""
        sha = hashlib.sha256()
        for entry in files:
            found = entry.found
            facts = (entry.name, entry.kind, found.st_size, found.st_mtime_ns, found.st_ino)
            sha.update(repr(facts).encode("utf-8", "surrogateescape"))
        return sha.hexdigest()


@dataclass(frozen=True)
class Taken:
    """A committed checkpoint, and what had to be left out of it."""

    file: FileRef
    skipped: Tuple[str, ...]


def survey(workdir: Path, rule: CheckpointRule) -> Survey:
    """Look at the files that the rule names; a missing one is not there yet.

    Raises:
        Refused: too many files, too much data, or a path that leaves the working directory.
    """
    entries: List[Entry] = []
    skipped: List[str] = []
    root = os.path.realpath(workdir)
    seen: Set[str] = set()
    for path in rule.paths:
        for name in _walk(workdir, relative_name(path)):
            if name in seen:  # rules may overlap
                continue
            seen.add(name)
            if len(seen) > MAX_FILES:
                raise Refused(f"checkpoint {path}: more than {MAX_FILES} files; save fewer")
            _look(workdir, root, name, entries, skipped)
    sizes = {entry.name: entry.found.st_size for entry in entries if entry.kind == "f"}
    if sum(sizes.values()) > MAX_RAW_BYTES:
        raise Refused(
            f"checkpoint files hold {sum(sizes.values()) / 1e6:.0f} MB,"
            f" at most {MAX_RAW_BYTES / 1e6:.0f} MB are packed; largest: {largest(sizes)}"
        )
    return Survey(tuple(entries), tuple(skipped))


def relative_name(path: str) -> str:
    """The normal form of a checkpoint path.

    Raises:
        Refused: it leaves the working directory.
    """
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts:
        raise Refused(f"checkpoint path {path!r} leaves the working directory")
    return "/".join(parts)


class Keeper:
    """Saves one attempt's checkpoints. ``take`` may be called as often as one likes."""

    def __init__(
        self,
        attempt: str,
        rule: CheckpointRule,
        workdir: Path,
        staging: Path,
        spool: SpoolPaths,
        incarnation: IncarnationPaths,
        *,
        limit_bytes: int = CHECKPOINT_LIMIT_BYTES,
        sleep: Callable[[float], None] = time.sleep,
        copy: Optional[Copy] = None,
    ) -> None:
        """``staging``: a directory of ours on the same disk; made when needed, then removed."""
        self._copy = copy or copy_still
        self.saved = 0
        self._attempt = attempt
        self._rule = rule
        self._workdir = workdir
        self._staging = staging
        self._spool = spool
        self._incarnation = incarnation
        self._limit_bytes = limit_bytes
        self._sleep = sleep
        self._settled = ""  # signature of what is saved, restored or refused already
        self._unsettled_looks = 0

    def begin(self) -> None:
        """Take what lies there now as known: restored files are no new checkpoint.

        Raises:
            Refused: as :func:`survey`.
        """
        self._settled = survey(self._workdir, self._rule).signature

    def take(self) -> Optional[Taken]:
        """Save the set if it changed; None when there is nothing new or it does not hold still.

        Raises:
            Refused: once for each state of the files, and for files that never hold still.
            OSError: the archive cannot be written; the next call tries again.
        """
        found, staged = self._stage_still()
        if found is None:
            return None
        self._unsettled_looks = 0
        try:
            taken = self._commit(found, staged)
        except TooLarge:
            self._settled = found.signature
            sizes = {entry.name: entry.found.st_size for entry in found.entries}
            raise Refused(
                f"checkpoint is over {self._limit_bytes} bytes when packed;"
                f" largest: {largest(sizes)}"
            ) from None
        finally:
            shutil.rmtree(self._staging, ignore_errors=True)
        self._settled = found.signature
        return taken

    def _stage_still(self) -> Tuple[Optional[Survey], List[Member]]:
        for wait_s in RETRY_WAITS_S:
            found = survey(self._workdir, self._rule)
            if found.signature in ("", self._settled):
                return None, []
            try:
                return found, self._stage(found)
            except Unsettled:
                shutil.rmtree(self._staging, ignore_errors=True)
                self._sleep(wait_s)
        self._unsettled_looks += 1
        if self._unsettled_looks == GIVE_UP_AFTER:
            names = ", ".join(self._rule.paths)
            raise Refused(
                f"checkpoint {names}: changed during every copy;"
                " write each file under another name and rename it"
            )
        return None, []

    def _stage(self, found: Survey) -> List[Member]:
        """Copy the files aside: quick, so that they need to hold still only for that long."""
        self._staging.mkdir(mode=0o700, exist_ok=True)
        members = [self._member(number, entry) for number, entry in enumerate(found.entries)]
        files = sum(entry.kind == "f" for entry in found.entries)
        # One file was whole while it was open; several must also belong together.
        if files > 1 and survey(self._workdir, self._rule).signature != found.signature:
            raise Unsettled
        return members

    def _member(self, number: int, entry: Entry) -> Member:
        mode, mtime = stat.S_IMODE(entry.found.st_mode), entry.found.st_mtime
        if entry.kind != "f":
            return Member(entry.name, mode, mtime, link=entry.link)
        copy = self._staging / str(number)
        self._copy(self._workdir / entry.name, copy, entry.found)
        return Member(entry.name, mode, mtime, entry.found.st_size, copy)

    def _commit(self, found: Survey, members: List[Member]) -> Taken:
        number = self.saved + 1
        target = self._incarnation.checkpoint(self._attempt, number)

        def write(path: Path) -> None:
            write_archive(path, members, self._limit_bytes)
            verify_archive(path, members)

        ref = commit(self._spool, target, write)
        self.saved = number
        if number > KEPT:
            self._incarnation.checkpoint(self._attempt, number - KEPT).unlink(missing_ok=True)
        return Taken(ref, found.skipped)


def copy_still(source: Path, target: Path, expected: os.stat_result) -> None:
    """Copy a file that is the one ``expected`` both before and after.

    Raises:
        Unsettled: it is another one by now, or was written to.
        OSError: the copy cannot be written.
    """
    try:
        # O_NONBLOCK: a FIFO put in its place must not block us.
        fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Unsettled from error
    with open(fd, "rb") as reader, open(target, "wb") as writer:
        if _facts(os.fstat(fd)) != _facts(expected):
            raise Unsettled
        shutil.copyfileobj(reader, writer, _CHUNK)
        if _facts(os.fstat(fd)) != _facts(expected) or writer.tell() != expected.st_size:
            raise Unsettled


def restore(
    spool: SpoolPaths, ref: FileRef, rule: CheckpointRule, workdir: Path, staging: Path
) -> None:
    """Put a committed checkpoint into the working directory, in place or as one archive.

    Raises:
        Broken: torn, tampered with or unsafe; the working directory is untouched.
        OSError: it cannot be read or written; the working directory may hold a part of it.
    """
    staging.mkdir(mode=0o700)
    try:
        archive = staging / "archive"
        fetch(spool.committed(ref), archive, ref.size, ref.sha256)
        if rule.load_as is not None:
            _move(archive, workdir / relative_name(rule.load_as))
            return
        tree = staging / "tree"
        tree.mkdir(mode=0o700)
        unpack(archive, tree)
        _merge(tree, workdir)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _merge(tree: Path, workdir: Path) -> None:
    for item in sorted(os.scandir(tree), key=lambda item: item.name):
        target = workdir / item.name
        if item.is_dir(follow_symlinks=False) and target.is_dir():
            _merge(Path(item.path), target)
        else:
            _move(Path(item.path), target)


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        os.replace(source, target)
    except (IsADirectoryError, NotADirectoryError) as error:
        raise Broken(f"checkpoint entry {target.name}: {error.strerror}") from error


def _walk(workdir: Path, name: str) -> Iterator[str]:
    """A name and, if it is a directory, all below it; links are not followed."""
    yield name
    path = workdir / name
    if path.is_symlink() or not path.is_dir():
        return
    waiting = [name]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(workdir / folder) as found:
                # One more than may be: a million would not fit into an agent's memory.
                items = sorted(islice(found, MAX_FILES + 1), key=lambda item: item.name)
        except FileNotFoundError:  # removed meanwhile
            continue
        for item in items:
            below = f"{folder}/{item.name}"
            yield below
            if item.is_dir(follow_symlinks=False):
                waiting.append(below)


def _look(workdir: Path, root: str, name: str, entries: List[Entry], skipped: List[str]) -> None:
    path = workdir / name
    try:
        found = os.lstat(path)
        link = os.readlink(path) if stat.S_ISLNK(found.st_mode) else None
    except FileNotFoundError:
        return
    if link is not None:
        if os.path.isabs(link) or not is_inside(os.path.realpath(path), root):
            skipped.append(f"{name} (a link that leaves the working directory)")
        else:
            entries.append(Entry(name, "l", found, link))
    elif stat.S_ISDIR(found.st_mode):
        entries.append(Entry(name, "d", found))
    elif stat.S_ISREG(found.st_mode):
        entries.append(Entry(name, "f", found))
    else:
        skipped.append(f"{name} (neither file nor directory)")


def _facts(found: os.stat_result) -> Tuple[int, int, int]:
    return found.st_ino, found.st_size, found.st_mtime_ns
