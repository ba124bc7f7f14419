"""The leader's side of the queues that agents hold ahead of need: filling, following, asking back.

How much is queued is ``runahead``'s to say, what would be placed next ``placement``'s. An attempt
that is queued counts as given to its node: who loses the node cannot know that it never began.
"""

from __future__ import annotations

from typing import Dict, List, Mapping, Optional

from payload_runner.attempts import Fields, Live
from payload_runner.placement import Placement, Slot
from payload_runner.protocol import AllocationPlan, Order, PayloadSpec, Shape
from payload_runner.runahead import RunAhead
from payload_runner.telling import Telling


class Queueing:
    """Keeps the agents' queues; shares the conductor's tables of orders and attempts."""

    def __init__(
        self,
        plan: AllocationPlan,
        placement: Placement,
        orders: Dict[str, Order],
        live: Dict[str, Live],
        specs: Mapping[str, PayloadSpec],
        telling: Telling,
    ) -> None:
        self._ahead = RunAhead(plan)
        self._placement = placement
        self._orders = orders
        self._live = live
        self._specs = specs
        self._telling = telling

    @property
    def queued(self) -> int:
        """How many attempts nodes have that did not begin, as far as is known."""
        return len(self._ahead)

    def fill(self, now: float, remaining_s: float) -> None:
        """Queue on each node what would be placed next."""
        for node, shape, count in self._ahead.wanted():
            begin_s = remaining_s - self._ahead.patience_s
            for attempt in self._placement.take_next(node, shape, count, begin_s):
                order = self._orders.pop(attempt)
                slot = Slot(node)
                self._live[attempt] = Live(order, (slot,), now, queued=True)
                self._ahead.queued(node, attempt, shape, now)
                self._telling.queue(node, order, remaining_s)

    def started(self, live: Live) -> None:
        """An attempt was given places of its own."""
        self._ahead.started(live.nodes[0], self._shape_of(live))

    def follow(self, node: int, ended: Optional[Live], attempt: object, now: float) -> bool:
        """A queued attempt runs in the slot of one that ended; whether to queue more soon."""
        live = self._live.get(str(attempt))
        if live is None:
            return False
        shape = self._shape_of(live)
        if live.queued:
            self._ahead.left(node, live.order.attempt, now)
            self._ahead.started(node, shape)
        live.queued, live.since = False, now
        if ended is not None and not ended.queued:
            ended.followed = True
            live.slots = ended.slots
            self._placement.take_over(ended.order.attempt, live.order.attempt, now)
        return self._ahead.is_low(node, shape)

    def ended(self, live: Live, now: float, remaining_s: Optional[float]) -> None:
        """Learn from an end. What should have followed there, and did not, does so now.

        ``remaining_s`` None: nothing starts any more.
        """
        node, shape = live.nodes[0], self._shape_of(live)
        if live.queued:
            self._ahead.left(node, live.order.attempt, now)
            return
        good = live.verdict is None
        self._ahead.ended(node, shape, now - live.since if good else None)
        if not good or live.followed or remaining_s is None:
            return
        attempt = self._ahead.first(node, shape)
        if attempt is not None:  # it was on its way when the agent looked for one
            self.follow(node, live, attempt, now)
            following = self._live[attempt]
            self._telling.run(following.order, following.slots, remaining_s, queued=True)

    def unstarted(self, node: int, fields: Fields, now: float) -> List[Fields]:
        """A node hands back what it had queued: it waits again, where it stood.

        Returns the orders to stop that crossed it on the way: the node knew nothing of theirs.
        """
        if not fields.get("more"):
            self._ahead.returned(node)
        stops: List[Fields] = []
        for attempt in map(str, fields.get("attempts", ())):
            live = self._live.get(attempt)
            if live is not None and live.nodes == (node,):
                del self._live[attempt]
                if live.queued:
                    self._ahead.left(node, attempt, now)
                else:  # it was told to begin when it was on its way back already
                    self._ahead.ended(node, self._shape_of(live), None)
                self._placement.put_back(attempt)
                self._orders[attempt] = live.order
                if live.stop is not None:
                    stops.append(live.stop)
        return stops

    def ask_back(self, node: Optional[int] = None) -> None:
        """Ask a node, or all, for what is queued there."""
        for index in self._ahead.nodes() if node is None else (node,):
            if self._ahead.ask_back(index):
                self._telling.withdraw(index)

    def close(self, node: int) -> None:
        """Nothing more begins on a node: it is bad, or its agent leaves."""
        self._placement.close_node(node)
        self.ask_back(node)

    def ask_back_idle(self, now: float) -> None:
        """Ask for queues that stand still or are too long: others may have room."""
        for node in self._ahead.to_ask_back(now):
            self._telling.withdraw(node)

    def forget(self, node: int) -> None:
        """The node, or its agent, is gone."""
        self._ahead.forget(node)

    def _shape_of(self, live: Live) -> Shape:
        return self._specs[live.order.payload_id].shape
