"""What the harvester needs of a batch system, and the values that cross that line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from harvester.model import BackfillWindow, JobId, Tag


class JobState(Enum):
    """A batch job as its batch system sees it."""

    QUEUED = "queued"
    HELD = "held"
    RUNNING = "running"
    ENDING = "ending"  #: still holds its nodes, but is on its way out
    ENDED = "ended"
    UNKNOWN = "unknown"  #: listed with a state that we do not know


class JobEnd(Enum):
    """How an ended job ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    PREEMPTED = "preempted"
    NODE_FAILED = "node_failed"
    OUT_OF_MEMORY = "out_of_memory"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchJob:
    """A job to submit. The tag is its name in the batch system."""

    tag: Tag
    nodes: int
    walltime_s: float  # systems that count in minutes round up
    directory: Path  # the allocation's directory; batch.out goes there
    command: tuple[str, ...]  # what the script executes on its first node
    queue: str = ""
    queue_kind: str = "queue"  # queue | qos: what Slurm's name for it means
    account: str = ""
    gpus_per_node: int = 0
    gpu_request: str = "gres"  # how Slurm is asked for them: gres | gpus-per-node
    cores_per_node: int = 0
    memory_mb_per_node: int = 0
    warn_s: float = 0.0  # signal the batch script this long before the end; 0: do not
    exclude_nodes: tuple[str, ...] = ()
    directives: tuple[str, ...] = ()  # of the site, verbatim, without the comment prefix
    prologue: tuple[str, ...] = ()  # shell lines of the site, before the command
    requeue: bool = False
    held: bool = False  # does not start before somebody releases it


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedJob:
    """One of the user's jobs as one query showed it."""

    job_id: JobId
    name: str  # our tag, if it is ours
    state: JobState
    end: JobEnd | None = None
    reason: str = ""  # the batch system's own words (pending reason, exit)
    queue: str = ""
    nodes: int = 0
    restarts: int = 0
    node_names: str = ""
    user: str = ""  # whose it is, where a look lists the jobs of others too
    account: str = ""  # the project that it is charged to, where the batch system says so


@dataclass(frozen=True, slots=True)
class Observation:
    """Answer of one query: every job of the user that the batch system lists now.

    A job that is missing here is not ended for that; a second witness is needed. ``of_project``
    are the jobs of all members of the project that the adapter was told to count, ours included;
    () without one. ``extra_commands`` is how many commands it took beyond ``look_commands``.
    """

    jobs: tuple[ObservedJob, ...]
    of_project: tuple[ObservedJob, ...] = ()
    extra_commands: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a batch system can do."""

    accounting: bool = False  # `ended` knows jobs that are no longer listed
    requeue: bool = False  # `BatchJob.requeue` means something
    held_submission: bool = False  # so do `BatchJob.held` and `release`
    exclude_nodes: bool = False
    walltime_step_s: float = 60.0  # requests are rounded up to a multiple of this
    look_commands: int = 1  # how many commands one `observe` takes, whatever the number of jobs
    window_commands: int = 0  # how many one `backfill_windows` takes; 0: it knows of none
    name_commands: int = 0  # how many `ended` takes for each name; 0: one for all names together


class BatchSystem(Protocol):
    """A batch system. One command each, with a deadline; safe to call from a worker thread.

    Every method raises ``BatchUnavailable`` when the command fails, times out or prints what
    cannot be parsed strictly, and never answers an error with an empty value.
    """

    name: str
    capabilities: Capabilities

    def render(self, job: BatchJob) -> str:
        """The batch script. Pure."""

    def submit(self, job: BatchJob, script: Path) -> JobId:
        """Submit ``script`` (as rendered). Not safe to repeat blindly: find the tag first.

        Raises:
            SubmissionRefused: the batch system said no and did not take the job.
            BatchUnavailable: unknown whether it was taken.
        """

    def observe(self) -> Observation:
        """All jobs of this user, ours or not, and those of the project to count, in one query."""

    def backfill_windows(self) -> tuple[BackfillWindow, ...]:
        """Whole nodes that stand idle now, for each queue; windows of one queue may overlap.

        A snapshot: they may be gone at the next moment. () where the batch system does not tell.
        """

    def ended(self, jobs: Sequence[JobId], tags: Sequence[Tag]) -> tuple[ObservedJob, ...]:
        """What accounting knows of these jobs or names; unknown ones are left out.

        One query for jobs alone, or for names alone where the batch system can be asked for many.

        Only final states and the current ones of jobs it still lists. Without accounting: ().
        """

    def cancel(self, jobs: Sequence[JobId]) -> None:
        """Ask for the jobs' end. Jobs that are gone already are fine."""

    def release(self, jobs: Sequence[JobId]) -> None:
        """Let jobs start that were submitted held. Jobs that are gone or not held are fine.

        Raises:
            BatchUnavailable: also where somebody else holds one, in the batch system's words.
        """
