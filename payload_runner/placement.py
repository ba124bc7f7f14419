"""Which waiting payload goes where and when: pure decisions, no clock, no I/O.

Time is an argument (monotonic seconds), and so are nodes and requests. The rules:

- Priority first, then order of arrival. What cannot be placed now lets others go ahead of it only
  where that does not make it wait longer (EASY backfill): the first that cannot be placed gets a
  reservation of nodes with a time, and others may go there only if they are expected to be done
  by then. The time is fixed once: after it nothing else starts there, so nobody starves.
- Nothing starts that can neither finish nor save a checkpoint before the drain point.
- What can never run here is refused with the reason.
- Elastic payloads start with what they need at least; the rest is lent (``elastic``).

Cost: a step tries each distinct shape once, and a node again only after something there ended.
"""

from __future__ import annotations

import heapq
import itertools
import zlib
from dataclasses import dataclass, replace
from typing import Dict, FrozenSet, Iterable, List, Optional, Tuple

from payload_runner.capacity import (
    WHOLE,
    Need,
    Node,
    can_ever_hold,
    need_of,
    slots_of,
    slots_taken,
    too_big,
)
from payload_runner.elastic import LOAN_WORTH_S, Recalls, Running, is_elastic, loans
from payload_runner.protocol import NodeShape, Shape
from payload_runner.waiting import MARGIN, USEFUL_S, Group, Request

__all__ = ["Assignment", "GpuShare", "Placement", "Request", "Slot", "Step"]

# Of unknown duration and without checkpoints: only while this share of the time is left.
UNKNOWN_FRACTION = 0.25
# A running payload of unknown duration is expected to run as long again as it has, but at least:
UNKNOWN_REST_S = 60.0
BACKFILL_DEPTH = 32  # waiting payloads of one shape looked at for one that is short enough


@dataclass(frozen=True)
class GpuShare:
    """A GPU of a node, by its number from 0 in the order the batch system gives; or part of it."""

    index: int
    share: float = 1.0


@dataclass(frozen=True)
class Slot:
    """What one payload gets on one node.

    A payload on several nodes has one slot per node; ``hosts`` names them all in rank order and
    this node runs ranks ``first_rank`` to ``first_rank + ranks - 1`` of ``world_size``.
    """

    node: int
    gpus: Tuple[GpuShare, ...] = ()
    cores: Tuple[int, ...] = ()  # numbers from 0 among the agent's cores; (): not pinned
    memory_mb: int = 0  # what the payload asked for, to be enforced; 0: it did not ask
    ranks: int = 1
    first_rank: int = 0
    world_size: int = 1
    hosts: Tuple[str, ...] = ()
    master_port: int = 0  # of the rendezvous on hosts[0]; 0: nothing to meet for


@dataclass(frozen=True)
class Assignment:
    """A payload starts now, on these slots (rank order)."""

    attempt: str
    slots: Tuple[Slot, ...]


@dataclass(frozen=True)
class Step:
    """What one step decided, each in the order of decision."""

    start: Tuple[Assignment, ...] = ()
    refuse: Tuple[Tuple[str, str], ...] = ()  # attempt, reason
    lend: Tuple[Assignment, ...] = ()  # more nodes for running payloads; only their new slots
    take_back: Tuple[Tuple[str, int], ...] = ()  # attempt, node; with notice


@dataclass(frozen=True)
class _Reservation:
    attempt: str
    nodes: FrozenSet[int]
    at: float


