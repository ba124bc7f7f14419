"""What becomes of points and tasks: pure decisions, no clock, no database.

The rules are those of ``docs/native-protocol.md`` and, where a configuration names an iteration,
of PanDA: a new iteration starts when the number of unevaluated points falls below
``minUnevaluatedPoints`` and brings ``nPointsPerIteration - minUnevaluatedPoints`` new ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from harvester.errors import IllegalTransition
from harvester.model import AttemptState, Blame
from payload_runner.protocol import PENALTY_LOSS

TRIES = 3  # own failures that a point may have, as PanDA documents
ASK_LIMIT = 5000  # points of one ask; more come with the next
ASK_AHEAD = 2000  # points held ready where no loss can make later ones better


class PointState(Enum):
    """Where a point is in its life at the service."""

    WAITING = "waiting"  #: may be leased
    LEASED = "leased"  #: a harvester holds it
    DONE = "done"  #: has a loss
    FAILED = "failed"  #: its tries are used up; has the penalty loss
    PRUNED = "pruned"  #: stopped early
    CANCELLED = "cancelled"  #: its task ended before it was evaluated

    @property
    def is_settled(self) -> bool:
        """Whether later results are only recorded."""
        return self not in (PointState.WAITING, PointState.LEASED)


class TaskState(Enum):
    """Where a task is in its life."""

    RUNNING = "running"
    PAUSED = "paused"  #: gives out no points; what is leased goes on
    FINISHING = "finishing"  #: what is leased goes on, nothing new
    FINISHED = "finished"
    FAILED = "failed"  #: ended without a single loss
    CANCELLED = "cancelled"

    @property
    def is_over(self) -> bool:
        """Whether it has ended; only ``retry`` brings it back."""
        return self in (TaskState.FINISHED, TaskState.FAILED, TaskState.CANCELLED)


class Action(Enum):
    """What a user may ask of a task."""

    PAUSE = "pause"
    RESUME = "resume"
    FINISH = "finish"
    KILL = "kill"
    RETRY = "retry"


TASK_STEPS: Mapping[tuple[TaskState, Action], TaskState] = {
    (TaskState.RUNNING, Action.PAUSE): TaskState.PAUSED,
    (TaskState.PAUSED, Action.PAUSE): TaskState.PAUSED,
    (TaskState.PAUSED, Action.RESUME): TaskState.RUNNING,
    (TaskState.RUNNING, Action.RESUME): TaskState.RUNNING,
    (TaskState.RUNNING, Action.FINISH): TaskState.FINISHING,
    (TaskState.PAUSED, Action.FINISH): TaskState.FINISHING,
    (TaskState.FINISHING, Action.FINISH): TaskState.FINISHING,
    (TaskState.FINISHED, Action.FINISH): TaskState.FINISHED,
    (TaskState.RUNNING, Action.KILL): TaskState.CANCELLED,
    (TaskState.PAUSED, Action.KILL): TaskState.CANCELLED,
    (TaskState.FINISHING, Action.KILL): TaskState.CANCELLED,
    (TaskState.CANCELLED, Action.KILL): TaskState.CANCELLED,
    (TaskState.RUNNING, Action.RETRY): TaskState.RUNNING,
    (TaskState.PAUSED, Action.RETRY): TaskState.PAUSED,
    (TaskState.FINISHED, Action.RETRY): TaskState.RUNNING,
    (TaskState.FAILED, Action.RETRY): TaskState.RUNNING,
    (TaskState.CANCELLED, Action.RETRY): TaskState.RUNNING,
}


def act(state: TaskState, action: Action) -> TaskState:
    """The task's state after a user's action; repeating an action changes nothing.

    Raises:
        IllegalTransition: the task is past that.
    """
    found = TASK_STEPS.get((state, action))
    if found is None:
        raise IllegalTransition(f"a task that is {state.value} does not take {action.value!r}")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Points of a segment, or of all segments of a task, by state."""

    waiting: int = 0
    leased: int = 0
    done: int = 0
    failed: int = 0
    pruned: int = 0
    cancelled: int = 0

    @property
    def unevaluated(self) -> int:
        """Points that have been asked for and not settled."""
        return self.waiting + self.leased

    @property
    def generated(self) -> int:
        """Points that have been asked for."""
        return self.unevaluated + self.done + self.failed + self.pruned + self.cancelled


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a task's configuration says about its progress."""

    max_points: int  # of one segment
    parallel: int  # nParallelEvaluation, over all segments
    charge_limit: int  # maxEvaluationJobs, over all segments
    per_iteration: int | None = None  # nPointsPerIteration, None: ask asynchronously
    min_unevaluated: int = 0
    segments: int = 1
    learns: bool = True  # the sampler looks at losses; without, asking ahead costs nothing


