"""Which waiting attempt goes to which running allocation. Pure.

Orders are given late, so that an allocation that starts next finds work left: a slot is promised
only as much ahead as its next order needs to arrive.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harvester.model import AttemptId, Tag
from harvester.planning.estimates import Estimator
from harvester.planning.facts import AllocationFacts, PlanInput, WaitingAttempt
from harvester.planning.overhead import Overhead
from harvester.planning.shapes import node_share
from payload_runner.protocol import NodeShape

# From a payload's end to the start of one ordered for its slot: both sides poll on a shared file
# system (PROTOCOL rule 9), both are woken on a local one.
_SHARED_LATENCY_S = 10.0
_LOCAL_LATENCY_S = 1.0
# Idle time for an order's way that is not worth an order ahead of need.
_TOLERATED_IDLE_SHARE = 0.01
_AHEAD_MAX = 256
# An allocation with this much of its time left counts as fresh.
_FRESH_SHARE = 0.9


@dataclass(slots=True)
class Room:
    """An accepting allocation while orders are dealt out."""

    tag: Tag
    nodes: int
    remaining_s: float
    whole_s: float  # for payloads, when it started
    taken: float = 0.0  # nodes' worth of attempts ordered or running
    work: float = 0.0  # node-seconds that these still take

    def asks_for(self, attempt: WaitingAttempt, estimator: Estimator) -> float:
        """Seconds that the attempt must have here when it starts.

        Enough to finish almost surely; where no time of this allocation is, a fresh start of it.
        """
        least = estimator.least_s(attempt)
        if attempt.checkpointable:
            return least
        return max(least, min(estimator.needed_s(attempt), _FRESH_SHARE * self.whole_s))

    def wait_s(self, share: float) -> float:
        """How long an attempt of this share would probably wait for its slot."""
        return 0.0 if self.taken + share <= self.nodes + 1e-9 else self.work / self.nodes

    def add(self, share: float, work_s: float) -> None:
        """Promise room to one more attempt."""
        self.taken += share
        self.work += share * work_s


def order_attempts(
    facts: PlanInput, estimator: Estimator, overhead: Overhead
) -> tuple[tuple[AttemptId, Tag], ...]:
    """Orders for waiting attempts, by priority and then by age.

    Whoever is first in line takes the next room, however large its shape: the runner keeps the
    nodes together for it. So a stream of small attempts cannot starve a large one.
    """
    rooms = open_rooms(facts, estimator, overhead)
    orders = []
    for attempt in in_line(facts.waiting):
        full = [room for room in rooms if room.taken >= _promised(room, attempt, facts, estimator)]
        if len(full) == len(rooms):
            break
        room = _choose(attempt, rooms, facts, estimator)
        if room is not None:
            room.add(node_share(attempt.shape, facts.site.node), estimator.expected_s(attempt))
            orders.append((attempt.attempt, room.tag))
    return tuple(orders)


def in_line(waiting: Iterable[WaitingAttempt]) -> list[WaitingAttempt]:
    """Attempts in the order in which they are served."""
    return sorted(waiting, key=lambda attempt: (-attempt.priority, -attempt.waiting_s))


def open_rooms(facts: PlanInput, estimator: Estimator, overhead: Overhead) -> list[Room]:
    """The allocations that take orders, with what stands in them."""
    node = facts.site.node
    return [
        _room(found, node, estimator, overhead) for found in facts.allocations if found.accepting
    ]


def ahead(attempt: WaitingAttempt, filesystem: str) -> int:
    """Attempts to order per slot beyond the one that runs, so that no slot waits for orders."""
    latency = _LOCAL_LATENCY_S if filesystem == "local" else _SHARED_LATENCY_S
    expected = attempt.expected_s
    if expected is None:
        return 1
    if filesystem == "local" and latency <= _TOLERATED_IDLE_SHARE * expected:
        return 0
    return min(_AHEAD_MAX, max(1, math.ceil(latency / max(expected, 1e-3))))


def left_s(attempt: WaitingAttempt, estimator: Estimator) -> float:
    """Seconds that a running attempt probably still takes; never nothing."""
    expected = estimator.expected_s(attempt)
    return max(expected - attempt.waiting_s, 0.1 * expected)


def _room(
    found: AllocationFacts, node: NodeShape, estimator: Estimator, overhead: Overhead
) -> Room:
    whole = overhead.usable_s(found.walltime_s)
    room = Room(found.tag, found.nodes, found.remaining_s or 0.0, whole)
    for attempt in found.running:
        room.add(node_share(attempt.shape, node), left_s(attempt, estimator))
    for attempt in found.ordered:
        room.add(node_share(attempt.shape, node), estimator.expected_s(attempt))
    return room


def _promised(room: Room, attempt: WaitingAttempt, facts: PlanInput, estimator: Estimator) -> float:
    """Up to how many nodes' worth this room is filled; no further than its time reaches."""
    factor = 1 + ahead(attempt, facts.site.filesystem)
    rounds = room.remaining_s / max(estimator.expected_s(attempt), 1e-3)
    return room.nodes * max(1.0, min(factor, rounds))


def _choose(
    attempt: WaitingAttempt, rooms: Sequence[Room], facts: PlanInput, estimator: Estimator
) -> Room | None:
    """The emptiest room in which the attempt can run; None to let others pass it."""
    share = node_share(attempt.shape, facts.site.node)
    able = [
        room
        for room in rooms
        if attempt.shape.nodes_min <= room.nodes
        and share <= room.nodes + 1e-9
        and room.taken < _promised(room, attempt, facts, estimator) - 1e-9
        and room.wait_s(share) + room.asks_for(attempt, estimator) <= room.remaining_s
        and room.tag not in attempt.handed_back_by
    ]
    # Of equally empty rooms the one that ends first: long ones are kept for long attempts.
    return min(able, key=lambda room: (room.taken / room.nodes, room.remaining_s), default=None)
