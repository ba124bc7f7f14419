"""How many waiting payloads each node gets ahead of need, so that its agent need not wait for us.

An agent keeps them in a short queue and starts the first of them in the very slot of one of the
same shape the moment that one has ended well there. Only as much is queued as is expected to start
within the time that a word and its answer take: what was queued cannot go to another node that is
free sooner, without being asked back. Pure.
"""

from __future__ import annotations

from collections import Counter
from typing import Dict, List, Optional, Set, Tuple

from payload_runner.protocol import AllocationPlan, Shape

QUEUE_LIMIT = 512  # payloads of one node
# What a word and its answer may take: a turn or two of both loops, or the polling of file logs.
_NEAR_S = 0.25
_FAR_S = {"files": 5.0, "auto": 2.0}  # by transport, on a shared file system
_PATIENCE = 4.0  # what waits in a queue for so many times that was misjudged
_PATIENCE_MIN_S = 2.0
_NEWEST = 0.2  # weight of the newest duration in the mean


def may_queue(shape: Shape) -> bool:
    """Whether payloads of this shape can take over each other's slots as they are."""
    return shape.nodes_max == 1 and shape.start == "single"


class RunAhead:
    """The queues of all nodes as far as the leader knows, and how fast payloads follow."""

    def __init__(self, plan: AllocationPlan) -> None:
        near = plan.filesystem == "local" or plan.transport in ("tcp", "mpi")
        self._ahead_s = _NEAR_S if near else _FAR_S.get(plan.transport, _FAR_S["files"])
        self.patience_s = max(_PATIENCE_MIN_S, _PATIENCE * self._ahead_s)
        self._queues: Dict[int, Dict[str, Shape]] = {}  # by attempt, the oldest first
        self._since: Dict[str, float] = {}  # when an attempt was queued
        self._running: Counter[Tuple[int, Shape]] = Counter()
        self._pace_s: Dict[Shape, float] = {}  # mean duration of those that ended well
        self._moved: Dict[int, float] = {}
        self._asked_back: Set[int] = set()

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    # --- what happens ---

    def started(self, node: int, shape: Shape) -> None:
        """One runs in a slot of its own."""
        self._running[node, shape] += 1

    def ended(self, node: int, shape: Shape, duration_s: Optional[float]) -> None:
        """One ended; ``duration_s`` None: not well, which says nothing of the others."""
        self._running[node, shape] -= 1
        if duration_s is not None:
            before = self._pace_s.get(shape, duration_s)
            self._pace_s[shape] = before + _NEWEST * (duration_s - before)

    def queued(self, node: int, attempt: str, shape: Shape, now: float) -> None:
        """One was sent to its node ahead of need."""
        queue = self._queues.setdefault(node, {})
        if not queue:
            self._moved[node] = now
        queue[attempt] = shape
        self._since[attempt] = now

    def left(self, node: int, attempt: str, now: float) -> None:
        """One is not queued any more, as it runs or has ended."""
        if self._queues.get(node, {}).pop(attempt, None) is not None:
            del self._since[attempt]
            self._moved[node] = now

    def returned(self, node: int) -> None:
        """The agent has answered that it queues nothing."""
        self._asked_back.discard(node)

    def forget(self, node: int) -> None:
        """The node, or its agent, is gone."""
        for attempt in self._queues.pop(node, {}):
            del self._since[attempt]
        self._asked_back.discard(node)
        for key in [key for key in self._running if key[0] == node]:
            del self._running[key]

    # --- what follows ---

    def first(self, node: int, shape: Shape) -> Optional[str]:
        """The first of this shape that a node has in its queue."""
        queue = self._queues.get(node, {})
        return next((attempt for attempt, found in queue.items() if found == shape), None)

    def is_low(self, node: int, shape: Shape) -> bool:
        """Whether it is time to queue more: half of what there should be is gone."""
        return self._missing(node, shape) * 2 >= self._depth(node, shape) > 0

    def wanted(self) -> List[Tuple[int, Shape, int]]:
        """How many more of a shape to queue on a node."""
        wishes = []
        for (node, shape), running in self._running.items():
            missing = self._missing(node, shape) if running > 0 else 0
            if missing > 0 and node not in self._asked_back:
                wishes.append((node, shape, missing))
        return wishes

    def to_ask_back(self, now: float) -> List[int]:
        """Nodes whose queue stands still or is too long: others may have room. Each is named once.

        So whatever begins there does so no later than ``patience_s`` after it was queued.
        """
        found = []
        for node, queue in self._queues.items():
            if not queue or now - self._since[next(iter(queue))] <= self.patience_s:
                continue
            found.append(node)
            if now - self._moved[node] > self.patience_s:
                for shape in set(queue.values()):
                    # What runs there takes at least this long, whatever was known before.
                    self._pace_s[shape] = max(self._pace_s.get(shape, 0.0), self.patience_s)
        return [node for node in found if self.ask_back(node)]

    def ask_back(self, node: int) -> bool:
        """Whether there is something to be asked back, which then is under way."""
        if not self._queues.get(node) or node in self._asked_back:
            return False
        self._asked_back.add(node)
        return True

    def nodes(self) -> List[int]:
        """Nodes that have something queued."""
        return [node for node, queue in self._queues.items() if queue]

    def _depth(self, node: int, shape: Shape) -> int:
        pace_s = self._pace_s.get(shape)
        if pace_s is None or not may_queue(shape):
            return 0
        soon = self._running[node, shape] * self._ahead_s / max(pace_s, 0.001)
        return min(QUEUE_LIMIT, int(soon))

    def _missing(self, node: int, shape: Shape) -> int:
        return self._depth(node, shape) - len(self._queues.get(node, ()))
