"""The step that keeps spool and books small: snapshots, ledgers, directories of what is over.

Nothing is removed but what is delivered, older than the retention, and in a snapshot in the state
directory. The removal of a directory is preceded by a record of the ledger, and repeated by the
next start if it was cut short.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harvester.daemon.desk import Desk, Space
from harvester.effects import Finished
from harvester.model import Tag
from harvester.spool.ledger import LedgerNumber, ledger_number, ledgers
from harvester.spool.snapshots import keep_snapshot, remove_superfluous, snapshots
from harvester.store.snapshots import copy_index

log = logging.getLogger(__name__)

# Of the retention: how often is looked (hourly for 30 days), and how much later than at its end a
# directory may go (a day), so that many go with one snapshot.
_LOOK_APART = 1 / 720
_GATHERING = 1 / 30
LOOK_APART_MIN_S = 60.0
MEASURED_APART_S = 60.0  # a disk can fill within minutes
TAGS_AT_ONCE = 50
# Each crash or handover begins a ledger, however small.
LEDGERS_AT_MOST = 100
# Copying and removing may be slow where the file system is.
DEADLINE_S = 1800.0


@dataclass(frozen=True, slots=True)
class _Taken:
    """A snapshot that lies in the state directory."""

    path: Path
    removed: tuple[Path, ...]  # ledgers and snapshots that it made superfluous


@dataclass(frozen=True, slots=True)
class _Removed:
    """Allocations whose directories are gone, and what kept another from going."""

    tags: tuple[Tag, ...]
    error: OSError | None


class Keep:
    """At most one snapshot or removal at a time, in a worker."""

    effects = ("snapshot", "discard")

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._busy = False
        self._looked_at = self._measured_at = float("-inf")
        self._going: tuple[Tag, ...] = ()  # may go once the snapshot is there

    def take(self, finished: Finished) -> None:
        self._busy = False
        if isinstance(finished.result, _Taken):
            self._take_snapshot(finished.result)
        elif isinstance(finished.result, _Removed):
            self._take_removal(finished.result)
        elif finished.error is not None:
            self._going = ()
            self._report("no snapshot of the books could be taken", finished.error)

    def _take_snapshot(self, taken: _Taken) -> None:
        log.info("Took a snapshot. path=%s removed=%s", taken.path, len(taken.removed))
        self._desk.problems.clear("keeping")
        # A point may have been leased again while the snapshot was taken, to go on from there.
        needed = needed_tags(self._desk) if self._going else frozenset()
        going = [tag for tag in self._going if tag not in needed]
        self._going = ()
        if going:
            self._desk.journal.record("discarding", {"tags": going})
            self._looked_at = float("-inf")

    def _take_removal(self, removed: _Removed) -> None:
        desk = self._desk
        if removed.tags:
            before = desk.clock.now() - desk.site.retention_s
            desk.journal.record("discarded", {"tags": list(removed.tags), "before": before})
            log.info("Removed what is over and delivered. allocations=%s", len(removed.tags))
        if removed.error is not None:
            self._report("directories of old allocations cannot be removed", removed.error)
            return
        desk.problems.clear("keeping")
        self._looked_at = float("-inf")  # there may be more

    def _report(self, what: str, error: Exception) -> None:
        cure = "see whether the file system is full, away or read-only; it is tried again"
        self._desk.problems.report("keeping", f"{what}: {error}", cure)

    def step(self) -> bool:
        desk = self._desk
        if self._measure_left() <= 0:
            self._measured_at = desk.clock.monotonic()
            desk.space = measure(desk)
        if self._busy or self._left() > 0:
            return False
        self._looked_at = desk.clock.monotonic()
        self._going = self._over()
        if self._going or self._is_large():
            self._snapshot()
        elif leaving := desk.store.allocations.leaving():
            self._discard(leaving[:TAGS_AT_ONCE])
        return self._busy

    def due_in(self) -> float | None:
        left = self._measure_left()
        return max(0.0, left if self._busy else min(left, self._left()))

    def _measure_left(self) -> float:
        return self._measured_at + MEASURED_APART_S - self._desk.clock.monotonic()

    def _left(self) -> float:
        apart = max(LOOK_APART_MIN_S, self._desk.site.retention_s * _LOOK_APART)
        return self._looked_at + apart - self._desk.clock.monotonic()

    def _over(self) -> tuple[Tag, ...]:
        """Allocations whose directories nobody needs; () while it is too few to be worth it."""
        desk = self._desk
        retention_s, now = desk.site.retention_s, desk.clock.now()
        store = desk.store
        overdue = store.allocations.kept(now - retention_s * (1 + _GATHERING))
        kept = store.allocations.kept(now - retention_s)
        if not overdue and len(kept) < TAGS_AT_ONCE:
            return ()
        needed = needed_tags(desk)
        return tuple(tag for tag in kept if tag not in needed)[:TAGS_AT_ONCE]

    def _is_large(self) -> bool:
        """Whether the ledgers that no snapshot holds are large or many."""
        desk = self._desk
        try:
            taken = snapshots(desk.files, desk.site.state_dir)
        except OSError:
            return False  # the next look tells
        held = taken[-1].ledger if taken else (0, 0)
        sizes = desk.store.positions.offsets("ledger.")
        current = desk.journal.ledger_number
        after = [
            size for name, size in sizes.items() if held <= ledger_number(Path(name)) < current
        ]
        return sum(after) > desk.site.roll_bytes or len(after) > LEDGERS_AT_MOST

    def _snapshot(self) -> None:
        desk = self._desk
        number: LedgerNumber = desk.journal.ledger_number
        files, state_dir, index = desk.files, desk.site.state_dir, desk.site.index
        copy = index.with_name(f"{index.name}.copy")

        def work() -> _Taken:
            desk.lease.check()
            try:
                copy_index(index, copy)
                kept = keep_snapshot(files, state_dir, copy, number)
            finally:
                with contextlib.suppress(OSError):
                    copy.unlink(missing_ok=True)
            return _Taken(kept.path, remove_superfluous(files, state_dir))

        self._start("snapshot", work)

    def _discard(self, tags: Sequence[Tag]) -> None:
        desk = self._desk
        files, lease = desk.files, desk.lease
        roots = [(tag, desk.spool.allocation(tag).root) for tag in tags]

        def work() -> _Removed:
            removed, failed = [], None
            for tag, root in roots:
                lease.check()
                try:
                    files.remove_tree(root)
                    removed.append(tag)
                except OSError as error:
                    failed = error
            return _Removed(tuple(removed), failed)

        self._start("discard", work)

    def _start(self, name: str, work: Callable[[], object]) -> None:
        self._busy = True
        self._desk.effects.start(name, work, lane="files", deadline_s=DEADLINE_S)


def needed_tags(desk: Desk) -> frozenset[Tag]:
    """Allocations that hold something that is not delivered yet, or may be resumed from."""
    needed: set[Tag] = set()
    for tag, *files in desk.store.attempts.needing():
        if tag is not None:
            needed.add(tag)
        for ref in files:
            parts = () if ref is None else Path(ref.path).parts
            if len(parts) > 1 and parts[0] == "allocations":
                needed.add(Tag(parts[1]))
    return frozenset(needed)


def measure(desk: Desk) -> Space:
    """What spool and books take. Only what is known without walking through the spool."""
    positions, site = desk.store.positions, desk.site
    kept = desk.store.allocations.kept(desk.clock.now())
    sizes = positions.offsets("ledger.")
    try:
        names = [path.name for path in ledgers(desk.files, site.state_dir)]
    except OSError:
        names = []
    return Space(
        index_bytes=_size(site.index),
        ledger_bytes=sum(sizes.get(name, 0) for name in names),
        log_bytes=positions.total("allocations/"),
        allocations=len(kept),
        spool_free_bytes=None if site.remote is not None else _free(site.spool),
        state_free_bytes=_free(site.state_dir),
    )


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _free(path: Path) -> int | None:
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize
