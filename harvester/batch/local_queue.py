"""The queue of the local batch system: what a job asks for, and which jobs start where.

Pure. First in, first out: a job at the head that does not fit yet holds back those behind it, so
that large jobs are not starved. Held jobs are passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from payload_runner.protocol import NodeShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The virtual cluster: ``nodes`` nodes named vnode1, vnode2, ... of one shape."""

    nodes: int
    node: NodeShape
    kill_s: float  # from SIGTERM to SIGKILL

    @property
    def node_names(self) -> tuple[str, ...]:
        return tuple(f"vnode{number}" for number in range(1, self.nodes + 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """A job as it was submitted; never changes. ``cores_per_node`` 0 asks for whole nodes."""

    id: str
    tag: str
    nodes: int
    walltime_s: float
    directory: str
    script: str  # its text: what was submitted counts, as with any batch system
    queue: str = ""
    gpus_per_node: int = 0
    cores_per_node: int = 0
    memory_mb_per_node: int = 0
    warn_s: float = 0.0
    exclude_nodes: tuple[str, ...] = ()
    requeue: bool = False
    held: bool = False  # from its submission until it is released
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Placement:
    """Nodes of a job, and the GPU indexes that it holds on each of them."""

    node_names: tuple[str, ...] = ()
    gpus: tuple[int, ...] = ()


class Phase(Enum):
    """Where an unfinished job is."""

    QUEUED = "queued"
    HELD = "held"
    RUNNING = "running"
    ENDING = "ending"  #: its shepherd was told to end it


@dataclass(frozen=True, slots=True)
class _Room:
    gpus: frozenset[int]
    cores: int
    memory_mb: int


def starts(
    cluster: Cluster, busy: Iterable[tuple[JobSpec, Placement]], waiting: Sequence[JobSpec]
) -> Iterator[tuple[JobSpec, Placement]]:
    """The jobs of ``waiting``, in order, that can start beside the ``busy`` ones."""
    taken = list(busy)
    for job in waiting:
        placement = _place(cluster, taken, job)
        if placement is None:
            return
        taken.append((job, placement))
        yield job, placement


def why_impossible(cluster: Cluster, job: JobSpec) -> str | None:
    """Why ``job`` can never run on an idle cluster, as a clause; None if it can."""
    node = cluster.node
    asks = (
        ("nodes", job.nodes, len(set(cluster.node_names) - set(job.exclude_nodes))),
        ("GPUs per node", job.gpus_per_node, node.gpus),
        ("cores per node", job.cores_per_node, node.cores),
        ("MB of memory per node", job.memory_mb_per_node, node.memory_mb or None),
    )
    for what, asked, present in asks:
        if present is not None and asked > present:
            return f"it asks for {asked} {what}, and there are {present}"
    if job.nodes < 1 or job.walltime_s <= 0:
        return f"it asks for {job.nodes} nodes and {job.walltime_s:g} s; both must be above zero"
    return None


def _place(
    cluster: Cluster, taken: Iterable[tuple[JobSpec, Placement]], job: JobSpec
) -> Placement | None:
    rooms = {
        name: room
        for name, room in _rooms(cluster, taken).items()
        if name not in job.exclude_nodes and _fits(cluster, room, job)
    }
    for room in rooms.values():
        # One environment variable speaks for all nodes of a job, so the indexes must be alike.
        gpus = sorted(room.gpus)[: job.gpus_per_node]
        names = [name for name, other in rooms.items() if other.gpus.issuperset(gpus)]
        if len(names) >= job.nodes:
            return Placement(tuple(names[: job.nodes]), tuple(gpus))
    return None


def _rooms(cluster: Cluster, taken: Iterable[tuple[JobSpec, Placement]]) -> dict[str, _Room]:
    node = cluster.node
    idle = _Room(frozenset(range(node.gpus)), node.cores, node.memory_mb)
    rooms = dict.fromkeys(cluster.node_names, idle)
    for job, placement in taken:
        for name in placement.node_names:
            room = rooms.get(name)
            if room is None:
                continue  # the cluster was made smaller while this job ran
            rooms[name] = _Room(
                room.gpus.difference(placement.gpus),
                room.cores - _cores(cluster, job),
                room.memory_mb - job.memory_mb_per_node,
            )
    return rooms


def _fits(cluster: Cluster, room: _Room, job: JobSpec) -> bool:
    memory_counts = cluster.node.memory_mb > 0
    return (
        len(room.gpus) >= job.gpus_per_node
        and room.cores >= _cores(cluster, job)
        and (not memory_counts or room.memory_mb >= job.memory_mb_per_node)
    )


def _cores(cluster: Cluster, job: JobSpec) -> int:
    return job.cores_per_node or cluster.node.cores
