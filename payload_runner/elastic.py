"""Elastic payloads: which idle nodes they are lent, and which are taken back. Pure.

An elastic payload keeps its first ``nodes_min`` places, whatever comes; what it has beyond is on
loan. The rules:

- Lent is only what no waiting payload could start on now, and nothing that is reserved for one.
- Each change restarts the payload's workers, so loans to one payload come in bursts with a pause
  between them; the payload with the fewest nodes is served first.
- Taken back is just what waiting payloads need and nothing else gives them, and only while they
  can still do something useful after the notice that the borrower gets.
- The payload's first node, which speaks for it, is never taken back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Callable, Dict, FrozenSet, List, Mapping, Optional, Set, Tuple

from payload_runner.capacity import Need, Node, Room
from payload_runner.protocol import NodeShape, Shape
from payload_runner.waiting import Request

LOAN_PAUSE_S = 10.0  # between two loans to one payload
LOAN_WORTH_S = 60.0  # with less time left a restart of the workers costs more than it brings

NeedOf = Callable[[Shape, NodeShape], Need]


def is_elastic(shape: Shape) -> bool:
    """Whether a payload of this shape can have more nodes than it needs."""
    return shape.nodes_max > shape.nodes_min


@dataclass
class Running:
    """A payload that has its places. ``nodes`` in the order in which they joined."""

    request: Request
    nodes: List[int]
    started: float
    changed: float  # when it was given nodes last
    joined: int  # how many places it was ever given: the number of the next one
    leaving: Set[int] = field(default_factory=set)  # taken back, not yet given back
    barred: Set[int] = field(default_factory=set)  # its part on that node ended by itself
    fixed: bool = False  # being stopped: no loans any more

    def loans(self) -> List[int]:
        """Nodes that may be taken back now, newest first."""
        staying = [index for index in self.nodes if index not in self.leaving]
        surplus = len(staying) - self.request.shape.nodes_min
        return staying[::-1][:surplus] if surplus > 0 else []

    def forget(self, index: int) -> None:
        """It has no place on that node any more."""
        self.nodes.remove(index)
        self.leaving.discard(index)

    def may_leave(self, index: int) -> bool:
        """Whether its place on a node can be had within its notice."""
        return index in self.leaving or index in self.loans()


def loans(
    nodes: Mapping[int, Node],
    running: Mapping[str, Running],
    reserved: FrozenSet[int],
    need_of: NeedOf,
    now: float,
) -> Dict[str, List[int]]:
    """New loans: nodes by attempt. ``reserved``: nodes that a waiting payload is to get."""
    takers = [(attempt, item) for attempt, item in running.items() if _may_borrow(item, now)]
    lent: Dict[str, List[int]] = {}
    rooms: Dict[int, Room] = {}
    while takers:
        takers.sort(key=lambda taker: len(taker[1].nodes) + len(lent.get(taker[0], ())))
        attempt, item = takers[0]
        mine = lent.setdefault(attempt, [])
        index = None
        if len(item.nodes) + len(mine) < item.request.shape.nodes_max:
            index = _free_node(item, mine, nodes, rooms, reserved, need_of)
        if index is None:
            takers.pop(0)
        else:
            mine.append(index)
    return {attempt: indices for attempt, indices in lent.items() if indices}


class Recalls:
    """Which loans to take back now; ask for the first that waits, then for those behind it.

    ``taken``: what was found so far, as (attempt, node).
    """

    def __init__(
        self, nodes: Mapping[int, Node], running: Mapping[str, Running], need_of: NeedOf
    ) -> None:
        """``running``: the elastic payloads that run."""
        self.taken: List[Tuple[str, int]] = []
        self._nodes = nodes
        self._running = running
        self._need_of = need_of
        self._borrowers: Dict[int, List[str]] = {}  # who could leave, by node
        self._notice_s: Dict[int, float] = {}  # how long that may take
        for attempt, item in running.items():
            if item.fixed:
                continue  # it ends anyway
            for index in item.loans():
                self._borrowers.setdefault(index, []).append(attempt)
            for index in item.leaving:
                self._borrowers.setdefault(index, [])
            for index in (*item.loans(), *item.leaving):
                notice_s = max(self._notice_s.get(index, 0.0), item.request.notice_s)
                self._notice_s[index] = notice_s
        self._rooms = {index: self._room_to_come(index) for index in self._borrowers}

    def __bool__(self) -> bool:
        """Whether there is anything that could be taken back."""
        return any(self._borrowers.values())

    def for_first(self, shape: Shape, reserved: FrozenSet[int], in_s: float) -> None:
        """For the first that waits: ``reserved`` nodes that it is to have in ``in_s`` seconds."""
        for index in sorted(reserved & self._rooms.keys()):
            due = in_s <= self._notice_s[index]
            if not due or not self._make_room(index, shape):
                del self._rooms[index]  # nothing of it for those behind

    def for_follower(self, shape: Shape, spare_s: float) -> None:
        """For one behind the first, which has to start within ``spare_s`` seconds."""
        if shape.nodes_min > 1:
            return  # its turn comes when it is the first
        for index in sorted(self._rooms):
            if self._notice_s[index] <= spare_s and self._make_room(index, shape):
                return

    def _room_to_come(self, index: int) -> Room:
        """What is free on a node once those that are leaving it have left."""
        node = self._nodes[index]
        room = node.room.copy()
        for attempt, grant in node.running.items():
            borrower = self._running.get(attempt)
            if borrower is not None and index in borrower.leaving:
                room.give_back(grant)
        return room

    def _make_room(self, index: int, shape: Shape) -> bool:
        """Take back as few loans on a node as make room; none if all of them would not do."""
        node, room = self._nodes[index], self._rooms[index].copy()
        need = self._need_of(shape, node.room.node)
        left = list(self._borrowers[index])
        while left and not room.fits(need):
            room.give_back(node.running[left.pop(0)])
        if not room.fits(need):
            return False
        chosen = self._borrowers[index][: len(self._borrowers[index]) - len(left)]
        self.taken += [(attempt, index) for attempt in chosen]
        self._borrowers[index] = left
        room.take(need)
        self._rooms[index] = room
        return True


def _may_borrow(item: Running, now: float) -> bool:
    if item.fixed or item.leaving or len(item.nodes) >= item.request.shape.nodes_max:
        return False
    return item.changed == now or now - item.changed >= LOAN_PAUSE_S


def _free_node(
    item: Running,
    mine: List[int],
    nodes: Mapping[int, Node],
    rooms: Dict[int, Room],
    reserved: FrozenSet[int],
    need_of: NeedOf,
) -> Optional[int]:
    passed = {*item.nodes, *mine, *item.barred, *reserved}
    for index, node in sorted(nodes.items()):
        if not node.open or index in passed:
            continue
        room = rooms.setdefault(index, node.room.copy())
        need = need_of(item.request.shape, node.room.node)
        if room.fits(need):
            room.take(need)
            return index
    return None
