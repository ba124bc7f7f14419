"""What will happen when: an event heap with stable ties over the fake clock."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from harvester.clock import FakeClock


@dataclass(slots=True)
class Event:
    """Something that will happen, unless it is called off."""

    at: float  # monotonic seconds of the agenda's clock
    happen: Callable[[], None]
    called_off: bool = False

    def call_off(self) -> None:
        """Keep it from happening. Calling twice, or too late, is safe."""
        self.called_off = True


@dataclass(slots=True)
class Agenda:
    """Events in the order of their times; of equal times, in the order in which they were set."""

    clock: FakeClock
    _heap: list[tuple[float, int, Event]] = field(default_factory=list)
    _count: itertools.count[int] = field(default_factory=itertools.count)

    def after(self, seconds: float, happen: Callable[[], None]) -> Event:
        """Let something happen so many seconds from now."""
        event = Event(self.clock.monotonic() + max(0.0, seconds), happen)
        heapq.heappush(self._heap, (event.at, next(self._count), event))
        return event

    def advance(self, seconds: float) -> None:
        """Move the clock, letting everything happen that falls due, each at its own time."""
        end = self.clock.monotonic() + seconds
        while self._heap and self._heap[0][0] <= end:
            at, _, event = heapq.heappop(self._heap)
            if event.called_off:
                continue
            self.clock.advance(max(0.0, at - self.clock.monotonic()))
            event.happen()
        self.clock.advance(max(0.0, end - self.clock.monotonic()))
