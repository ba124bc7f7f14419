"""What a look at the batch system means: error, not listed and ended are three answers."""

from __future__ import annotations

from typing import Any

import pytest

from harvester.batch.port import JobEnd, JobState, ObservedJob
from harvester.daemon.reconcile import (
    Absent,
    Doubtful,
    Gone,
    Known,
    Listed,
    Unseen,
    blame_for_lost,
    count_others,
    find_job,
    is_suspiciously_empty,
    judge_listed,
    judge_unlisted,
    look_again,
    pending_reasons,
)
from harvester.model import AllocationState, Blame, JobId, Tag

A = AllocationState
TAG = Tag("habcde-abcdef")
GRACE_S = 600.0


def known(state: A = A.RUNNING, **more: Any) -> Known:
    values: dict[str, Any] = {"tag": TAG, "state": state, "job_id": JobId("7"), "runner": "up"}
    return Known(**{**values, **more})


def job(state: JobState, **more: Any) -> ObservedJob:
    return ObservedJob(**{"job_id": JobId("7"), "name": str(TAG), "state": state, **more})


def test_an_allocation_missing_from_the_queue_is_not_ended() -> None:
    assert judge_unlisted(known(), Unseen(0.0, 9, 99.0), 100.0, GRACE_S) == Doubtful(TAG)


def test_the_runners_last_word_is_a_second_witness() -> None:
    finding = judge_unlisted(known(runner="ended"), Unseen(0.0, 1, 0.0), 0.0, GRACE_S)
    assert isinstance(finding, Gone)
    assert finding.witness == "runner"


def test_a_long_absence_is_a_second_witness() -> None:
    finding = judge_unlisted(known(), Unseen(0.0, 9, 600.0), 600.0, GRACE_S)
    assert isinstance(finding, Gone)
    assert finding.witness == "grace"


def test_a_submission_without_an_answer_is_looked_for_twice_before_it_is_absent() -> None:
    submitting = known(A.SUBMITTING, job_id=None, runner="")
    assert judge_unlisted(submitting, Unseen(0.0, 1, 0.0), 0.0, GRACE_S) == Doubtful(TAG)
    assert judge_unlisted(submitting, Unseen(0.0, 2, 60.0), 60.0, GRACE_S) == Absent(TAG)


def test_looks_close_together_count_as_one() -> None:
    first = look_again(None, 100.0, 60.0)
    assert look_again(first, 110.0, 60.0).looks == 1
    assert look_again(first, 160.0, 60.0) == Unseen(100.0, 2, 160.0)


def test_a_submission_in_hand_is_never_absent() -> None:
    submitting = known(A.SUBMITTING, job_id=None, runner="", in_hand=True)
    assert judge_unlisted(submitting, Unseen(0.0, 9, 900.0), 900.0, GRACE_S) is None


def test_a_job_cancelled_before_it_started_ends_when_it_is_gone() -> None:
    cancelled = known(A.QUEUED, runner="", cancelled=True)
    finding = judge_unlisted(cancelled, Unseen(0.0, 1, 0.0), 0.0, GRACE_S)
    assert isinstance(finding, Gone)
    assert finding.witness == "cancellation"


def test_a_submission_is_found_again_by_its_tag() -> None:
    submitting = known(A.SUBMITTING, job_id=None, runner="")
    found = find_job(submitting, [job(JobState.QUEUED, job_id=JobId("8"))])
    assert found is not None
    assert judge_listed(submitting, found) == Listed(TAG, A.QUEUED, JobId("8"), "")


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (JobState.QUEUED, A.QUEUED),
        (JobState.HELD, A.HELD),
        (JobState.ENDING, A.DRAINING),
        (JobState.UNKNOWN, A.UNKNOWN),
    ],
)
def test_each_state_of_a_job_has_its_state_of_an_allocation(state: JobState, expected: A) -> None:
    finding = judge_listed(known(), job(state))
    assert isinstance(finding, Listed)
    assert finding.state is expected


def test_a_draining_allocation_stays_so_while_its_job_runs() -> None:
    assert judge_listed(known(A.DRAINING, runner="draining"), job(JobState.RUNNING)) is None


