"""Time as an argument: wall time for what people read, monotonic time for decisions."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Where the harvester gets time from. Nothing else in it reads a clock."""

    def now(self) -> float:
        """Seconds since the epoch, UTC; may jump. For records and people only."""

    def monotonic(self) -> float:
        """Seconds that never go back; comparable within this process only."""


class SystemClock:
    """The machine's clocks."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        # CLOCK_BOOTTIME counts suspended time too, which a lease must.
        return time.clock_gettime(time.CLOCK_BOOTTIME)


class FakeClock:
    """Stands still until moved. ``monotonic`` starts at 1000 so that zero is never "now"."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self._now = now
        self._monotonic = 1000.0

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Move both clocks forward."""
        if seconds < 0:
            raise ValueError("monotonic time does not go back; use jump")
        self._now += seconds
        self._monotonic += seconds

    def jump(self, seconds: float) -> None:
        """Move the wall clock only, as a bad NTP step does."""
        self._now += seconds


def iso(seconds: float) -> str:
    """An instant as ISO 8601 in UTC, to the millisecond."""
    text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")