# --- asking and leasing ---


def points_to_ask(rules: Rules, segment: Counts) -> int:
    """How many new points a segment needs now."""
    room = min(rules.max_points - segment.generated, ASK_LIMIT)
    if rules.per_iteration is None:
        share = math.ceil(rules.parallel / rules.segments)
        if segment.unevaluated >= share:
            return 0
        ahead = 0 if rules.learns else ASK_AHEAD
        return max(0, min(share + ahead - segment.unevaluated, room))
    # Below a minimum of 0 nothing can fall: an empty list starts the iteration then.
    if segment.unevaluated >= max(1, rules.min_unevaluated):
        return 0
    return max(0, min(max(1, rules.per_iteration - rules.min_unevaluated), room))


def points_to_lease(rules: Rules, task: Counts, asked: int) -> int:
    """How many of the points that a harvester asks for it may get from one task."""
    return max(0, min(asked, task.waiting, rules.parallel - task.leased))


def points_in_reach(rules: Rules, task: Counts) -> int:
    """How many points the task could still hand out now or soon."""
    to_come = rules.max_points * rules.segments - task.generated
    return max(0, min(task.waiting + to_come, rules.parallel - task.leased))


# --- results ---


class Outcome(Enum):
    """What an attempt's end means for its point."""

    LOSS = "loss"
    PRUNED = "pruned"
    CHARGED = "charged"  #: the point's own failure: one of its tries is used up
    UNCHARGED = "uncharged"  #: somebody else's fault

    @property
    def is_charged(self) -> bool:
        """Whether it counts against maxEvaluationJobs."""
        return self is not Outcome.UNCHARGED


def judge(state: AttemptState, blame: Blame | None) -> Outcome:
    """What a settling result means; ``state`` is final."""
    if state is AttemptState.SUCCEEDED:
        return Outcome.LOSS
    if state is AttemptState.PRUNED:
        return Outcome.PRUNED
    if state is AttemptState.FAILED and blame is Blame.POINT:
        return Outcome.CHARGED
    # Walltime to blame: no progress in three runs, which the harvester has counted already.
    if state is AttemptState.TIMED_OUT and blame in (Blame.POINT, Blame.WALLTIME):
        return Outcome.CHARGED
    return Outcome.UNCHARGED


@dataclass(frozen=True, slots=True)
class Standing:
    """A point before or after a result."""

    state: PointState
    tries: int  # used up by its own failures
    loss: float | None = None


def settle(
    point: Standing, outcome: Outcome, loss: float | None, *, current: bool, open_ended: bool
) -> Standing | None:
    """The point after a settling result, or None if the result comes too late to count.

    Args:
        current: the lease is the one that holds the point; without it the point stays where it
            is, waiting or leased to another, unless the result settles it.
        open_ended: the task may still give the point out again.
    """
    if point.state.is_settled:
        return None
    if outcome is Outcome.LOSS:
        return Standing(PointState.DONE, point.tries, loss)
    if outcome is Outcome.PRUNED:
        return Standing(PointState.PRUNED, point.tries, loss)
    tries = point.tries + (outcome is Outcome.CHARGED)
    if tries >= TRIES:
        return Standing(PointState.FAILED, tries, PENALTY_LOSS)
    if not current:
        return Standing(point.state, tries)
    return Standing(PointState.WAITING if open_ended else PointState.CANCELLED, tries)


# --- ends ---


@dataclass(frozen=True, slots=True)
class Ending:
    """A step towards a task's end, and why, for its log."""

    state: TaskState
    reason: str


def ending(
    state: TaskState, rules: Rules, task: Counts, *, charged: int, exhausted: bool
) -> Ending | None:
    """The task's next step by itself, or None.

    Args:
        charged: attempts that count against maxEvaluationJobs.
        exhausted: every segment's sampler has run out of new points.
    """
    if state.is_over:
        return None
    if task.unevaluated == 0:
        return _end(state, rules, task, exhausted)
    if state is not TaskState.FINISHING and charged >= rules.charge_limit:
        return Ending(
            TaskState.FINISHING,
            f"{charged} attempts were charged: maxEvaluationJobs is {rules.charge_limit}",
        )
    return None


def _end(state: TaskState, rules: Rules, task: Counts, exhausted: bool) -> Ending | None:
    complete = task.generated >= rules.max_points * rules.segments
    if not (complete or exhausted or state is TaskState.FINISHING):
        return None
    evaluated = task.done + task.pruned
    if evaluated == 0:
        return Ending(TaskState.FAILED, "no point was evaluated")
    why = "every point is settled" if complete else "no more points are to come"
    return Ending(TaskState.FINISHED, f"{evaluated} points were evaluated; {why}")
