"""Follows ``metrics.jsonl`` of running payloads and thins its lines to reports.

Files are looked at by ``stat`` with back-off; where watchdog is installed it says sooner that a
line was added. A payload's word is taken as it is: bad lines are counted, never fatal.
"""

from __future__ import annotations

import json
import math
import os
import threading
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Protocol, Set, Tuple

from payload_runner.protocol import METRICS_LINES_NAME

MAX_LINE_BYTES = 8 * 1024
READ_BYTES = 1024 * 1024  # of one file in one look
EVENT_BYTES = 32 * 1024  # of reports in one event
_MAX_WATCHES = 8  # watchdog takes two threads for each
_MAX_INTEGER = 2**63

Report = Mapping[str, Any]  # {"step": int, name: finite number}


class MetricsTail:
    """One attempt's metrics file, read from where the last look ended."""

    def __init__(self, workdir: Path) -> None:
        self.bad_lines = 0
        self.thinned = 0  # reports dropped because newer ones filled the event
        self._path = os.path.join(workdir, METRICS_LINES_NAME)
        self._offset = 0
        self._rest = b""
        self._skipping = False
        self._newest: Dict[int, Report] = {}

    def look(self) -> bool:
        """Read what was added, up to 1 MiB; True if there was anything. Never raises OSError."""
        try:
            size = os.stat(self._path).st_size
            if size == self._offset:
                return False
            if size < self._offset:  # the payload began it anew
                self._offset, self._rest, self._skipping = 0, b"", False
            data = self._read()
        except OSError:
            return False
        self._offset += len(data)
        self._take(data)
        return bool(data)

    def end(self) -> None:
        """The payload is gone: take what is left, an unfinished last line included."""
        for _ in range(8):
            if not self.look():
                break
        if self._rest and not self._skipping:
            self._add(self._rest)
        self._rest = b""

    def reports(self) -> Tuple[Report, ...]:
        """The newest report of each step since the last call, at most one event's worth."""
        chosen: List[Report] = []
        size = 0
        for report in reversed(list(self._newest.values())):
            size += len(json.dumps(report)) + 1
            if size > EVENT_BYTES:
                break
            chosen.append(report)
        self.thinned += len(self._newest) - len(chosen)
        self._newest.clear()
        return tuple(reversed(chosen))

    def _read(self) -> bytes:
        # O_NONBLOCK: it may be a FIFO.
        fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return os.pread(fd, READ_BYTES, self._offset)
        finally:
            os.close(fd)

    def _take(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if self._skipping:
                self._skipping = False
            else:
                self._add(line)
        if len(self._rest) > MAX_LINE_BYTES:
            if not self._skipping:
                self.bad_lines += 1
            self._rest, self._skipping = b"", True

    def _add(self, line: bytes) -> None:
        if not line.strip():
            return
        report = parse_report(line)
        if report is None:
            self.bad_lines += 1
            return
        step: int = report["step"]
        self._newest.pop(step, None)  # the newest word comes last
        self._newest[step] = report


def parse_report(line: bytes) -> Optional[Report]:
    """The step and the numbers of a line; None if it is no report.

    Values that are no numbers are left out; NaN and Infinity spoil the line.
    """
    if len(line) > MAX_LINE_BYTES:
        return None
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not _is_number(found.get("step")):
        return None
    if not isinstance(found["step"], int):
        return None
    numbers = {name: value for name, value in found.items() if _is_number(value)}
    finite = all(_is_sound(value) for value in numbers.values())
    return numbers if finite else None


def _is_sound(value: float) -> bool:
    return abs(value) < _MAX_INTEGER if isinstance(value, int) else math.isfinite(value)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class Wake(Protocol):
    """Says that a working directory may hold something new. May say nothing at all."""

    def fileno(self) -> Optional[int]:
        """Readable when ``touched`` has something; None: it never will."""

    def add(self, workdir: Path) -> None:
        """Begin to listen, as far as limits allow."""

    def remove(self, workdir: Path) -> None:
        """Stop listening; a directory never added is fine."""

    def touched(self) -> Set[str]:
        """Directories with something new since the last call."""

    def close(self) -> None: ...


class NoWake:
    """Where there is no watchdog: looks alone must do."""

    def fileno(self) -> Optional[int]:
        return None

    def add(self, workdir: Path) -> None:
        pass

    def remove(self, workdir: Path) -> None:
        pass

    def touched(self) -> Set[str]:
        return set()

    def close(self) -> None:
        pass


class WatchdogWake:
    """Kernel notices by watchdog, of names appearing and of files closed after writing.

    Writes alone are not listened to: a payload that logs a lot would keep us busy for nothing.
    """

    def __init__(self) -> None:
        """Raises ImportError without watchdog or with one too old to filter events."""
        from watchdog import events, observers

        if not hasattr(events, "FileClosedEvent"):
            raise ImportError("this watchdog cannot filter events")
        self._kinds = [events.FileCreatedEvent, events.FileClosedEvent, events.FileMovedEvent]
        self._observer: Any = observers.Observer()
        self._observer.daemon = True
        self._observer.start()
        self._watches: Dict[str, Any] = {}  # Any: watchdog is not there when types are checked
        self._touched: Set[str] = set()
        self._lock = threading.Lock()
        self._read_end, self._write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def fileno(self) -> Optional[int]:
        return self._read_end

    def add(self, workdir: Path) -> None:
        if len(self._watches) >= _MAX_WATCHES:
            return
        try:
            self._watches[str(workdir)] = self._observer.schedule(
                self, str(workdir), recursive=False, event_filter=self._kinds
            )
        except (OSError, TypeError):  # out of inotify instances, or no event_filter yet
            return

    def remove(self, workdir: Path) -> None:
        watch = self._watches.pop(str(workdir), None)
        if watch is not None:
            self._observer.unschedule(watch)

    def touched(self) -> Set[str]:
        try:
            os.read(self._read_end, 4096)
        except BlockingIOError:
            return set()
        with self._lock:
            touched, self._touched = self._touched, set()
        return touched

    def close(self) -> None:
        self._observer.stop()
        self._observer.join(2.0)
        for fd in (self._read_end, self._write_end):
            os.close(fd)

    def dispatch(self, event: Any) -> None:
        """Called by watchdog, in its thread."""
        for path in (os.fspath(event.src_path), os.fspath(event.dest_path)):
            folder, name = os.path.split(path)
            if name == METRICS_LINES_NAME:
                with self._lock:
                    first = not self._touched
                    self._touched.add(folder)
                if first:
                    os.write(self._write_end, b".")


def open_wake() -> Wake:
    """Watchdog where it is installed, else nothing."""
    try:
        return WatchdogWake()
    except (ImportError, OSError):
        return NoWake()
