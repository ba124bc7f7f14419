"""How payload shapes fill nodes. Pure arithmetic that orders and sizing share."""

from __future__ import annotations

import functools
import math

from payload_runner.capacity import Room, need_of
from payload_runner.protocol import NodeShape, Shape

# Sums of shares such as 1/3 miss whole numbers by a few ulps; a node is not lost to that.
_ROUNDING = 1e-9


@functools.lru_cache(maxsize=1024)
def payloads_per_node(shape: Shape, node: NodeShape) -> int:
    """How many payloads of this shape one node holds at once; 0 when not even one fits.

    Counted by filling an empty node with the runner's own arithmetic.
    """
    room, need = Room(node), need_of(shape, node)
    count = 0
    while room.fits(need):
        room.take(need)
        count += 1
    return count


@functools.lru_cache(maxsize=1024)
def node_share(shape: Shape, node: NodeShape) -> float:
    """How many nodes' worth of room a payload takes: 0.25 for one of four GPUs, 8 for 8 nodes.

    Elastic payloads count with their smallest size. Infinite when no node can hold it.
    """
    per_node = payloads_per_node(shape, node)
    return shape.nodes_min / per_node if per_node else math.inf


def slots(shape: Shape, node: NodeShape, nodes: int) -> int:
    """How many payloads of this shape run at once on ``nodes`` nodes."""
    return nodes // shape.nodes_min * payloads_per_node(shape, node)


def whole_nodes(shares: float) -> int:
    """Nodes that hold so many shares."""
    return math.ceil(shares - _ROUNDING)


def misfit(shape: Shape, node: NodeShape) -> str | None:
    """What a node lacks for this shape, as the rest of a sentence; None when it fits."""
    if payloads_per_node(shape, node):
        return None
    if shape.gpus_per_node > node.gpus:
        return f"needs {shape.gpus_per_node:g} GPUs on a node, and a node has {node.gpus}"
    if shape.cores_per_node > node.cores:
        return f"needs {shape.cores_per_node} cores on a node, and a node has {node.cores}"
    return f"needs {shape.memory_mb_per_node} MB on a node, and a node has {node.memory_mb}"