@pytest.mark.parametrize("runner", ["", "up"])
def test_a_requeued_allocation_that_was_draining_runs_again(runner: str) -> None:
    finding = judge_listed(known(A.DRAINING, runner=runner), job(JobState.RUNNING))
    assert finding == Listed(TAG, A.RUNNING, JobId("7"), "")


@pytest.mark.parametrize(
    ("end", "blame"),
    [
        (JobEnd.TIMED_OUT, Blame.WALLTIME),
        (JobEnd.NODE_FAILED, Blame.NODE),
        (JobEnd.PREEMPTED, Blame.SITE),
        (JobEnd.CANCELLED, Blame.SITE),
        (None, Blame.SITE),
    ],
)
def test_the_end_of_a_job_is_never_blamed_on_a_point(end: JobEnd | None, blame: Blame) -> None:
    finding = judge_listed(known(), job(JobState.ENDED, end=end))
    assert isinstance(finding, Gone)
    assert finding.blame is blame


@pytest.mark.parametrize(
    ("end", "remaining_s", "blame"),
    [
        (Blame.WALLTIME, 20.0, Blame.WALLTIME),
        (Blame.WALLTIME, 1800.0, Blame.SITE),
        (Blame.WALLTIME, None, Blame.SITE),
        (Blame.NODE, 1800.0, Blame.NODE),
    ],
)
def test_walltime_is_to_blame_only_for_runners_that_lived_to_see_it(
    end: Blame, remaining_s: float | None, blame: Blame
) -> None:
    assert blame_for_lost(end, remaining_s) is blame


@pytest.mark.parametrize(
    ("item", "suspicious"),
    [
        (known(A.RUNNING), True),
        (known(A.QUEUED, runner=""), True),
        (known(A.UNKNOWN), True),  # an empty answer does not make the next one sound
        (known(A.RUNNING, runner="ended"), False),
        (known(A.QUEUED, runner="", cancelled=True), False),
        (known(A.SUBMITTING, runner=""), False),
    ],
)
def test_an_empty_answer_is_suspicious_when_a_job_should_be_there(
    item: Known, suspicious: bool
) -> None:
    assert is_suspiciously_empty([item], ()) is suspicious
    assert not is_suspiciously_empty([item], (job(JobState.RUNNING),))


def test_a_job_that_is_not_listed_lives_while_its_runner_speaks() -> None:
    unseen = Unseen(0.0, 5, 900.0)
    assert isinstance(judge_unlisted(known(quiet_s=30.0), unseen, 1000.0, GRACE_S), Doubtful)
    assert isinstance(judge_unlisted(known(quiet_s=700.0), unseen, 1000.0, GRACE_S), Gone)


def test_a_users_own_job_need_not_be_listed() -> None:
    assert not is_suspiciously_empty([known(joined=True)], ())


def test_why_a_job_waits_is_kept_in_the_batch_systems_words() -> None:
    held = job(JobState.HELD, name="b", reason="JobHeldAdmin")
    jobs = [job(JobState.QUEUED, name="a", reason="Resources"), held, job(JobState.RUNNING)]
    assert pending_reasons(jobs) == {"a": "Resources", "b": "JobHeldAdmin"}


def test_other_jobs_of_the_user_count_against_the_queues_limits() -> None:
    jobs = [
        job(JobState.RUNNING, queue="q"),
        job(JobState.QUEUED, name="mine", queue="q"),
        job(JobState.HELD, name="mine", queue="q"),
        job(JobState.RUNNING, name="mine", queue="q"),
        job(JobState.ENDED, name="mine", queue="q"),
    ]
    assert count_others(jobs, frozenset({str(TAG)})) == {"q": (2, 1)}


def test_a_job_that_waits_in_several_queues_counts_in_each() -> None:
    jobs = [job(JobState.QUEUED, name="mine", queue="a,b"), job(JobState.RUNNING, queue="b")]
    assert count_others(jobs, frozenset()) == {"a": (1, 0), "b": (1, 1)}
