"""The nouns of the design as values (DESIGN.md section 2). No behaviour beyond small predicates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NewType

from payload_runner.protocol import FileRef, PayloadSpec, Shape

__all__ = [
    "Allocation",
    "AllocationState",
    "Attempt",
    "AttemptId",
    "AttemptState",
    "BackfillWindow",
    "Blame",
    "FileRef",
    "JobId",
    "LeaseId",
    "LeasedPoint",
    "PayloadSpec",
    "PointId",
    "Shape",
    "Tag",
    "TaskId",
]

TaskId = NewType("TaskId", str)
PointId = NewType("PointId", str)
LeaseId = NewType("LeaseId", str)  # <task>.<point>.<grant>
AttemptId = NewType("AttemptId", str)  # <lease>.<try>
Tag = NewType("Tag", str)
JobId = NewType("JobId", str)


class AttemptState(Enum):
    """Where an attempt is in its life. Delivery is another column, not a state."""

    LEASED = "leased"  #: made for a leased point, not ordered yet
    ORDERED = "ordered"  #: stands in an allocation's fsynced order log
    RUNNING = "running"  #: its payload was spawned
    SUCCEEDED = "succeeded"  #: exit 0 and a finite loss
    FAILED = "failed"  #: blame says whose fault
    TIMED_OUT = "timed_out"  #: cut off by walltime or by its own time limit
    PREEMPTED = "preempted"  #: the batch system took the allocation away
    PRUNED = "pruned"  #: stopped early by a report's answer
    CANCELLED = "cancelled"  #: stopped on request
    LOST = "lost"  #: no word of it any more; provisional, a late result still counts

    @property
    def is_final(self) -> bool:
        """Whether nothing but a late result can change it."""
        return self not in (AttemptState.LEASED, AttemptState.ORDERED, AttemptState.RUNNING)


class Blame(Enum):
    """Whom a failure is charged to. Only ``POINT`` uses up a point's tries."""

    POINT = "point"
    NODE = "node"
    SITE = "site"
    WALLTIME = "walltime"


class AllocationState(Enum):
    """Where a batch job is in its life."""

    PLANNED = "planned"  #: decided, nothing on the outside yet
    SUBMITTING = "submitting"  #: intent is in the ledger; the batch system may or may not have it
    QUEUED = "queued"
    HELD = "held"
    RUNNING = "running"
    DRAINING = "draining"  #: finishes what runs, takes nothing new
    ENDED = "ended"
    UNKNOWN = "unknown"  #: the batch system does not answer or does not list it

    @property
    def is_live(self) -> bool:
        """Whether it occupies or will occupy the batch system."""
        return self not in (AllocationState.PLANNED, AllocationState.ENDED)


@dataclass(frozen=True, slots=True)
class BackfillWindow:
    """Nodes of a queue that stand idle now, and until when a job may have them."""

    queue: str
    nodes: int
    until: float  # wall clock; infinite where nobody is known to need them


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasedPoint:
    """A point that this harvester may evaluate until the lease runs out."""

    lease: LeaseId
    task: TaskId
    point: PointId
    parameters: Any  # JSON object, or [model_id, object] in segmented PanDA searches
    payload_id: str
    segment: str | None = None
    priority: int = 0
    expires_s: float = 3600.0  # from the moment of the answer
    attempts_before: int = 0  # under earlier leases, for display


@dataclass(frozen=True, slots=True)
class RecordRef:
    """Where a record of a log lies: file, byte offset of its line, SHA-256 of the line in hex.

    ``log`` is relative to the spool, or a name in the state directory.
    """

    log: str
    offset: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try at a point."""

    attempt: AttemptId
    lease: LeaseId
    task: TaskId
    point: PointId
    number: int
    state: AttemptState
    blame: Blame | None = None
    reason: str | None = None
    tag: Tag | None = None
    node: str | None = None
    loss: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    resumed_from: AttemptId | None = None
    checkpoint: FileRef | None = None
    progress: bool = False
    delivered: bool = False
    proof: RecordRef | None = None  # the event that brought its outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """One batch job of ours."""

    tag: Tag
    state: AllocationState
    nodes: int
    walltime_s: float
    queue: str = ""
    job_id: JobId | None = None
    gpus_per_node: int = 0
    submitted_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    reason: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)  # JSON, for views only
