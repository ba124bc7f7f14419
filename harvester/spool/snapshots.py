"""Snapshots of the index in the state directory: what makes older ledgers superfluous (rule 17).

A snapshot's name carries its number, the ledger that was written when it was taken, and its
SHA-256, so that a listing of the directory is all there is to know. It holds everything of the
ledgers before that one. The two newest are kept, and every ledger that the older of them needs: a
snapshot that was damaged costs nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from harvester.errors import StorageUnavailable
from harvester.spool.ledger import LedgerNumber, ledger_number, ledgers
from payload_runner.files import Files

log = logging.getLogger(__name__)

KEPT = 2
_CHUNK = 1024 * 1024
_NAME = re.compile(r"snapshot\.(\d+)\.(\d+)\.(\d+)\.([0-9a-f]{64})\.sqlite")
_PART = "snapshot.part"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One snapshot, as its name tells."""

    path: Path
    number: int
    ledger: LedgerNumber  # all ledgers before this one are in it
    sha256: str


def snapshots(files: Files, state_dir: Path) -> tuple[Snapshot, ...]:
    """The snapshots of a state directory, those that hold least first. Raises OSError."""
    matches = (_NAME.fullmatch(name) for name in files.listdir(state_dir))
    found = (
        Snapshot(state_dir / match[0], int(match[1]), (int(match[2]), int(match[3])), match[4])
        for match in matches
        if match
    )
    # One that a fenced driver took late holds less, whatever its number.
    return tuple(sorted(found, key=lambda snapshot: (snapshot.ledger, snapshot.number)))


def keep_snapshot(files: Files, state_dir: Path, copy: Path, ledger: LedgerNumber) -> Snapshot:
    """Bring a copy of the index into the state directory, whole or not at all.

    ``ledger``: the one that was written when the copy was made.

    Raises:
        StorageUnavailable: the state directory or the copy's disk refuses.
    """
    part = state_dir / _PART
    try:
        number = max((found.number for found in snapshots(files, state_dir)), default=0) + 1
        files.remove(part)  # of a run that was cut short
        digest = hashlib.sha256()
        target = files.create_log(part)
        try:
            with copy.open("rb") as source:
                while chunk := source.read(_CHUNK):
                    digest.update(chunk)
                    view = memoryview(chunk)
                    while view:
                        view = view[target.write(bytes(view)) :]
            target.sync()
        finally:
            target.close()
        sha256 = digest.hexdigest()
        epoch, of_epoch = ledger
        path = state_dir / f"snapshot.{number}.{epoch}.{of_epoch}.{sha256}.sqlite"
        files.rename(part, path)
    except OSError as error:
        raise StorageUnavailable(f"a snapshot in {state_dir}: {error}") from error
    return Snapshot(path, number, ledger, sha256)


def remove_superfluous(files: Files, state_dir: Path) -> tuple[Path, ...]:
    """Remove older snapshots and the ledgers that the kept ones hold; answers what was removed.

    Cut short or repeated it does no harm.

    Raises:
        StorageUnavailable: the state directory refuses.
    """
    try:
        kept = snapshots(files, state_dir)
        superfluous = [snapshot.path for snapshot in kept[:-KEPT]]
        if len(kept) >= KEPT:
            needed = kept[-KEPT].ledger
            superfluous += [
                path for path in ledgers(files, state_dir) if ledger_number(path) < needed
            ]
        for path in superfluous:
            files.remove(path)
    except OSError as error:
        raise StorageUnavailable(f"tidying {state_dir}: {error}") from error
    return tuple(superfluous)


def fetch_sound(files: Files, state_dir: Path, target: Path) -> Generator[Snapshot, None, None]:
    """Bring each sound snapshot to ``target``, newest first, until the caller has had enough.

    Raises:
        StorageUnavailable: the disk of ``target`` refuses, or the directory cannot be listed.
    """
    try:
        found = snapshots(files, state_dir)
        for snapshot in reversed(found):
            if _fetch(files, snapshot, target):
                yield snapshot
            else:
                log.error("A snapshot is damaged; an older one is taken. path=%s", snapshot.path)
    except OSError as error:
        raise StorageUnavailable(f"the snapshots in {state_dir}: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            target.unlink(missing_ok=True)


def _fetch(files: Files, snapshot: Snapshot, target: Path) -> bool:
    digest, at = hashlib.sha256(), 0
    with target.open("wb") as file:
        while chunk := files.read(snapshot.path, at, _CHUNK):
            digest.update(chunk)
            file.write(chunk)
            at += len(chunk)
    return digest.hexdigest() == snapshot.sha256
