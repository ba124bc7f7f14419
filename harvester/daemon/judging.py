"""What follows from the end of an attempt: is it the lease's outcome, or does another go on? Pure.

The blame decides. The point's own failures are the service's to count; walltime, preemption and
faults of node or site are the harvester's to carry, by a new attempt under the same lease.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harvester.model import Attempt, AttemptState, Blame
from harvester.store.leases import LeaseRow

# Runs in a row that walltime cut off without a new checkpoint, after which the point is given up.
FRUITLESS_RUNS = 3
# Faults of node or site in a row, after which the point goes back to the service uncharged.
FAULTS_IN_A_ROW = 5


@dataclass(frozen=True, slots=True)
class Judgement:
    """``final``: this attempt is the lease's outcome. ``goes_on``: a new attempt follows."""

    final: bool
    goes_on: bool


RECORD = Judgement(final=False, goes_on=False)  # told for the books only
FINAL = Judgement(final=True, goes_on=False)
GO_ON = Judgement(final=False, goes_on=True)


def judge(ended: Attempt, lease: LeaseRow, attempts: Sequence[Attempt]) -> Judgement:
    """Judge an ended attempt, given all attempts of its lease in order."""
    if lease.settled_by is not None:
        return FINAL if lease.settled_by == ended.attempt else RECORD
    if ended.state is AttemptState.SUCCEEDED:
        return FINAL
    if any(other.number > ended.number for other in attempts):
        return RECORD  # a late word: the newer attempt decides
    if lease.gone or lease.stop or _is_the_points_own(ended):
        return FINAL
    return FINAL if _is_given_up(ended, attempts) else GO_ON


def _is_the_points_own(ended: Attempt) -> bool:
    stopped = ended.state in (AttemptState.PRUNED, AttemptState.CANCELLED)
    return stopped or ended.blame is Blame.POINT


def _is_given_up(ended: Attempt, attempts: Sequence[Attempt]) -> bool:
    if ended.state is AttemptState.PREEMPTED:
        return False
    if ended.blame is Blame.WALLTIME:
        return fruitless_runs(attempts) >= FRUITLESS_RUNS
    return faults_in_a_row(attempts) > FAULTS_IN_A_ROW


def fruitless_runs(attempts: Sequence[Attempt]) -> int:
    """How many of the newest runs walltime cut off without progress; preemptions do not count."""
    count = 0
    for attempt in reversed(attempts):
        if attempt.state is AttemptState.PREEMPTED:
            continue
        if attempt.blame is not Blame.WALLTIME or attempt.progress:
            break
        count += 1
    return count


def faults_in_a_row(attempts: Sequence[Attempt]) -> int:
    """How many of the newest runs ended by a fault of node or site."""
    count = 0
    for attempt in reversed(attempts):
        fault = attempt.state in (AttemptState.FAILED, AttemptState.LOST)
        if not fault or attempt.blame not in (Blame.NODE, Blame.SITE, None):
            break
        count += 1
    return count
