"""Reads the event logs of the allocations: finds them, follows them, never parses their meaning."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harvester.clock import Clock
from harvester.model import Tag
from payload_runner import inotify
from payload_runner.files import Files
from payload_runner.logfile import Batch, LogReader
from payload_runner.protocol import IncarnationPaths, SpoolPaths

log = logging.getLogger(__name__)

# Polling where the kernel does not tell of changes, by activity (rule 9).
POLL_MIN_S = 1.0
POLL_MAX_S = 10.0
# A log that is known seldom gets a sibling (requeue, new leader).
RELIST_S = {"local": 2.0, "shared": 30.0}
_WRITER = re.compile(r"events\.([A-Za-z0-9-]+)\.log")


@dataclass(frozen=True, slots=True)
class Polled:
    """What one poll of one event log brought."""

    tag: Tag
    log: str  # its name in the index: the path relative to the spool
    batch: Batch


def writer_of(log_name: str) -> str:
    """The writer that a log's name carries."""
    found = _WRITER.fullmatch(log_name.rsplit("/", 1)[-1])
    return found[1] if found else ""


@dataclass(slots=True)
class _Followed:
    """An allocation whose logs are followed."""

    readers: dict[str, LogReader] = field(default_factory=dict)
    incarnations: set[str] = field(default_factory=set)
    listed_at: float = float("-inf")
    polled_at: float = float("-inf")
    pause_s: float = POLL_MIN_S


class EventLogs:
    """Follows the event logs of allocations. Used by one thread at a time."""

    def __init__(
        self,
        files: Files,
        spool: SpoolPaths,
        clock: Clock,
        *,
        filesystem: str,
        offsets: Mapping[str, int],
    ) -> None:
        """``offsets``: where each log known to the index goes on, by name."""
        self._files = files
        self._spool = spool
        self._clock = clock
        self._local = filesystem == "local"
        self._relist_s = RELIST_S["local" if self._local else "shared"]
        self._offsets = dict(offsets)
        self._followed: dict[Tag, _Followed] = {}
        self._inotify = inotify.open_inotify() if self._local else None

    def poll(self, tags: Sequence[Tag], expecting: Collection[Tag] = ()) -> list[Polled]:
        """What is new in the logs of these allocations; others are no longer followed.

        Of those that are ``expecting`` a new log, the directories are listed each time.
        A log that cannot be read now is left for the next poll.
        """
        for tag in self._followed.keys() - set(tags):
            del self._followed[tag]
        found: list[Polled] = []
        for tag in tags:
            followed = self._followed.setdefault(tag, _Followed())
            if self._is_due(followed):
                if tag in expecting:
                    followed.listed_at = float("-inf")
                found.extend(self._poll_allocation(tag, followed))
        return found

    def due_in(self) -> float | None:
        """Seconds until a poll could bring something; None when nothing is followed."""
        now = self._clock.monotonic()
        waits = [max(0.0, item.polled_at + item.pause_s - now) for item in self._followed.values()]
        return min(waits, default=None)

    def go_back(self, log_name: str, offset: int) -> None:
        """Read a log again from an offset: what was polled behind it could not be applied."""
        self._offsets[log_name] = offset
        for followed in self._followed.values():
            followed.readers.pop(log_name, None)
            followed.listed_at = followed.polled_at = float("-inf")

    def fileno(self) -> int | None:
        """A descriptor that is readable when a log may have grown; None: only polling tells."""
        return None if self._inotify is None else self._inotify.fileno()

    def clear_changes(self) -> None:
        """Take the kernel's word that something changed."""
        if self._inotify is not None:
            self._inotify.changes()

    def close(self) -> None:
        """Give the descriptor back."""
        if self._inotify is not None:
            self._inotify.close()

    def _is_due(self, followed: _Followed) -> bool:
        return self._local or self._clock.monotonic() - followed.polled_at >= followed.pause_s

    def _poll_allocation(self, tag: Tag, followed: _Followed) -> Iterable[Polled]:
        now = self._clock.monotonic()
        followed.polled_at = now
        if not followed.readers or now - followed.listed_at >= self._relist_s:
            followed.listed_at = now
            self._find_logs(tag, followed)
        found = []
        for name, reader in followed.readers.items():
            try:
                batch = reader.poll()
            except OSError as error:
                log.debug("Cannot read a log now. log=%s error=%s", name, error)
                continue
            if batch.records or batch.gaps:
                found.append(Polled(tag, name, batch))
        followed.pause_s = POLL_MIN_S if found else min(POLL_MAX_S, followed.pause_s * 1.5)
        return found

    def _find_logs(self, tag: Tag, followed: _Followed) -> None:
        allocation = self._spool.allocation(tag)
        self._watch(allocation.root, inotify.CREATE)
        for incarnation in allocation.incarnations(self._names(allocation.root)):
            self._watch(incarnation.root, inotify.CHANGES)
            self._find_event_logs(incarnation, followed)

    def _find_event_logs(self, incarnation: IncarnationPaths, followed: _Followed) -> None:
        for path in incarnation.event_logs(self._names(incarnation.root)):
            name = str(path.relative_to(self._spool.root))
            if name not in followed.readers:
                followed.readers[name] = LogReader(
                    self._files,
                    path,
                    self._clock.monotonic,
                    offset=self._offsets.get(name, 0),
                )

    def _names(self, path: Path) -> tuple[str, ...]:
        try:
            return self._files.listdir(path)
        except OSError:
            return ()  # absent, or not visible yet: the next listing tells

    def _watch(self, path: Path, mask: int) -> None:
        if self._inotify is not None:
            # Without the watch the poll still finds it, only later.
            with contextlib.suppress(OSError):
                self._inotify.watch(str(path), mask)


def read_now(files: Files, path: Path, *, offset: int = 0) -> Iterator[Batch]:
    """A log from ``offset`` to its end, batch by batch, without waiting.

    What is unreadable now counts as corrupt at once. A missing log has no batches with records.
    """
    ticks = iter(range(0, 1 << 62, 1000))  # each look at the time finds the 60 s passed
    reader = LogReader(files, path, lambda: float(next(ticks)), offset=offset)
    before = -1
    while reader.position != before:
        before = reader.position
        yield reader.poll()


def read_until(
    files: Files,
    path: Path,
    *,
    offset: int,
    to: int | None,
    apply: Callable[[Batch], None],
) -> int:
    """Read a log from ``offset`` to ``to`` (None: its end) without waiting; answers where it is.

    For rebuilding: what is unreadable now counts as corrupt at once, since its records are asked
    for again anyway. A missing log ends at once.
    """
    if to is not None and offset >= to:
        return offset
    for batch in read_now(files, path, offset=offset):
        if to is not None and batch.offset > to:
            kept = tuple(record for record in batch.records if record.end <= to)
            apply(Batch(kept, batch.gaps, to, False))
            return to
        apply(batch)
        offset = batch.offset
        if to is not None and offset >= to:
            break
    return offset
