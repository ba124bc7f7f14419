"""What a node has, what is free of it, and what a payload takes from it. Pure.

GPUs are counted in thousandths, so that shares add up without floating-point dust.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple

from payload_runner.protocol import NodeShape, Shape

WHOLE = 1000  # thousandths of a GPU


@dataclass(frozen=True)
class Need:
    """What one payload takes from one node of a given kind."""

    whole_gpus: int = 0
    share: int = 0  # thousandths of one more GPU, below WHOLE
    cores: int = 0  # 0: not pinned, none reserved
    memory_mb: int = 0


@dataclass(frozen=True)
class Grant:
    """What one payload got from one node: (GPU, thousandths), cores, memory."""

    gpus: Tuple[Tuple[int, int], ...]
    cores: Tuple[int, ...]
    memory_mb: int


def need_of(shape: Shape, node: NodeShape) -> Need:
    """What ``shape`` takes from such a node; the share of its GPUs where it says nothing else."""
    units = _units(shape.gpus_per_node)
    if 0 < shape.gpus_per_node < 1:
        whole, share = 0, max(1, units)
    else:
        whole, share = -(-units // WHOLE), 0  # two and a half GPUs take three
    total = node.gpus * WHOLE
    taken = whole * WHOLE + share
    cores = shape.cores_per_node or (node.cores * taken // total if total else 0)
    if taken == 0 and not cores:
        cores = 1
    memory = shape.memory_mb_per_node or (node.memory_mb * taken // total if total else 0)
    return Need(whole, share, cores, memory if node.memory_mb else 0)


def can_ever_hold(node: NodeShape, shape: Shape) -> bool:
    """Whether an empty node of this kind has room for one node's part of ``shape``."""
    return Room(node).fits(need_of(shape, node))


class Room:
    """What is free on one node."""

    def __init__(self, node: NodeShape) -> None:
        self.node = node
        self.gpus: Dict[int, int] = dict.fromkeys(range(node.gpus), WHOLE)
        self.cores: List[int] = list(range(node.cores))
        self.memory_mb = node.memory_mb
        self.free_units = node.gpus * WHOLE

    def copy(self) -> Room:
        """An independent copy, to try things on."""
        other = Room(NodeShape(gpus=0, cores=0))
        other.node = self.node
        other.gpus = dict(self.gpus)
        other.cores = list(self.cores)
        other.memory_mb = self.memory_mb
        other.free_units = self.free_units
        return other

    def fits(self, need: Need) -> bool:
        """Whether ``need`` is free now."""
        if len(self.cores) < need.cores or self.memory_mb < need.memory_mb:
            return False
        if self.free_units < need.whole_gpus * WHOLE + need.share:
            return False
        if need.whole_gpus:
            return sum(1 for free in self.gpus.values() if free == WHOLE) >= need.whole_gpus
        return need.share == 0 or self._gpu_for(need.share) is not None

    def take(self, need: Need) -> Grant:
        """Reserve ``need``, which must fit: whole GPUs in order, shares where least is left."""
        taken = self._take_gpus(need)
        cores = self._take_cores(need.cores, taken[0][0] if taken else 0)
        self.memory_mb -= need.memory_mb
        return Grant(taken, cores, need.memory_mb)

    def give_back(self, grant: Grant) -> None:
        """Undo :meth:`take`."""
        for index, units in grant.gpus:
            self.gpus[index] += units
            self.free_units += units
        self.cores = sorted([*self.cores, *grant.cores])
        self.memory_mb += grant.memory_mb

    def _take_gpus(self, need: Need) -> Tuple[Tuple[int, int], ...]:
        whole = [index for index, free in self.gpus.items() if free == WHOLE][: need.whole_gpus]
        taken = [(index, WHOLE) for index in whole]
        if need.share:
            index = self._gpu_for(need.share)
            assert index is not None
            taken.append((index, need.share))
        for index, units in taken:
            self.gpus[index] -= units
            self.free_units -= units
        return tuple(taken)

    def _gpu_for(self, share: int) -> Optional[int]:
        fitting = [(free, index) for index, free in self.gpus.items() if free >= share]
        return min(fitting)[1] if fitting else None

    def _take_cores(self, count: int, gpu: int) -> Tuple[int, ...]:
        """Cores as near as can be to where this GPU's even share of the cores begins."""
        if not count:
            return ()
        home = gpu * self.node.cores // self.node.gpus if self.node.gpus else 0
        # At or above home first: the block of the GPU before belongs to others.
        nearest = sorted(self.cores, key=lambda core: (core < home, abs(core - home)))[:count]
        chosen = set(nearest)
        self.cores = [core for core in self.cores if core not in chosen]
        return tuple(sorted(nearest))


class Node:
    """A node of the allocation: its room, and what runs there."""

    def __init__(self, host: str, shape: NodeShape) -> None:
        self.host = host
        self.room = Room(shape)
        self.running: Dict[str, Grant] = {}
        self.open = True  # takes new payloads


def shape_problem(shape: Shape) -> Optional[str]:
    """Why no payload can have this shape; None if it makes sense."""
    if shape.nodes_min < 1 or shape.nodes_max < shape.nodes_min or shape.ranks_per_node < 1:
        return (
            f"its shape has {shape.nodes_min} to {shape.nodes_max} nodes and "
            f"{shape.ranks_per_node} ranks on each; at least 1 is needed, and max not below min"
        )
    if min(shape.gpus_per_node, shape.cores_per_node, shape.memory_mb_per_node) < 0:
        return "its shape asks for less than no GPUs, cores or memory"
    return None


def slots_of(node: NodeShape) -> float:
    """The GPUs of a node; its cores where there are no GPUs."""
    return float(node.gpus or node.cores)


def slots_taken(grant: Grant, node: NodeShape) -> float:
    """What a grant takes of them."""
    if node.gpus:
        return sum(units for _, units in grant.gpus) / WHOLE
    return float(len(grant.cores))


def too_big(shape: Shape, able: int) -> str:
    """Why ``shape`` never runs where only ``able`` nodes can hold a part of it."""
    parts = [f"{shape.gpus_per_node:g} GPUs"]
    if shape.cores_per_node:
        parts.append(f"{shape.cores_per_node} cores")
    if shape.memory_mb_per_node:
        parts.append(f"{shape.memory_mb_per_node} MB")
    wanted = f"{shape.nodes_min} node{'s' if shape.nodes_min > 1 else ''} with {', '.join(parts)}"
    return f"asks for {wanted}; {able} node{'' if able == 1 else 's'} of this allocation have that"


def _units(gpus: float) -> int:
    # A third is 333 (three fit); 0.29 must not become 289 through its binary form.
    return int(gpus * WHOLE + 1e-6)
