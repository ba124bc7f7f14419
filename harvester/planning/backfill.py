"""Which allocations would start at once, in nodes that stand idle until somebody needs them. Pure.

The rule: where the allocation that suits the backlog best would wait, a smaller or shorter one that
fits a window now goes before it, if it serves whoever is first in line, lasts as long as they need,
and has at least a quarter of the other's node-seconds for payloads. What it leaves of the backlog
is planned for as ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from harvester.model import BackfillWindow
from harvester.planning.facts import NewAllocation
from harvester.planning.limits import Limits, Offer
from harvester.quantities import format_duration
from harvester.site import Queue

# A job is submitted and started a while after the look that found its nodes idle.
START_DELAY_S = 120.0
# What is taken for starting now has at least this part of the node-seconds that wait.
WORTH_MIN = 0.25


@dataclass(frozen=True, slots=True)
class Backfill:
    """The windows as they are now; ``take`` answers what is left after one more allocation."""

    windows: tuple[BackfillWindow, ...] = ()
    now: float = 0.0  # wall clock

    def has_place_for(self, size: NewAllocation, queue: Queue) -> bool:
        """Whether an allocation would start now."""
        return any(
            size.nodes <= window.nodes and size.walltime_s <= self._lasts_s(window)
            for window in self._of(queue)
        )

    def narrowed(self, offer: Offer, limits: Limits) -> Iterator[Offer]:
        """What of an offer would start now."""
        for window in self._of(offer.queue):
            narrow = replace(
                offer,
                nodes_max=min(offer.nodes_max, window.nodes),
                walltime_max_s=min(offer.walltime_max_s, limits.whole_steps(self._lasts_s(window))),
            )
            long_enough = narrow.walltime_max_s >= offer.walltime_min_s
            if narrow.nodes_min <= narrow.nodes_max and narrow.usable_max_s > 0 and long_enough:
                yield narrow

    def take(self, size: NewAllocation) -> Backfill:
        """Windows overlap, of one queue and of several: each may have lost these nodes."""
        left = [replace(window, nodes=window.nodes - size.nodes) for window in self.windows]
        return replace(self, windows=tuple(window for window in left if window.nodes > 0))

    def _of(self, queue: Queue) -> Sequence[BackfillWindow]:
        # Windows are of partitions; which of them a job of a QOS would get is not known.
        names = {"", queue.name, *queue.routes_to} if queue.kind == "queue" else {""}
        return [window for window in self.windows if window.queue in names]

    def _lasts_s(self, window: BackfillWindow) -> float:
        return max(0.0, window.until - START_DELAY_S - self.now)


def is_worth(now_s: float, waits_s: float) -> bool:
    """Whether so many node-seconds that start now go before so many that wait."""
    return now_s >= WORTH_MIN * waits_s


def starts_now(size: NewAllocation, instead_of: NewAllocation | None = None) -> NewAllocation:
    """``size`` with the reason that it starts now, and what would have waited."""
    words = f"{size.nodes} nodes stand idle now"
    if instead_of is not None:
        larger = f"{instead_of.nodes} nodes for {format_duration(instead_of.walltime_s)}"
        words += f" for {format_duration(size.walltime_s)} and more, where {larger} would wait"
    return replace(size, why=f"{size.why}; {words}")
