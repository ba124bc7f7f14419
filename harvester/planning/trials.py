"""Restraint after failures that are the site's fault: one attempt at a time, further and further
apart, until one is sound. Pure.

Such failures are charged to nobody, so that no limit of the search ends them: an image that was not
brought, or a full disk, would be met by attempt after attempt, and batch jobs for them.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from harvester.model import Attempt, AttemptId, PointId, TaskId
from harvester.planning.facts import FaultSeries, PlanInput, WaitingAttempt
from harvester.planning.orders import in_line

# Attempts that fail side by side say one thing; so often they must say it one after another.
ROUNDS_BEFORE_TRIALS = 3
# Of those that failed before their start, so far apart may lie the ends of what was one.
SIDE_BY_SIDE_S = 5.0
PAUSE_MAX_S = 3600.0
# A run that lasts so much longer than those that failed shows that the site is well again.
OUTLASTS_S = 60.0


def on_trial(
    facts: PlanInput,
) -> tuple[PlanInput, Mapping[TaskId, FaultSeries], Mapping[AttemptId, str]]:
    """The facts with what may be tried now, the tasks under trial, and a sentence for the rest."""
    series = {
        task: found
        for task, faults in facts.site_faults.items()
        if (found := fault_series(faults, facts.site.budgets.query_interval_s)) is not None
        and not _is_outlasted(task, faults, facts)
    }
    if not series:
        return facts, {}, {}
    trials = {
        task: None if _is_tried(task, found, facts) else _next(task, facts)
        for task, found in series.items()
    }
    may_run = {trial for trial in trials.values() if trial is not None}
    waiting, resting = [], {}
    for attempt in facts.waiting:
        if attempt.task not in series or attempt.attempt in may_run:
            waiting.append(attempt)
        else:
            resting[attempt.attempt] = _sentence(series[attempt.task])
    rests = facts.typical is not None and facts.typical.task in series
    unleased = 0 if rests else facts.unleased
    return replace(facts, waiting=tuple(waiting), unleased=unleased), series, resting


def fault_series(faults: Sequence[Attempt], pause_s: float) -> FaultSeries | None:
    """What these failures (oldest first) ask for; None while they may be an accident.

    ``pause_s``: before the first trial; it doubles with each, up to an hour, less some jitter.
    """
    rounds = _rounds(faults)
    if rounds < ROUNDS_BEFORE_TRIALS:
        return None
    last = faults[-1]
    # The exponent is bounded: a week of failures must not overflow a float.
    pause = min(PAUSE_MAX_S, pause_s * 2.0 ** min(rounds - ROUNDS_BEFORE_TRIALS, 30))
    # Drawn by the attempt's name: a daemon that starts anew keeps to the same pause.
    jitter = 0.5 + zlib.crc32(last.attempt.encode()) / 2**33
    return FaultSeries(
        count=len(faults),
        since=faults[0].ended_at or 0.0,
        last=last,
        trial_at=(last.ended_at or 0.0) + pause * jitter,
    )


def _rounds(faults: Sequence[Attempt]) -> int:
    """How many of them, one after another, began when the one before was known to have failed."""
    rounds, known_at = 0, float("-inf")
    points: set[PointId] = set()
    for fault in faults:
        ended_at = fault.ended_at or 0.0
        if fault.started_at is None:
            is_later = fault.point in points or ended_at >= known_at + SIDE_BY_SIDE_S
        else:
            is_later = fault.started_at >= known_at
        if is_later:
            rounds, known_at = rounds + 1, ended_at
            points.clear()
        points.add(fault.point)
    return rounds


def _is_outlasted(task: TaskId, faults: Sequence[Attempt], facts: PlanInput) -> bool:
    """Whether an attempt begun since the last failure runs longer than any that failed."""
    since_s = facts.now - (faults[-1].ended_at or 0.0)
    longest_s = max((fault.ended_at or 0.0) - (fault.started_at or 0.0) for fault in faults)
    return any(
        item.task == task and longest_s + OUTLASTS_S < item.waiting_s < since_s
        for found in facts.allocations
        for item in found.running
    )


def _is_tried(task: TaskId, series: FaultSeries, facts: PlanInput) -> bool:
    """Whether a trial is under way, or it is too early for the next."""
    left_s = series.trial_at - facts.now
    since_s = facts.now - (series.last.ended_at or 0.0)
    # Those that ran already when the last one failed prove nothing either way.
    return 0 < left_s <= PAUSE_MAX_S or any(
        item.task == task
        for found in facts.allocations
        for item in (*found.ordered, *(run for run in found.running if run.waiting_s < since_s))
    )


def _next(task: TaskId, facts: PlanInput) -> AttemptId | None:
    found: list[WaitingAttempt] = [item for item in in_line(facts.waiting) if item.task == task]
    return found[0].attempt if found else None


def _sentence(series: FaultSeries) -> str:
    return (
        f"the site failed {series.count} attempts in a row; one at a time is tried, with growing "
        "pauses, until one is sound"
    )
