"""What the leader remembers of attempts and of its nodes' health. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any, Dict, Optional, Protocol, Sequence, Set, Tuple

from payload_runner.placement import Slot
from payload_runner.protocol import Order, PayloadSpec
from payload_runner.waiting import Request

# So many different points that die within so many seconds, and none that succeeds, condemn a node.
QUICK_FAILURES = 3
QUICK_S = 10.0

# Ends of a part that had its warning: its like on the other nodes are still to have theirs.
_WARNED = ("preempted", "timed_out")
# Whose fault explains the others' when several nodes fail.
_EXPLAINS = {"node": 0, "site": 1}

Fields = Dict[str, Any]  # of a record; Any because it is JSON


class Launch(enum.Enum):
    """The launcher call of an MPI payload."""

    NOT_YET = "not yet"
    RUNNING = "running"
    OVER = "over"


@dataclass(frozen=True)
class LaunchEnd:
    """How that call ended. ``code`` None: it could not be started. ``said``: its last words."""

    attempt: str
    code: Optional[int]
    said: str = ""


class Launcher(Protocol):
    """Starts the ranks of MPI payloads; how a call ended comes as ``Conductor.launch_ended``."""

    def start(self, attempt: str, slots: Sequence[Slot]) -> None:
        """Call the site's launcher for these slots (rank order). Never fails here."""

    def abort(self, attempt: str) -> None:
        """End that call, if there is one. Calling twice is safe."""


@dataclass
class Live:
    """An attempt that was given to its nodes and has not ended.

    ``nodes_min``: an elastic one goes on with no fewer than these; None: all of its nodes or none.
    """

    order: Order
    slots: Tuple[Slot, ...]
    since: float
    nodes_min: Optional[int] = None
    leaving: Set[int] = field(default_factory=set)  # nodes that are being taken back
    ending: bool = False  # elastic: no part of it is to go on
    announced: bool = False
    verdict: Optional[Fields] = None  # the first end that was no success
    ends: Dict[int, Fields] = field(default_factory=dict)  # by node
    ready: Set[int] = field(default_factory=set)  # nodes that wait for the ranks of a launcher
    launch: Launch = Launch.NOT_YET
    queued: bool = False  # its node has it ahead of need; no place is taken
    followed: bool = False  # its place is another's already
    stop: Optional[Fields] = None  # the order to stop it, in case its node hands it back

    @property
    def nodes(self) -> Tuple[int, ...]:
        """In rank order; the first one speaks for the attempt."""
        return tuple(slot.node for slot in self.slots)

    def outstanding(self) -> Tuple[int, ...]:
        """Nodes that have not told its end."""
        return tuple(node for node in self.nodes if node not in self.ends)

    def end_on(self, node: int, fields: Fields) -> bool:
        """Note a node's end; whether it is the first bad one, so that the others have to stop."""
        self.ends[node] = fields
        if self.verdict is None and fields.get("state") != "succeeded":
            self.verdict = fields
            return True
        return False

    def farewell(self, host: str, end: Fields) -> Tuple[str, Fields]:
        """What the other nodes are told when the end of the part on ``host`` ends them all.

        Returns kind and fields of the message. Nothing is worth saving after a failure; but a
        part that was warned and left must not cost the first node its last checkpoint.
        """
        reason = f"it ended on node {host}: {end.get('reason')}"
        fields: Fields = {"attempt": self.order.attempt, "reason": reason}
        if self.nodes_min is None and end.get("state") in _WARNED:
            return "give_back", fields
        return "stop", {**fields, "outcome": "cancelled"}

    def outcome(self) -> Fields:
        """The one end made of all: the first bad one, else that of the first node.

        What a node or the site is to blame for explains whatever else failed: ranks die of broken
        connections before the loss of a node is noticed. Output is that of the first node that
        has any.
        """
        first = self.ends[self.nodes[0]]
        if self.verdict is None:
            return first
        told = self.verdict
        if told.get("state") == "failed":
            failed = [end for end in self.ends.values() if end.get("state") == "failed"]
            told = min([told, *failed], key=lambda end: _EXPLAINS.get(str(end.get("blame")), 9))
        added: Fields = {}
        if first.get("progress") or told.get("progress"):
            added["progress"] = True
        if not told.get("stderr"):
            words = (self.ends[node].get("stderr") for node in self.nodes)
            found = next((text for text in words if text), None)
            if found is not None:
                added["stderr"] = found
        return {**told, **added} if added else told


@dataclass(frozen=True)
class Drain:
    """Nothing starts any more. ``deadline``: what runs is being ended, all of it by then."""

    reason: str
    outcome: str = "preempted"  # of what is cut off
    deadline: Optional[float] = None


def request_for(order: Order, spec: PayloadSpec) -> Request:
    """What placement needs to know of an order."""
    return Request(
        order.attempt,
        spec.shape,
        spec.expected_s if order.expected_s is None else order.expected_s,
        spec.checkpoint is not None,
        order.priority,
        spec.warn_s + spec.kill_s,
    )


def gpu_names(slots: Tuple[Slot, ...]) -> Tuple[str, ...]:
    """The GPUs of an attempt as events name them: ``host:index`` or ``host:index/share``."""
    names = []
    for slot, host in zip(slots, slots[0].hosts):
        for gpu in slot.gpus:
            share = "" if gpu.share == 1.0 else f"/{gpu.share:g}"
            names.append(f"{host}:{gpu.index}{share}")
    return tuple(names)


class Health:
    """Which nodes let payloads die at once."""

    def __init__(self) -> None:
        self._good: Set[int] = set()
        self._condemned: Set[int] = set()
        self._quick: Dict[int, Set[str]] = {}
        self._own: Dict[int, Set[str]] = {}

    def ended(self, node: int, point: str, fields: Fields) -> Optional[str]:
        """Note an end; why the node should get nothing more; told once."""
        if fields.get("state") == "succeeded":
            self._good.add(node)
            self._quick.pop(node, None)
            self._own.pop(node, None)
            return None
        if fields.get("state") != "failed" or node in self._good | self._condemned:
            return None
        if fields.get("blame") == "node":
            self._own.setdefault(node, set()).add(point)
        if float(fields.get("duration_s") or 0.0) < QUICK_S:
            self._quick.setdefault(node, set()).add(point)
        sentence = self._sentence(node, str(fields.get("reason")))
        if sentence is not None:
            self._condemned.add(node)
        return sentence

    def _sentence(self, node: int, last: str) -> Optional[str]:
        if len(self._own.get(node, ())) >= QUICK_FAILURES:
            return f"{QUICK_FAILURES} payloads could not run on it; the last: {last}"
        elsewhere = bool(self._good - {node})
        if elsewhere and len(self._quick.get(node, ())) >= QUICK_FAILURES:
            return (
                f"{QUICK_FAILURES} points died on it within {QUICK_S:g} s each while others "
                f"succeed elsewhere; the last: {last}"
            )
        return None
