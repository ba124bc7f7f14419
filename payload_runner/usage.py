"""How much of an allocation was there to be used, and how much was. Pure."""

from __future__ import annotations

from payload_runner.placement import Placement


class Usage:
    """Slots over time: all of them, and those that something ran in."""

    def __init__(self, placement: Placement, now: float) -> None:
        self.slot_seconds = 0.0
        self.busy_slot_seconds = 0.0
        self._placement = placement
        self._counted_at = now

    def count(self, now: float) -> None:
        """Add up until now; to be called before every change of either."""
        passed = now - self._counted_at
        self.slot_seconds += passed * self._placement.slots
        self.busy_slot_seconds += passed * self._placement.slots_busy
        self._counted_at = now
