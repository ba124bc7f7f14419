"""Which waiting payload goes where and when: pure decisions, no clock, no I/O.

Time is an argument (monotonic seconds), so are nodes and requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple


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