class Placement:
    """The state between steps. Nodes are known by their index."""

    def __init__(self, total_s: float) -> None:
        """``total_s``: from the start to the drain point, the measure of ``UNKNOWN_FRACTION``."""
        self._total_s = total_s
        self._nodes: Dict[int, Node] = {}
        self._waiting: Dict[str, Request] = {}
        self._ahead: Dict[str, Tuple[Request, int]] = {}  # taken ahead of need; their arrival
        self._running: Dict[str, Running] = {}
        self._elastic: Dict[str, Running] = {}  # those of them that can borrow nodes
        self._groups: Dict[Shape, Group] = {}
        self._needs: Dict[Tuple[Shape, NodeShape], Need] = {}
        self._deadlines: List[Tuple[float, str]] = []  # heap of (-seconds it needs, attempt)
        self._arrivals = 0
        self._reservation: Optional[_Reservation] = None
        self.settled = False  # every node that will come has come: what fits nowhere never will
        self.slots = 0.0  # GPUs of all nodes; their cores where there are no GPUs
        self.slots_busy = 0.0

    # --- what happens ---

    def add_node(self, index: int, host: str, shape: NodeShape) -> None:
        """A node joins."""
        node = self._nodes[index] = Node(host, shape)
        self.slots += slots_of(shape)
        for group in self._groups.values():
            group.judged = False
            group.hope(index, node.room.free_units)

    def remove_node(self, index: int) -> None:
        """A node is gone; release what ran there as well."""
        node = self._nodes.pop(index, None)
        if node is None:
            return
        self.slots -= slots_of(node.room.node)
        for attempt, grant in node.running.items():
            self.slots_busy -= slots_taken(grant, node.room.node)
            if attempt in self._elastic:
                self._elastic[attempt].forget(index)
        self._forget(index)

    def close_node(self, index: int) -> None:
        """Start nothing more on this node."""
        node = self._nodes.get(index)
        if node is not None:
            node.open = False
            self._forget(index)

    def add(self, request: Request) -> None:
        """A payload waits. Its id must be new."""
        assert request.attempt not in self._waiting
        assert request.attempt not in self._running
        self._waiting[request.attempt] = request
        self._arrivals += 1
        group = self._group(request.shape)
        heapq.heappush(group.queue, (-request.priority, self._arrivals, request.attempt))
        heapq.heappush(self._deadlines, (-self._needs_s(request), request.attempt))

    def withdraw(self, attempt: str) -> bool:
        """A waiting payload is not wanted any more; False if it does not wait."""
        return self._waiting.pop(attempt, None) is not None

    def withdraw_all(self) -> Tuple[str, ...]:
        """Everything that waits, in order of arrival; nothing waits afterwards."""
        attempts = tuple(self._waiting)
        self._waiting.clear()
        self._groups.clear()
        self._deadlines.clear()
        self._reservation = None
        return attempts

    def take_next(self, node: int, shape: Shape, count: int, remaining_s: float) -> List[str]:
        """What would be placed next, ahead of need; it waits here no longer.

        At most ``count``, and only while it is of ``shape``, may begin with ``remaining_s`` left,
        and the node is open and not reserved for another shape.
        """
        if node not in self._nodes or not self._nodes[node].open:
            return []
        reserved = self._reservation
        if reserved is not None and node in reserved.nodes:
            waiting = self._waiting.get(reserved.attempt)
            if waiting is not None and waiting.shape != shape:
                return []
        taken: List[str] = []
        heads = self._heads()
        while heads and len(taken) < count:
            _, arrival, attempt = heapq.heappop(heads)
            request = self._waiting[attempt]
            if request.shape != shape or self._needs_s(request) > remaining_s:
                break
            del self._waiting[attempt]
            self._ahead[attempt] = (request, arrival)
            taken.append(attempt)
            self._push_head(heads, self._groups[shape])
        return taken

    def put_back(self, attempt: str) -> None:
        """What was taken ahead of need waits again, where it stood."""
        if attempt in self._running:  # it was given a place, but did not begin there
            request = self._running[attempt].request
            self.release(attempt)
            self.add(request)
            return
        request, arrival = self._ahead.pop(attempt)
        self._waiting[attempt] = request
        group = self._group(request.shape)
        heapq.heappush(group.queue, (-request.priority, arrival, attempt))
        heapq.heappush(self._deadlines, (-self._needs_s(request), attempt))

    def take_over(self, ended: str, attempt: str, now: float) -> None:
        """What was taken ahead of need runs, in the place of one that ended on its one node."""
        if attempt in self._running:  # it was given another place meanwhile
            request = self._running[attempt].request
            self.release(attempt)
        else:
            request, _ = self._ahead.pop(attempt)
        place = self._running.pop(ended)
        for index in place.nodes:
            if index in self._nodes:
                running = self._nodes[index].running
                running[attempt] = running.pop(ended)
        self._running[attempt] = Running(request, place.nodes, now, now, place.joined)

    def release(self, attempt: str) -> None:
        """A running payload ended on all its nodes, or one taken ahead of need never ran."""
        if self._ahead.pop(attempt, None) is not None:
            return
        running = self._running.pop(attempt)
        self._elastic.pop(attempt, None)
        for index in running.nodes:
            self._give_back(attempt, index)

    def leave(self, attempt: str, index: int) -> None:
        """An elastic payload has left one of its nodes, whether asked to or by itself."""
        running = self._running[attempt]
        if index not in running.leaving:
            running.barred.add(index)
        running.forget(index)
        self._give_back(attempt, index)

    def fix(self, attempt: str) -> None:
        """Lend nothing more to a running payload: it is being stopped."""
        self._running[attempt].fixed = True

    # --- what is asked ---

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    def nodes_open(self) -> int:
        """How many nodes take new payloads."""
        return sum(1 for node in self._nodes.values() if node.open)

    def step(self, now: float, remaining_s: float) -> Step:
        """Decide what starts now and what never will; ``remaining_s`` to the drain point."""
        refused = self._refuse_late(remaining_s)
        started: List[Assignment] = []
        heads = self._heads()
        blocked: Optional[Request] = None
        while heads:
            _, _, attempt = heapq.heappop(heads)
            request = self._waiting[attempt]
            group = self._groups[request.shape]
            reason = self._impossible(group)
            if reason is not None:
                del self._waiting[attempt]
                refused.append((attempt, reason))
                self._push_head(heads, group)
                continue
            assignment = self._try(group, request, blocked, now, remaining_s)
            if assignment is not None:
                started.append(assignment)
                self._push_head(heads, group)
            elif blocked is None:
                blocked = request
        self._drop_empty_groups()
        taken = () if blocked is None else self._take_back(blocked, now, remaining_s)
        started, lent = self._lend(started, now, remaining_s)
        return Step(tuple(started), tuple(refused), lent, taken)

    def validate(self) -> None:
        """Check that nothing is given twice. For tests."""
        for index, node in self._nodes.items():
            shape = node.room.node
            used = dict.fromkeys(range(shape.gpus), 0)
            cores: List[int] = []
            for grant in node.running.values():
                cores += grant.cores
                for gpu, units in grant.gpus:
                    used[gpu] += units
            assert all(units <= WHOLE for units in used.values()), (index, used)
            assert node.room.gpus == {gpu: WHOLE - units for gpu, units in used.items()}
            assert sorted([*cores, *node.room.cores]) == list(range(shape.cores))
            assert node.room.memory_mb >= 0

    # --- private ---

    def _needs_s(self, request: Request) -> float:
        if request.expected_s is None:
            return USEFUL_S if request.checkpointable else self._total_s * UNKNOWN_FRACTION
        whole = request.expected_s * MARGIN
        return min(USEFUL_S, whole) if request.checkpointable else whole

    def _refuse_late(self, remaining_s: float) -> List[Tuple[str, str]]:
        """The time left only shrinks, so what is too long for it now is so for good."""
        refused = []
        while self._deadlines and -self._deadlines[0][0] > remaining_s:
            needs_s, attempt = heapq.heappop(self._deadlines)
            if self._waiting.pop(attempt, None) is not None:
                left = max(0.0, remaining_s)
                refused.append((attempt, f"needs {-needs_s:.0f} s and only {left:.0f} s are left"))
        return refused

    def _group(self, shape: Shape) -> Group:
        group = self._groups.get(shape)
        if group is None:
            group = self._groups[shape] = Group(shape)
            for index, node in self._nodes.items():
                if node.open:
                    group.hope(index, node.room.free_units)
        return group

    def _heads(self) -> List[Tuple[int, int, str]]:
        heads: List[Tuple[int, int, str]] = []
        for group in self._groups.values():
            self._push_head(heads, group)
        return heads

    def _push_head(self, heads: List[Tuple[int, int, str]], group: Group) -> None:
        """The group's first request that still waits (withdrawn ones are skipped late)."""
        while group.queue and group.queue[0][2] not in self._waiting:
            heapq.heappop(group.queue)
        if group.queue:
            heapq.heappush(heads, group.queue[0])

    def _drop_empty_groups(self) -> None:
        # A few empty ones are kept: the next order of that shape need not look at all nodes.
        if len(self._groups) > 16:
            self._groups = {shape: group for shape, group in self._groups.items() if group.queue}

    def _impossible(self, group: Group) -> Optional[str]:
        if not self.settled:
            return None
        if not group.judged:
            group.judged = True
            shape = group.shape
            able = sum(
                1
                for node in self._nodes.values()
                if node.open and can_ever_hold(node.room.node, shape)
            )
            group.impossible = None if able >= shape.nodes_min else too_big(shape, able)
        return group.impossible

    def _try(
        self,
        group: Group,
        request: Request,
        blocked: Optional[Request],
        now: float,
        remaining_s: float,
    ) -> Optional[Assignment]:
        if blocked is None:
            return self._place(group, request, frozenset(), now)
        if not self._may_fit(group):
            return None
        reserved = self._reserve(blocked, now, remaining_s)
        for candidate in self._candidates(group):
            done_by = candidate.done_by(now)
            in_time = done_by is not None and (reserved is None or done_by <= reserved.at)
            avoid = frozenset() if reserved is None or in_time else reserved.nodes
            assignment = self._place(group, candidate, avoid, now)
            if assignment is not None:
                return assignment
        return None

    def _candidates(self, group: Group) -> List[Request]:
        """The first requests of the group; a short one may slip through a gap."""
        # The front of the heap is nearly in order, and costs nothing to look at.
        first = sorted(group.queue[:BACKFILL_DEPTH])
        return [self._waiting[attempt] for _, _, attempt in first if attempt in self._waiting]

    def _may_fit(self, group: Group) -> bool:
        """Whether enough nodes have room for one more; nodes that do not are dropped."""
        found: List[Tuple[int, int]] = []
        while group.hopeful and len(found) < group.shape.nodes_min:
            entry = heapq.heappop(group.hopeful)
            if self._has_room(entry[1], group.shape):
                found.append(entry)
            else:
                group.members.discard(entry[1])
        for entry in found:
            heapq.heappush(group.hopeful, entry)
        return len(found) >= group.shape.nodes_min

    def _place(
        self, group: Group, request: Request, avoid: FrozenSet[int], now: float
    ) -> Optional[Assignment]:
        """Place on the fullest nodes that have room, which leaves whole nodes for the big."""
        shape = request.shape
        chosen: List[int] = []
        passed: List[Tuple[int, int]] = []
        while group.hopeful and len(chosen) < shape.nodes_min:
            entry = heapq.heappop(group.hopeful)
            if not self._has_room(entry[1], shape):
                group.members.discard(entry[1])
                continue
            passed.append(entry)
            if entry[1] not in avoid:
                chosen.append(entry[1])
        assignment = None
        if len(chosen) >= shape.nodes_min:
            # Launchers number ranks by their own order of nodes, which is that of the agents.
            assignment = self._occupy(request, tuple(sorted(chosen)), now)
        for _, index in passed:
            heapq.heappush(group.hopeful, (self._nodes[index].room.free_units, index))
        return assignment

    def _has_room(self, index: int, shape: Shape) -> bool:
        node = self._nodes.get(index)
        return node is not None and node.open and node.room.fits(self._need(shape, node.room.node))

    def _occupy(self, request: Request, nodes: Tuple[int, ...], now: float) -> Assignment:
        del self._waiting[request.attempt]
        if self._reservation is not None and self._reservation.attempt == request.attempt:
            self._reservation = None
        running = Running(request, [], now, now, 0)
        self._running[request.attempt] = running
        if is_elastic(request.shape):
            self._elastic[request.attempt] = running
        return Assignment(request.attempt, self._join(running, nodes))

    def _join(self, running: Running, nodes: Iterable[int]) -> Tuple[Slot, ...]:
        """Give a payload these nodes as well; their slots."""
        joining = tuple(nodes)
        running.nodes += joining
        hosts = tuple(self._nodes[index].host for index in running.nodes)
        first = running.joined
        running.joined += len(joining)
        return tuple(
            self._slot(running.request, number, index, hosts)
            for number, index in enumerate(joining, first)
        )

    def _give_back(self, attempt: str, index: int) -> None:
        node = self._nodes.get(index)
        if node is None:
            return
        grant = node.running.pop(attempt)
        node.room.give_back(grant)
        self.slots_busy -= slots_taken(grant, node.room.node)
        if node.open:
            for group in self._groups.values():
                group.hope(index, node.room.free_units)

    # --- elastic payloads ---

    def _lend(
        self, started: List[Assignment], now: float, remaining_s: float
    ) -> Tuple[List[Assignment], Tuple[Assignment, ...]]:
        """Lend what is idle. What starts in this step starts with its loans."""
        if not self._elastic or remaining_s < LOAN_WORTH_S:
            return started, ()
        reserved = frozenset() if self._reservation is None else self._reservation.nodes
        more: Dict[str, Tuple[Slot, ...]] = {}
        for attempt, nodes in loans(self._nodes, self._elastic, reserved, self._need, now).items():
            running = self._running[attempt]
            running.changed = now
            more[attempt] = self._join(running, nodes)
        whole = [_joined(item, more.pop(item.attempt, ())) for item in started]
        return whole, tuple(Assignment(attempt, slots) for attempt, slots in more.items())

    def _take_back(
        self, blocked: Request, now: float, remaining_s: float
    ) -> Tuple[Tuple[str, int], ...]:
        """Take back what those need that could not be placed."""
        recalls = Recalls(self._nodes, self._elastic, self._need)
        if not recalls:
            return ()
        reserved = self._reserve(blocked, now, remaining_s)
        if reserved is not None:
            recalls.for_first(blocked.shape, reserved.nodes, reserved.at - now)
        for request in self._followers(blocked):
            spare_s = remaining_s - self._needs_s(request)
            recalls.for_follower(request.shape, spare_s)
        for attempt, index in recalls.taken:
            self._running[attempt].leaving.add(index)
        return tuple(recalls.taken)

    def _followers(self, blocked: Request) -> List[Request]:
        """Those that wait behind the first, in order."""
        queues = [group.queue[:BACKFILL_DEPTH] for group in self._groups.values()]
        waiting = [
            self._waiting[attempt]
            for _, _, attempt in sorted(itertools.chain(*queues))
            if attempt in self._waiting
        ]
        return [request for request in waiting if request is not blocked]

    def _slot(self, request: Request, rank: int, index: int, hosts: Tuple[str, ...]) -> Slot:
        node, shape = self._nodes[index], request.shape
        grant = node.room.take(self._need(shape, node.room.node))
        node.running[request.attempt] = grant
        self.slots_busy += slots_taken(grant, node.room.node)
        world_size = shape.ranks_per_node * len(hosts)
        return Slot(
            node=index,
            gpus=tuple(GpuShare(gpu, units / WHOLE) for gpu, units in grant.gpus),
            cores=grant.cores,
            memory_mb=shape.memory_mb_per_node,
            ranks=shape.ranks_per_node,
            first_rank=rank * shape.ranks_per_node,
            world_size=world_size,
            hosts=hosts,
            master_port=_port(request.attempt) if world_size > 1 or shape.start == "elastic" else 0,
        )

    def _need(self, shape: Shape, node: NodeShape) -> Need:
        key = (shape, node)
        need = self._needs.get(key)
        if need is None:
            need = self._needs[key] = need_of(shape, node)
        return need

    def _forget(self, index: int) -> None:
        for group in self._groups.values():
            group.judged = False
        if self._reservation is not None and index in self._reservation.nodes:
            self._reservation = None

    def _reserve(self, request: Request, now: float, remaining_s: float) -> Optional[_Reservation]:
        """Nodes and a time for the first request that cannot be placed; kept until it can.

        None when by all expectation it cannot start early enough to be worth starting.
        """
        if self._reservation is not None and self._reservation.attempt == request.attempt:
            return self._reservation
        ready = []
        for index, node in self._nodes.items():
            at = self._ready_at(index, node, request.shape, now) if node.open else None
            if at is not None:
                ready.append((at, index))
        soonest = heapq.nsmallest(request.shape.nodes_min, ready)
        if len(soonest) < request.shape.nodes_min:
            return None
        at = soonest[-1][0]
        if at + self._needs_s(request) > now + remaining_s:
            return None
        nodes = frozenset(index for _, index in soonest)
        self._reservation = _Reservation(request.attempt, nodes, at)
        return self._reservation

    def _ready_at(self, index: int, node: Node, shape: Shape, now: float) -> Optional[float]:
        """When the node is expected to have room; None if not even empty."""
        need = self._need(shape, node.room.node)
        if node.room.fits(need):
            return now
        room = node.room.copy()
        ends = sorted(
            (self._expected_end(attempt, index, now), attempt) for attempt in node.running
        )
        for at, attempt in ends:
            room.give_back(node.running[attempt])
            if room.fits(need):
                return at
        return None

    def _expected_end(self, attempt: str, index: int, now: float) -> float:
        running = self._running[attempt]
        if attempt in self._elastic and running.may_leave(index):
            return now + running.request.notice_s
        done_by = running.request.done_by(running.started)
        if done_by is None:
            return now + max(now - running.started, UNKNOWN_REST_S)
        return max(now, done_by)


def _joined(started: Assignment, more: Tuple[Slot, ...]) -> Assignment:
    """An assignment with more slots, all of which know all hosts."""
    if not more:
        return started
    hosts, size = more[0].hosts, more[0].world_size
    known = [replace(slot, hosts=hosts, world_size=size) for slot in started.slots]
    return Assignment(started.attempt, (*known, *more))


def _port(attempt: str) -> int:
    """A rendezvous port; below the ephemeral range, and seldom the same for two payloads."""
    return 20000 + zlib.crc32(attempt.encode()) % 12000
