"""Commits large files into the spool: written beside their place, synced, renamed, then named.

What it returns goes into an event, and that event is the commit record (rule 6).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Callable

from payload_runner.files import sync_dir
from payload_runner.protocol import FileRef, SpoolPaths

_CHUNK = 1024 * 1024


class Broken(ValueError):
    """A file whose size or SHA-256 is not what its record says."""


def digest(path: Path) -> tuple[int, str]:
    """Size and SHA-256 of a file. Raises OSError."""
    sha, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while True:
            chunk = file.read(_CHUNK)
            if not chunk:
                return size, sha.hexdigest()
            sha.update(chunk)
            size += len(chunk)


def commit(spool: SpoolPaths, target: Path, write: Callable[[Path], None]) -> FileRef:
    """Let ``write`` fill a file beside ``target``, make it durable and put it in place.

    Raises:
        OSError: nothing is at ``target`` then, and nothing beside it.
        Exception: whatever ``write`` raises, likewise.
    """
    beside = target.with_name(f".{target.name}.part")
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        write(beside)
        os.chmod(beside, 0o600)
        size, sha256 = digest(beside)
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, target)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    sync_dir(target.parent)
    return FileRef(spool.reference(target), size, sha256)


def fetch(source: Path, target: Path, size: int, sha256: str) -> None:
    """Copy a committed file and check it on the way, so that the spool is read once.

    Raises:
        Broken: its size or SHA-256 differs; nothing is at ``target`` then.
        OSError: it cannot be read or copied.
    """
    sha, copied = hashlib.sha256(), 0
    with open(source, "rb") as reader, open(target, "xb") as writer:
        os.fchmod(writer.fileno(), 0o600)
        while copied <= size:
            chunk = reader.read(_CHUNK)
            if not chunk:
                break
            sha.update(chunk)
            copied += len(chunk)
            writer.write(chunk)
    if copied != size or sha.hexdigest() != sha256:
        target.unlink()
        raise Broken(f"{source.name} is not what was committed: its size or SHA-256 differs")
