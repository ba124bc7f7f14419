"""How many allocations of which nodes x walltime the backlog is worth. Pure.

The backlog is taken as classes of like attempts. What is in flight takes its part first, up to a
horizon; for the rest, allocations are chosen one by one from the bins that queues offer, so that
the work is done in as few rounds as pays for an allocation's start. Only as much walltime is asked
for as the rounds need, and as a slow start leaves some of: short requests start sooner, and more of
them than planned does no harm.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from harvester.model import AllocationState, Tag
from harvester.planning.backfill import Backfill, is_worth, starts_now
from harvester.planning.estimates import Estimator
from harvester.planning.facts import AllocationFacts, NewAllocation, PlanInput, WaitingAttempt
from harvester.planning.limits import Limits, Offer
from harvester.planning.orders import left_s
from harvester.planning.overhead import Overhead
from harvester.planning.shapes import node_share, whole_nodes
from payload_runner.protocol import NodeShape, Shape

# Payload time per second of start and drain that an allocation should have at least.
_WORK_PER_OVERHEAD = 10.0
# So much is asked for however short the work: a start may take several times as long as the site's
# margin for it, and an allocation that ends before anything began is asked for again and again.
_WORK_AT_LEAST = 3.0
# An allocation that a queue's smallest size would leave emptier than this is not submitted.
_USE_MIN = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """So many attempts of one kind that need a place."""

    shape: Shape
    share: float  # of a node, see node_share
    expected_s: float
    needed_s: float
    least_s: float
    priority: int
    not_in: tuple[Tag, ...] = ()  # allocations that handed it back
    count: int = 0

    def runs_in(self, nodes: int, usable_s: float) -> bool:
        """Whether an allocation of such size can run it to its end or to a checkpoint."""
        fits = self.shape.nodes_min <= nodes and self.share != math.inf
        return fits and usable_s > 0 and self.least_s <= usable_s

    def work(self, usable_s: float) -> float:
        """Node-seconds of one attempt within an allocation of so much usable time."""
        return self.share * min(self.expected_s, max(usable_s, 1e-3))


def demands(
    attempts: Iterable[tuple[WaitingAttempt, int]], node: NodeShape, estimator: Estimator
) -> tuple[Demand, ...]:
    """Attempts (each with how many of its kind there are) as classes, first in line first.

    Attempts that fit no node of the site are left out.
    """
    counts: Counter[Demand] = Counter()
    for attempt, count in attempts:
        share = node_share(attempt.shape, node)
        if count and share != math.inf:
            counts[demand_of(attempt, node, estimator)] += count
    classes = [replace(kind, count=count) for kind, count in counts.items()]
    return tuple(sorted(classes, key=_in_line))


def _in_line(kind: Demand) -> tuple[int, float]:
    return -kind.priority, -kind.share


def demand_of(attempt: WaitingAttempt, node: NodeShape, estimator: Estimator) -> Demand:
    """The class of one attempt, with count 0."""
    return Demand(
        shape=attempt.shape,
        share=node_share(attempt.shape, node),
        expected_s=max(1e-3, estimator.expected_s(attempt)),
        needed_s=estimator.needed_s(attempt),
        least_s=estimator.least_s(attempt),
        priority=attempt.priority,
        not_in=attempt.handed_back_by,
    )


def horizon_s(backlog: Sequence[Demand], overhead: Overhead) -> float:
    """Within what time the backlog should be worked off, given enough nodes.

    The longest attempt sets it, or the time over which an allocation's start pays off.
    """
    longest = max((kind.expected_s for kind in backlog), default=0.0)
    return max(longest, _WORK_PER_OVERHEAD * overhead.fixed_s)


def absorb(
    backlog: Sequence[Demand], nodes: int, usable_s: float, free_node_s: float
) -> tuple[Demand, ...]:
    """What is left of the backlog once an allocation has taken what it can."""
    left = []
    for kind in backlog:
        taken = 0
        if kind.runs_in(nodes, usable_s):
            work = kind.work(usable_s)
            taken = min(kind.count, math.floor(free_node_s / work + 1e-9))
            free_node_s -= taken * work
        if kind.count > taken:
            left.append(replace(kind, count=kind.count - taken))
    return tuple(left)


def absorb_in_flight(
    backlog: tuple[Demand, ...], facts: PlanInput, estimator: Estimator, overhead: Overhead
) -> tuple[Demand, ...]:
    """What is left of the backlog once all live allocations have taken what they can in time."""
    within_s = horizon_s(backlog, overhead)
    for found in facts.allocations:
        usable = usable_s(found, overhead)
        busy = committed_work(found, facts.site.node, estimator)
        free = max(0.0, found.nodes * min(usable, within_s) - busy)
        refused = tuple(kind for kind in backlog if found.tag in kind.not_in)
        open_to = tuple(kind for kind in backlog if found.tag not in kind.not_in)
        backlog = refused + absorb(open_to, found.nodes, usable, free)
    return tuple(sorted(backlog, key=_in_line))


def usable_s(found: AllocationFacts, overhead: Overhead) -> float:
    """Seconds of payload time that an allocation still offers; 0 when it takes nothing more."""
    if found.state in (AllocationState.ENDED, AllocationState.DRAINING):
        return 0.0
    if found.remaining_s is not None:
        return found.remaining_s
    return overhead.usable_s(found.walltime_s)


def committed_work(found: AllocationFacts, node: NodeShape, estimator: Estimator) -> float:
    """Node-seconds that the attempts in an allocation still take."""
    work = sum(node_share(item.shape, node) * left_s(item, estimator) for item in found.running)
    return work + sum(
        node_share(item.shape, node) * estimator.expected_s(item) for item in found.ordered
    )


def choose_allocations(
    backlog: tuple[Demand, ...],
    bins: Sequence[Offer],
    limits: Limits,
    overhead: Overhead,
    rounds_min: int,
    backfill: Backfill,
) -> tuple[NewAllocation, ...]:
    """Allocations for the backlog, one after another until nothing is left or may be submitted.

    ``rounds_min``: for how many attempts per slot to ask for walltime at least.
    """
    chosen: list[NewAllocation] = []
    while backlog:
        open_bins = [offer for offer in bins if limits.refusal(offer) is None]
        best = _best(backlog, open_bins, limits, overhead, rounds_min)
        if best is None:
            break
        narrow = [small for offer in open_bins for small in backfill.narrowed(offer, limits)]
        if any(
            backfill.has_place_for(best, offer.queue)
            for offer in open_bins
            if offer.queue.name == best.queue
        ):
            best = starts_now(best)
        elif (now := _best(backlog, narrow, limits, overhead, rounds_min)) is not None:
            best = _sooner(now, best, backlog[0], overhead)
        chosen.append(best)
        limits, backfill = limits.take(best), backfill.take(best)
        usable = overhead.usable_s(best.walltime_s)
        within = min(usable, horizon_s(backlog, overhead))
        before, backlog = backlog, absorb(backlog, best.nodes, usable, best.nodes * within)
        if backlog == before:
            break
    return tuple(chosen)


def _best(
    backlog: Sequence[Demand],
    bins: Sequence[Offer],
    limits: Limits,
    overhead: Overhead,
    rounds_min: int,
) -> NewAllocation | None:
    """The allocation of all offers that suits the backlog best; None when none makes sense."""
    sizes = (size_allocation(backlog, offer, limits, rounds_min) for offer in bins)
    return max(
        (size for size in sizes if size is not None),
        key=lambda size: _merit(size, backlog, overhead),
        default=None,
    )


def _sooner(
    now: NewAllocation, waits: NewAllocation, first: Demand, overhead: Overhead
) -> NewAllocation:
    """The one that starts now if it is worth it (see ``backfill``), else the one that waits."""
    usable = overhead.usable_s(now.walltime_s)
    serves = first.runs_in(now.nodes, usable) and first.needed_s <= usable
    node_s, waiting_node_s = now.nodes * usable, waits.nodes * overhead.usable_s(waits.walltime_s)
    return starts_now(now, waits) if serves and is_worth(node_s, waiting_node_s) else waits


def size_allocation(
    backlog: Sequence[Demand], offer: Offer, limits: Limits, rounds_min: int
) -> NewAllocation | None:
    """The allocation of one offer that suits the backlog best; None when none makes sense."""
    fitting = [
        kind
        for kind in backlog
        if kind.runs_in(offer.nodes_max, _usable_s(offer, _smallest(kind, offer), limits))
    ]
    if not fitting or too_empty(fitting, offer):
        return None
    nodes = _nodes_for(fitting, offer, limits)
    able = [kind for kind in fitting if kind.runs_in(nodes, _usable_s(offer, nodes, limits))]
    if not able:
        return None
    payload_s = max(_time_for(able, nodes, rounds_min), _WORK_AT_LEAST * offer.overhead.fixed_s)
    asked = max(offer.overhead.walltime_s(payload_s), offer.walltime_min_s)
    return NewAllocation(
        queue=offer.queue.name,
        nodes=nodes,
        walltime_s=float(min(limits.granted_s(asked), limits.walltime_s(offer, nodes))),
        why=_reason(able, nodes),
    )


def _nodes_for(fitting: Sequence[Demand], offer: Offer, limits: Limits) -> int:
    """Nodes that finish the work within the horizon, as the offer and the budget allow."""
    longest = _usable_s(offer, offer.nodes_min, limits)
    horizon = min(longest, horizon_s(fitting, offer.overhead))
    work = sum(kind.count * kind.work(longest) for kind in fitting)
    at_once = whole_nodes(sum(kind.count * kind.share for kind in fitting))
    first = fitting[0]
    smallest = _smallest(first, offer)
    nodes = min(at_once, math.ceil(work / horizon), offer.nodes_max)
    # Where the node-hours are short, fewer nodes that last long enough.
    while nodes > smallest and not first.runs_in(nodes, _usable_s(offer, nodes, limits)):
        nodes //= 2
    return max(smallest, nodes)


def _smallest(kind: Demand, offer: Offer) -> int:
    return max(offer.nodes_min, kind.shape.nodes_min)


def _usable_s(offer: Offer, nodes: int, limits: Limits) -> float:
    return offer.overhead.usable_s(limits.walltime_s(offer, nodes))


def _reason(kinds: Sequence[Demand], nodes: int) -> str:
    count = sum(kind.count for kind in kinds)
    longest = max(kind.expected_s for kind in kinds)
    return f"{count} attempts of up to about {longest:.0f} s need a place; {nodes} nodes suit them"


def too_empty(fitting: Sequence[Demand], offer: Offer) -> bool:
    """Whether even the smallest allocation of the offer would stand almost empty."""
    # Elastic attempts use what would stand empty.
    at_once = sum(kind.count * kind.share * _stretch(kind.shape) for kind in fitting)
    return at_once < _USE_MIN * offer.nodes_min


def _stretch(shape: Shape) -> float:
    """How many times its smallest size an attempt can have."""
    return shape.nodes_max / shape.nodes_min


def _time_for(kinds: Sequence[Demand], nodes: int, rounds_min: int) -> float:
    """Time in which so many nodes work off these kinds, with room for the slowest at the end."""
    work = sum(kind.count * kind.share * kind.expected_s for kind in kinds)
    longest = max(kind.expected_s for kind in kinds)
    rounds = max(rounds_min, math.ceil(work / nodes / longest - 1e-9))
    tail = max(kind.needed_s - kind.expected_s for kind in kinds)
    return rounds * longest + tail


def _merit(
    size: NewAllocation, backlog: Sequence[Demand], overhead: Overhead
) -> tuple[bool, bool, bool, int, float]:
    """Better is: takes who is first in line; well filled; long enough; more nodes; shorter."""
    usable = overhead.usable_s(size.walltime_s)
    serves = backlog[0].runs_in(size.nodes, usable)
    at_once = sum(kind.count * kind.share for kind in backlog)
    filled, lasts = at_once >= size.nodes / 2, backlog[0].needed_s <= usable
    return serves, filled, lasts, size.nodes, -size.walltime_s
