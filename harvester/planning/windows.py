"""Maintenance windows, in which no job may run. Pure.

What is submitted before a window ends before it; what could not is put off until it is over. A
job that then waits so long that it no longer fits before the window is held back by the batch
system itself, which knows the window too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harvester.quantities import format_instant
from harvester.site import Reservation

# A job seldom starts at the moment of its submission.
START_DELAY_S = 300.0


@dataclass(frozen=True, slots=True)
class Window:
    """The next maintenance, or the one that is on."""

    in_s: float  # how long a job that is submitted now may last
    sentence: str


def next_window(reservations: Sequence[Reservation], now: float) -> Window | None:
    """The first window that is not over; windows may overlap."""
    coming = [item for item in reservations if item.end > now]
    first = min(coming, key=lambda item: item.start, default=None)
    if first is None:
        return None
    over = first.end
    for item in sorted(coming, key=lambda item: item.start):
        if item.start <= over:
            over = max(over, item.end)
    return Window(
        max(0.0, first.start - START_DELAY_S - now),
        f"{first.why} from {format_instant(first.start)} to {format_instant(over)}: no allocation "
        "of use would end before it",
    )
