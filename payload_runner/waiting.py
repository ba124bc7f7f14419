"""Payloads that wait for a place, by their shape. Pure."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import List, Optional, Set, Tuple

from payload_runner.protocol import Shape

MARGIN = 1.1  # payloads take longer than expected
# What saves checkpoints may start while there is time to load one and get somewhere.
USEFUL_S = 5.0


@dataclass(frozen=True)
class Request:
    """A payload that waits for a place."""

    attempt: str
    shape: Shape
    expected_s: Optional[float] = None  # None: nobody knows
    checkpointable: bool = False
    priority: int = 0
    notice_s: float = 0.0  # from being told to leave a node until it has left it

    def done_by(self, now: float) -> Optional[float]:
        """When it is expected to end if it starts now, with margin."""
        return None if self.expected_s is None else now + self.expected_s * MARGIN


class Group:
    """Waiting requests of one shape, and the nodes where one more may fit."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.queue: List[Tuple[int, int, str]] = []  # heap of (-priority, arrival, attempt)
        self.hopeful: List[Tuple[int, int]] = []  # heap of (free GPU units when added, node)
        self.members: Set[int] = set()
        self.impossible: Optional[str] = None
        self.judged = False

    def hope(self, node: int, free_units: int) -> None:
        """Something on this node ended: it may have room again."""
        if node not in self.members:
            self.members.add(node)
            heapq.heappush(self.hopeful, (free_units, node))
