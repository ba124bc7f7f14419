"""The leader's side of elastic payloads: nodes join them and leave them while they run.

The first node speaks for the payload: when its part ends, so does the payload, and with that node
the payload is lost. What becomes of the other parts changes its size, and ends it only where
fewer nodes than it needs are left.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Callable, Mapping, Tuple

from payload_runner.attempts import Fields, Live
from payload_runner.placement import Placement, Slot
from payload_runner.protocol import (
    AttemptResized,
    BadRecord,
    CheckpointSaved,
    from_fields,
    to_fields,
)
from payload_runner.settled import Emit


class Resizing:
    """Carries out what placement decided, and books who left."""

    def __init__(
        self,
        placement: Placement,
        emit: Emit,
        send: Callable[[int, str, Fields], None],
        hosts: Mapping[int, str],
    ) -> None:
        """``hosts``: names of the nodes that have joined the allocation, as they come."""
        self._placement = placement
        self._emit = emit
        self._send = send
        self._hosts = hosts

    def lend(self, live: Live, slots: Tuple[Slot, ...]) -> None:
        """These slots are the payload's as well; the caller starts it there."""
        live.slots += slots
        self._tell(live, "lent idle nodes")

    def take_back(self, live: Live, node: int) -> None:
        """Ask the payload to leave a node; its agent sees to it that it does."""
        live.leaving.add(node)
        reason = "its node is needed by a payload that waits"
        self._send(node, "give_back", {"attempt": live.order.attempt, "reason": reason})
        self._tell(live, reason)

    def saved(self, live: Live, fields: Fields) -> None:
        """A checkpoint was committed: nodes that join from now on begin with it."""
        if live.nodes_min is None:
            return
        try:
            file = from_fields(CheckpointSaved, fields).file
        except BadRecord:
            return  # they begin with an older one
        live.order = replace(live.order, checkpoint=file, checkpoint_of=live.order.attempt)

    def end(self, live: Live) -> None:
        """All of it is to end now: it gets nothing more, and nobody is missed."""
        if live.nodes_min is not None and not live.ending:
            live.ending = True
            self._placement.fix(live.order.attempt)

    def left(self, live: Live, node: int, fields: Fields, *, draining: bool) -> bool:
        """A part of a payload ended; whether that only made the payload smaller.

        ``fields``: the part's end. False: it has to be booked as an end that counts.
        """
        if live.nodes_min is None:
            return False
        others = tuple(slot for slot in live.slots if slot.node != node)
        failed = fields.get("state") == "failed" and node not in live.leaving
        missed = failed and not live.ending and not draining
        if node == live.nodes[0] or (missed and len(others) < live.nodes_min):
            self.end(live)
            return False
        live.slots = others
        live.leaving.discard(node)
        self._placement.leave(live.order.attempt, node)
        if missed:
            self._tell(live, f"it ended on one of its nodes: {fields.get('reason')}")
        return True

    def _tell(self, live: Live, reason: str) -> None:
        """Everyone who stays learns who else does."""
        attempt = live.order.attempt
        staying = [node for node in live.outstanding() if node not in live.leaving]
        hosts = tuple(self._hosts[node] for node in staying)
        for node in staying:
            self._send(node, "hosts", {"attempt": attempt, "hosts": list(hosts)})
        self._emit(AttemptResized.KIND, to_fields(AttemptResized(attempt, hosts, reason)))
