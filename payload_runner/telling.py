"""What the leader tells agents about orders: runs, queues, and each payload's definition once."""

from __future__ import annotations

from typing import Callable, Iterable, Mapping, Set, Tuple

from payload_runner.attempts import Fields
from payload_runner.placement import Slot
from payload_runner.protocol import Order, PayloadSpec, to_fields

Send = Callable[[int, str, Fields], None]


class Telling:
    """Words to agents that go with an order."""

    def __init__(self, specs: Mapping[str, PayloadSpec], send: Send) -> None:
        self._specs = specs
        self._send = send
        self._told: Set[Tuple[int, str]] = set()  # (node, payload) that it knows

    def run(
        self, order: Order, slots: Iterable[Slot], remaining_s: float, *, queued: bool = False
    ) -> None:
        """Start an attempt's parts in these slots; ``remaining_s`` until the drain point.

        ``queued``: it was queued there, and only begins if it still is.
        """
        for slot in slots:
            self._define(slot.node, order.payload_id)
            run = {"order": to_fields(order), "slot": to_fields(slot)}
            run["remaining_s"] = round(remaining_s, 3)
            if queued:
                run["queued"] = True
            self._send(slot.node, "run", run)

    def queue(self, node: int, order: Order, remaining_s: float) -> None:
        """Start it there when one of its shape has ended well."""
        self._define(node, order.payload_id)
        left = {"remaining_s": round(remaining_s, 3)}
        self._send(node, "queue", {"order": to_fields(order), **left})

    def withdraw(self, node: int) -> None:
        """Ask for what is queued there; the answer is ``unstarted``."""
        self._send(node, "withdraw", {})

    def agents_replaced(self) -> None:
        """Others have come: they know nothing yet."""
        self._told.clear()

    def _define(self, node: int, payload_id: str) -> None:
        if (node, payload_id) not in self._told:
            self._told.add((node, payload_id))
            self._send(node, "define", to_fields(self._specs[payload_id]))
