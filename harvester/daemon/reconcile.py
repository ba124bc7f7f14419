"""What one look at the batch system says of our allocations. Pure.

Not listed is not ended: a second witness is needed (the runner's last word, accounting, or a
grace period).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from harvester.batch.port import JobEnd, JobState, ObservedJob
from harvester.model import AllocationState, Blame, JobId, Tag

_STATES = {
    JobState.QUEUED: AllocationState.QUEUED,
    JobState.HELD: AllocationState.HELD,
    JobState.RUNNING: AllocationState.RUNNING,
    JobState.ENDING: AllocationState.DRAINING,
    JobState.UNKNOWN: AllocationState.UNKNOWN,
}
_BLAMES = {
    JobEnd.TIMED_OUT: Blame.WALLTIME,
    JobEnd.NODE_FAILED: Blame.NODE,
    JobEnd.OUT_OF_MEMORY: Blame.NODE,
}
# A submission without an answer is declared absent after this many looks that did not show it.
LOOKS_FOR_ABSENCE = 2
# A runner speaks every 30 s; some of its last words may be lost on the way.
LAST_WORD_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """An allocation as we know it before looking."""

    tag: Tag
    state: AllocationState
    job_id: JobId | None
    runner: str  # '' | up | draining | ended
    cancelled: bool = False
    in_hand: bool = False  # its submission has not come back yet
    joined: bool = False  # a user's own, which this batch system need not know
    quiet_s: float = math.inf  # since its runner's last word


@dataclass(frozen=True, slots=True)
class Unseen:
    """Since when and how often an allocation was not listed."""

    since: float
    looks: int
    last: float


@dataclass(frozen=True, slots=True)
class Listed:
    """The batch system shows it in this state."""

    tag: Tag
    state: AllocationState
    job_id: JobId
    reason: str


@dataclass(frozen=True, slots=True)
class Gone:
    """It has ended, and this is the witness."""

    tag: Tag
    witness: str
    reason: str
    blame: Blame


@dataclass(frozen=True, slots=True)
class Absent:
    """A submission that never reached the batch system."""

    tag: Tag


@dataclass(frozen=True, slots=True)
class Doubtful:
    """Not listed: accounting should be asked."""

    tag: Tag


Finding = Listed | Gone | Absent | Doubtful


def find_job(known: Known, jobs: Iterable[ObservedJob]) -> ObservedJob | None:
    """Our job among those listed, by job id or else by its name, our tag."""
    by_name = None
    for job in jobs:
        if known.job_id is not None and job.job_id == known.job_id:
            return job
        if job.name == known.tag:
            by_name = job
    return by_name


def look_again(unseen: Unseen | None, now: float, apart_s: float) -> Unseen:
    """Count a look that did not show it; looks closer together than ``apart_s`` are one."""
    if unseen is None:
        return Unseen(now, 1, now)
    # A clock that was set back must not stop the count.
    if 0.0 <= now - unseen.last < apart_s:
        return unseen
    return replace(unseen, looks=unseen.looks + 1, last=now)


def judge_listed(known: Known, job: ObservedJob) -> Finding | None:
    """What a listed job says; None when that is known."""
    if job.state is JobState.ENDED:
        return gone(known, job, "batch system")
    state = _STATES[job.state]
    said = known.runner in ("draining", "ended")  # a new start of the job has not
    if state is AllocationState.RUNNING and known.state is AllocationState.DRAINING and said:
        return None  # its runner's word is the finer one
    same = state is known.state and known.job_id == job.job_id
    return None if same else Listed(known.tag, state, job.job_id, job.reason)


def judge_unlisted(known: Known, unseen: Unseen, now: float, grace_s: float) -> Finding | None:
    """What it means that a job is not listed; None while its submission is in hand."""
    if known.in_hand or known.state is AllocationState.PLANNED:
        return None
    if known.runner == "ended":
        return Gone(known.tag, "runner", "its runner left", Blame.SITE)
    if known.state is AllocationState.SUBMITTING:
        return Absent(known.tag) if unseen.looks >= LOOKS_FOR_ABSENCE else Doubtful(known.tag)
    if known.cancelled and not known.runner:
        return Gone(known.tag, "cancellation", "cancelled before it started", Blame.SITE)
    if min(now - unseen.since, known.quiet_s) >= grace_s:
        return Gone(known.tag, "grace", f"not listed for {grace_s:g} s", Blame.SITE)
    return Doubtful(known.tag)


def gone(known: Known, job: ObservedJob, witness: str) -> Gone:
    """The end of a job as the batch system or accounting tells it."""
    end = job.end or JobEnd.UNKNOWN
    words = f"{end.value}: {job.reason}" if job.reason else end.value
    return Gone(known.tag, witness, words, _BLAMES.get(end, Blame.SITE))


def blame_for_lost(end: Blame, remaining_s: float | None) -> Blame:
    """Whom attempts without a last word are blamed on when their allocation ends.

    A walltime is to blame only if the runner lived to see it: a payload whose runner died early
    had no chance of getting further.

    Args:
        end: what the end of the job itself is blamed on.
        remaining_s: until the runner's drain point at its last word; None if it never told.
    """
    if end is Blame.WALLTIME and (remaining_s is None or remaining_s > LAST_WORD_S):
        return Blame.SITE
    return end


def is_suspiciously_empty(known: Iterable[Known], jobs: tuple[ObservedJob, ...]) -> bool:
    """Whether nothing is listed although a job of ours was there and has not said good-bye.

    One that is unknown was there as well: the last such answer does not make this one sound.
    """
    there = (
        AllocationState.QUEUED,
        AllocationState.HELD,
        AllocationState.RUNNING,
        AllocationState.UNKNOWN,
    )
    return not jobs and any(
        item.state in there and item.runner != "ended" and not item.cancelled and not item.joined
        for item in known
    )


def pending_reasons(jobs: Iterable[ObservedJob]) -> Mapping[str, str]:
    """Job name -> why it waits, in the batch system's own words."""
    waits = (JobState.QUEUED, JobState.HELD)
    return {job.name: job.reason for job in jobs if job.state in waits and job.reason}


def count_others(
    jobs: Iterable[ObservedJob], ours: frozenset[str]
) -> Mapping[str, tuple[int, int]]:
    """Queue -> (queued, running) of those jobs that are not ours.

    A job that waits in several queues at once ("a,b") counts in each of them.
    """
    found: dict[str, tuple[int, int]] = {}
    for job in jobs:
        if job.name in ours or job.state is JobState.ENDED:
            continue
        waits = job.state in (JobState.QUEUED, JobState.HELD)
        for queue in job.queue.split(","):
            queued, running = found.get(queue, (0, 0))
            found[queue] = (queued + waits, running + (not waits))
    return found
