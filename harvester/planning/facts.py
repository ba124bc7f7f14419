"""What the planner is told and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from harvester.model import (
    AllocationState,
    Attempt,
    AttemptId,
    BackfillWindow,
    Shape,
    Tag,
    TaskId,
)
from harvester.site import Site


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingAttempt:
    """An attempt in state LEASED: ours to order."""

    attempt: AttemptId
    task: TaskId
    shape: Shape
    expected_s: float | None  # learned or declared median; None: nobody knows
    checkpointable: bool
    priority: int = 0
    waiting_s: float = 0.0
    limit_s: float | None = None  # time limit of one attempt
    high_s: float | None = None  # learned: nine in ten take no longer
    # Longest run of this point that walltime cut off and that saved nothing, or its time limit.
    cut_s: float = 0.0
    grace_s: float = 0.0  # from the warning to the kill, when its allocation ends
    handed_back_by: tuple[Tag, ...] = ()  # allocations that would not start it: not again there
    forbidden: str | None = None  # why the site does not let it run at all, as a sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationFacts:
    """An allocation in flight."""

    tag: Tag
    state: AllocationState
    queue: str
    nodes: int
    walltime_s: float
    remaining_s: float | None = None  # until the drain point; None while it has not started
    accepting: bool = False  # its runner is up, not draining, and has seen this epoch
    ordered: tuple[WaitingAttempt, ...] = ()  # ordered there, not started
    running: tuple[WaitingAttempt, ...] = ()  # running there; waiting_s is then the run time so far
    queued_s: float = 0.0
    joined: bool = False  # a user's own job: capacity that no budget counts and nobody cancels


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanInput:
    """Everything that a planning step may look at."""

    site: Site
    waiting: tuple[WaitingAttempt, ...]
    allocations: tuple[AllocationFacts, ...]
    unleased: int = 0  # points the central service could hand out to us now
    # The service, asked after our last delivery, has nothing more. Without that word nothing is
    # closed or cancelled for lack of work: the results under way may bring new points.
    nothing_more: bool = False
    typical: WaitingAttempt | None = None  # stands for an unleased point: the newest task's shape
    # Queue -> queued and running jobs, not ours: of this user, and of all members of the project.
    other_jobs: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    project_jobs: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    submissions_left: int = 0  # budget; 0 also while the breaker is open
    windows: tuple[BackfillWindow, ...] = ()  # as of now; () where nobody has looked just now
    walltime_step_s: float = 1.0  # the batch system rounds requests up to a multiple of this
    node_hours_left: float | None = None  # after what live allocations may still use
    task_node_hours_left: Mapping[TaskId, float] = field(
        default_factory=dict
    )  # of tasks with a budget, after what their ended attempts took
    # Failures by the site's fault since a task's last sound run, oldest first.
    site_faults: Mapping[TaskId, tuple[Attempt, ...]] = field(default_factory=dict)
    now: float = 0.0  # wall clock, for maintenance windows and trials
    stopping: bool = False  # STOP file or a drain request: submit and order nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultSeries:
    """Attempts of a task that the site failed, one after another: it is under trial."""

    count: int
    since: float  # end of the first, wall clock
    last: Attempt
    trial_at: float  # when the next attempt may be made, wall clock


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAllocation:
    """An allocation to submit."""

    queue: str
    nodes: int
    walltime_s: float
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The answer. ``blocked`` says in one sentence each why attempts cannot run."""

    submit: tuple[NewAllocation, ...] = ()
    orders: tuple[tuple[AttemptId, Tag], ...] = ()
    lease: int = 0  # points to ask the central service for
    close: tuple[Tag, ...] = ()  # running allocations that will get no more orders
    cancel: tuple[tuple[Tag, str], ...] = ()  # queued ones that nobody needs any more
    blocked: Mapping[AttemptId, str] = field(default_factory=dict)
    forbidden: Mapping[AttemptId, str] = field(default_factory=dict)  # of these, by rule or budget
    on_trial: Mapping[TaskId, FaultSeries] = field(default_factory=dict)
    resting: Mapping[AttemptId, str] = field(default_factory=dict)  # of blocked: after a trial
    notes: tuple[str, ...] = ()
