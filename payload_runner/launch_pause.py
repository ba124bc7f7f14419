"""Pauses between launcher calls that fail: what waits for the launcher is held back meanwhile.

A launcher that cannot start a rank fails at once, every time. The harvester orders the point anew,
and without a pause that would be a call a second, each on nodes that others could use. What waits
for a place already when a call fails is held back as well. No I/O and no clock.
"""

from __future__ import annotations

from typing import Dict, Tuple

from payload_runner.attempts import Fields, Launch, Live
from payload_runner.placement import Placement
from payload_runner.waiting import Request

FIRST_S = 2.0
LONGEST_S = 60.0


class LaunchPause:
    """Stands between orders and their placement; what needs no launcher passes at once."""

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self._held: Dict[str, Request] = {}
        self._let_in: Dict[str, Request] = {}  # MPI payloads that wait for a place, or ran
        self._length_s = 0.0  # of the pause after the last call; 0: it was sound
        self._until = 0.0

    def add(self, request: Request, now: float) -> None:
        """Let a payload wait for a place, now or after the pause."""
        if request.shape.start != "mpi":
            self._placement.add(request)
            return
        self._held[request.attempt] = request
        self.release(now)

    def release(self, now: float) -> None:
        """Let what was held wait for a place once the pause is over."""
        if now >= self._until:
            for request in self._held.values():
                self._placement.add(request)
            self._let_in.update(self._held)
            self._held.clear()

    def withdraw(self, attempt: str) -> None:
        """A waiting payload is not wanted any more. Another than a waiting one is fine."""
        if self._held.pop(attempt, None) is None:
            self._let_in.pop(attempt, None)
            self._placement.withdraw(attempt)

    def withdraw_all(self) -> Tuple[str, ...]:
        """Everything that waits, here and for a place; nothing waits afterwards."""
        held = tuple(self._held)
        self._held.clear()
        self._let_in.clear()
        return self._placement.withdraw_all() + held

    def ended(self, live: Live, outcome: Fields, now: float) -> None:
        """Learn from the end of an attempt what the launcher is worth."""
        self._let_in.pop(live.order.attempt, None)
        if live.launch is Launch.NOT_YET:
            return
        if live.announced:  # a rank began
            self._length_s = 0.0
        elif (outcome.get("state"), outcome.get("blame")) == ("failed", "site"):
            if now < self._until:
                return  # its call was made before the pause began
            self._length_s = min(LONGEST_S, max(FIRST_S, 2 * self._length_s))
            self._until = now + self._length_s
            waiting, self._let_in = self._let_in, {}
            for attempt, request in waiting.items():
                if self._placement.withdraw(attempt):
                    self._held[attempt] = request
