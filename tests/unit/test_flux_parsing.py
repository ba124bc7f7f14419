"""What the commands of Flux print, read strictly. Forms of flux-jobs(1) and flux-cancel(1)."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvester.batch.commands import Completed
from harvester.batch.flux import cancel_command
from harvester.batch.flux_answers import check_cancelled, f58, parse_jobs, parse_submitted
from harvester.batch.port import JobEnd, JobState, ObservedJob
from harvester.errors import BatchUnavailable, SubmissionRefused
from harvester.model import JobId

DIGITS = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"

RUNNING = {
    "id": 13671518437376,
    "userid": 1000,
    "urgency": 16,
    "priority": 16,
    "t_submit": 1706336418.268734,
    "state": "RUN",
    "name": "habcde-aaaaaa",
    "queue": "pbatch",
    "bank": "proj",
    "ntasks": 2,
    "nnodes": 2,
    "ranks": "[0-1]",
    "nodelist": "tuolumne[1001-1002]",
    "expiration": 1706340018.0,
    "annotations": {"sched": {"queue": "pbatch"}},
    "exception": {"occurred": False, "severity": "", "type": "", "note": ""},
}


def completed(stdout: str = "", stderr: str = "", returncode: int = 0) -> Completed:
    return Completed("flux jobs -a", returncode, stdout, stderr)


def answer(*records: object) -> str:
    return json.dumps({"jobs": records})


def one(**changes: object) -> ObservedJob:
    (job,) = parse_jobs(completed(answer({**RUNNING, **changes})))
    return job


# --- ids ---


@pytest.mark.parametrize(
    # RFC 19's own examples.
    ("number", "text"),
    [(0, "f1"), (1, "f2"), (57, "fz"), (1234, "fNH"), (1888, "fZZ"), (4369, "f2JL")],
)
def test_ids_are_written_in_base_58(number: int, text: str) -> None:
    assert f58(number) == text


@given(st.integers(min_value=0, max_value=2**64 - 1))
def test_ids_read_back(number: int) -> None:
    read = 0
    for digit in f58(number)[1:]:
        read = read * 58 + DIGITS.index(digit)
    assert read == number


# --- flux jobs ---


def test_a_running_job_is_read_with_its_nodes() -> None:
    assert one() == ObservedJob(
        job_id=JobId(f58(13671518437376)),
        name="habcde-aaaaaa",
        state=JobState.RUNNING,
        queue="pbatch",
        nodes=2,
        node_names="tuolumne[1001-1002]",
        user="1000",
        account="proj",
    )


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("NEW", JobState.QUEUED),
        ("DEPEND", JobState.QUEUED),
        ("PRIORITY", JobState.QUEUED),
        ("SCHED", JobState.QUEUED),
        ("RUN", JobState.RUNNING),
        ("CLEANUP", JobState.ENDING),
        ("INACTIVE", JobState.ENDED),
        ("TELEPORT", JobState.UNKNOWN),
    ],
)
def test_states_map_one_by_one(word: str, state: JobState) -> None:
    found = one(state=word)
    assert found.state is state
    assert (found.end is not None) == (state is JobState.ENDED)


def test_a_job_of_no_urgency_is_held() -> None:
    assert one(state="SCHED", urgency=0).state is JobState.HELD
    assert one(state="RUN", urgency=0).state is JobState.RUNNING


@pytest.mark.parametrize(
    ("result", "kind", "end"),
    [
        ("COMPLETED", "", JobEnd.COMPLETED),
        ("FAILED", "", JobEnd.FAILED),
        ("FAILED", "exec", JobEnd.FAILED),
        ("FAILED", "node-failure", JobEnd.NODE_FAILED),
        ("COMPLETED", "node-failure", JobEnd.COMPLETED),
        ("CANCELED", "cancel", JobEnd.CANCELLED),
        ("TIMEOUT", "timeout", JobEnd.TIMED_OUT),
        ("TELEPORTED", "", JobEnd.UNKNOWN),
        (None, "", JobEnd.UNKNOWN),
    ],
)
def test_results_map_one_by_one(result: str | None, kind: str, end: JobEnd) -> None:
    exception = {"occurred": bool(kind), "severity": "", "type": kind, "note": ""}
    assert one(state="INACTIVE", result=result, exception=exception).end is end


def test_the_reason_of_an_end_has_exit_and_exception() -> None:
    exception = {"occurred": True, "severity": 0, "type": "timeout", "note": "time limit\n passed"}
    found = one(state="INACTIVE", result="TIMEOUT", returncode=142, exception=exception)
    assert found.reason == "exit 142, timeout: time limit passed"
    assert one(state="INACTIVE", result="COMPLETED", returncode=0).reason == "exit 0"


def test_a_waiting_job_says_why() -> None:
    waits = {"sched": {"reason_pending": "insufficient resources"}}
    assert one(state="SCHED", annotations=waits).reason == "insufficient resources"
    assert one(state="DEPEND", annotations={}).reason == "depend"


def test_a_pending_job_lacks_what_it_has_not_got() -> None:
    bare = {"id": 1, "state": "SCHED", "name": "x"}
    (job,) = parse_jobs(completed(answer(bare)))
    assert (job.nodes, job.node_names, job.queue) == (0, "", "")


def test_no_jobs_is_no_jobs() -> None:
    assert parse_jobs(completed(answer())) == ()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "Welcome to the cluster!\n" + answer(RUNNING),
        answer(RUNNING)[:-30],
        answer({**RUNNING, "state": 8}).replace("8", "null"),
        answer({**RUNNING, "id": "f12"}),
        answer({**RUNNING, "nnodes": "two"}),
        answer({**RUNNING, "annotations": []}),
        answer("job"),
    ],
)
def test_output_that_is_not_all_jobs_is_an_error(text: str) -> None:
    with pytest.raises(BatchUnavailable, match="printed"):
        parse_jobs(completed(text))


def test_failed_flux_jobs_is_an_error_even_with_jobs_in_its_output() -> None:
    words = "flux-jobs: ERROR: [Errno 113] No route to host"
    with pytest.raises(BatchUnavailable, match="No route"):
        parse_jobs(completed(answer(RUNNING), words, 1))


# --- flux batch ---


@pytest.mark.parametrize("text", ["ƒM7Zq9AKHno\n", "fM7Zq9AKHno\n", "Welcome\nƒM7Zq9AKHno\n"])
def test_job_id_is_the_last_line_in_ascii(text: str) -> None:
    assert parse_submitted(completed(text)) == "fM7Zq9AKHno"


@pytest.mark.parametrize("text", ["", "ƒM7Zq9AKHno", "ƒM7Z\nbye\n", "13671518437376\n"])
def test_success_without_an_id_may_have_been_taken(text: str) -> None:
    with pytest.raises(BatchUnavailable, match="no job id"):
        parse_submitted(completed(text))


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("flux-batch: ERROR: [Errno 22] Invalid queue requested: x", 1),
        ("flux-batch: ERROR: [Errno 22] unsatisfiable request", 1),
        ("flux-batch: ERROR: requested duration exceeds policy limit of 1h", 1),
        ("flux-batch: ERROR: cannot find user/bank or user/default bank entry for: user", 1),
        ("usage: flux batch\nflux-batch: error: unrecognized arguments: --frob", 2),
    ],
)
def test_a_no_is_a_refusal_in_fluxs_own_words(words: str, code: int) -> None:
    with pytest.raises(SubmissionRefused, match=re.escape(words.splitlines()[-1])):
        parse_submitted(completed("", words, code))


@pytest.mark.parametrize(
    "words",
    [
        "flux-batch: ERROR: Unable to connect to Flux: broker socket /run/flux/local was not found",
        "flux-batch: ERROR: [Errno 110] Connection timed out",
        "flux-batch: ERROR: [Errno 38] Function not implemented",
        "flux-batch: ERROR: [Errno 113] No route to host",
        "Killed",
        "",
    ],
)
def test_anything_else_leaves_open_whether_the_job_was_taken(words: str) -> None:
    with pytest.raises(BatchUnavailable):
        parse_submitted(completed("", words, 1))


# --- flux cancel ---


@pytest.mark.parametrize(
    "words",
    ["flux-cancel: ERROR: fABC: unknown job id", "flux-cancel: ERROR: fABC: job is inactive"],
)
def test_cancelled_jobs_that_are_gone_are_fine(words: str) -> None:
    check_cancelled(completed("", words, 1))


@pytest.mark.parametrize("words", ["flux-cancel: ERROR: fABD: Operation not permitted\n", ""])
def test_one_real_failure_among_jobs_that_are_gone_is_an_error(words: str) -> None:
    stderr = f"flux-cancel: ERROR: fABC: unknown job id\n{words}" if words else ""
    with pytest.raises(BatchUnavailable):
        check_cancelled(completed("", stderr, 1))


@pytest.mark.parametrize("job", ["--all", "", "habcde-aaaaaa", "fA fB", "f0"])
def test_only_ids_are_given_to_flux_cancel(job: str) -> None:
    with pytest.raises(BatchUnavailable, match="not a Flux job id"):
        cancel_command([JobId("fABC"), JobId(job)])
