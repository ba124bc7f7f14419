"""What the commands of LSF print, read strictly. Texts of its 10.1 command reference."""

from __future__ import annotations

import json

import pytest

from harvester.batch.commands import Completed
from harvester.batch.lsf import bkill_command
from harvester.batch.lsf_answers import check_cancelled, parse_bjobs, parse_submitted
from harvester.batch.port import JobEnd, JobState, ObservedJob
from harvester.errors import BatchUnavailable, SubmissionRefused
from harvester.model import JobId

RUNNING = {
    "JOBID": "12",
    "JOBINDEX": "0",
    "STAT": "RUN",
    "JOB_NAME": "habcde-aaaaaa",
    "QUEUE": "batch",
    "NEXEC_HOST": "2",
    "EXEC_HOST": "42*a01n01:42*a01n02",
    "PEND_REASON": "",
    "SUSPEND_REASON": "",
    "EXIT_CODE": "",
    "EXIT_REASON": "",
    "USER": "user",
    "PROJ_NAME": "proj",
}


def completed(stdout: str = "", stderr: str = "", returncode: int = 0) -> Completed:
    return Completed("bjobs -a", returncode, stdout, stderr)


def answer(*records: object) -> str:
    return json.dumps({"COMMAND": "bjobs", "JOBS": len(records), "RECORDS": records})


def one(**changes: object) -> ObservedJob:
    (job,) = parse_bjobs(completed(answer({**RUNNING, **changes})))
    return job


# --- bjobs ---


def test_a_running_job_is_read_with_its_nodes() -> None:
    assert one() == ObservedJob(
        job_id=JobId("12"),
        name="habcde-aaaaaa",
        state=JobState.RUNNING,
        queue="batch",
        nodes=2,
        node_names="a01n01,a01n02",
        user="user",
        account="proj",
    )


@pytest.mark.parametrize(
    ("word", "state", "end"),
    [
        ("PEND", JobState.QUEUED, None),
        ("WAIT", JobState.QUEUED, None),
        ("PSUSP", JobState.HELD, None),
        ("PROV", JobState.RUNNING, None),
        ("RUN", JobState.RUNNING, None),
        ("USUSP", JobState.RUNNING, None),
        ("SSUSP", JobState.RUNNING, None),
        ("ZOMBI", JobState.ENDING, None),
        ("UNKWN", JobState.UNKNOWN, None),
        ("DONE", JobState.ENDED, JobEnd.COMPLETED),
        ("EXIT", JobState.ENDED, JobEnd.FAILED),
        ("TELEPORT", JobState.UNKNOWN, None),
    ],
)
def test_states_map_one_by_one(word: str, state: JobState, end: JobEnd | None) -> None:
    found = one(STAT=word)
    assert (found.state, found.end) == (state, end)


@pytest.mark.parametrize(
    ("reason", "end"),
    [
        ("TERM_RUNLIMIT: job killed after reaching LSF run time limit", JobEnd.TIMED_OUT),
        ("TERM_DEADLINE: job killed after deadline expires", JobEnd.TIMED_OUT),
        ("TERM_OWNER: job killed by owner", JobEnd.CANCELLED),
        ("TERM_FORCE_OWNER: job killed by owner without time for cleanup", JobEnd.CANCELLED),
        ("TERM_ADMIN: job killed by root or LSF administrator", JobEnd.CANCELLED),
        ("TERM_PREEMPT: job killed after preemption", JobEnd.PREEMPTED),
        ("TERM_REQUEUE_ADMIN: job killed and requeued by administrator", JobEnd.PREEMPTED),
        ("TERM_MEMLIMIT: job killed after reaching LSF memory usage limit", JobEnd.OUT_OF_MEMORY),
        ("TERM_ZOMBIE: job exited while LSF is not available", JobEnd.NODE_FAILED),
        ("TERM_EXTERNAL_SIGNAL: job killed by a signal external to LSF", JobEnd.FAILED),
        ("TERM_UNKNOWN: cannot determine", JobEnd.UNKNOWN),
        ("TERM_TELEPORTED: never heard of", JobEnd.FAILED),
        ("", JobEnd.FAILED),
    ],
)
def test_ends_are_told_by_the_termination_reason(reason: str, end: JobEnd) -> None:
    found = one(STAT="EXIT", EXIT_CODE="130", EXIT_REASON=reason)
    assert found.end is end
    assert found.reason == (f"exit 130, {reason}" if reason else "exit 130")


def test_a_waiting_job_says_why() -> None:
    waits = "New job is waiting for scheduling;"
    assert one(STAT="PEND", NEXEC_HOST="", EXEC_HOST="", PEND_REASON=waits).reason == waits


def test_elements_of_arrays_are_jobs_of_their_own() -> None:
    assert one(JOBINDEX="4").job_id == "12[4]"


def test_hosts_are_counted_where_lsf_does_not() -> None:
    assert one(NEXEC_HOST="").nodes == 2


@pytest.mark.parametrize(
    ("stdout", "words", "code"),
    [
        (answer(), "", 0),
        ("", "No unfinished job found\n", 0),
        ("", "No job found\n", 255),
        (answer(), "No unfinished job found\n", 255),
    ],
)
def test_no_jobs_is_no_jobs(stdout: str, words: str, code: int) -> None:
    assert parse_bjobs(completed(stdout, words, code)) == ()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "Welcome to the cluster!\n" + answer(RUNNING),
        answer(RUNNING)[:-30],
        answer(RUNNING).replace('"JOBS": 1', '"JOBS": 2'),
        answer(RUNNING).replace("bjobs", "bhosts"),
        answer({**RUNNING, "STAT": None}),
        answer({**RUNNING, "JOBID": "twelve"}),
        answer({**RUNNING, "NEXEC_HOST": "two"}),
        answer("job"),
        answer({"JOBID": "12", "ERROR": "Job <12> is not found"}),
    ],
)
def test_output_that_is_not_all_jobs_is_an_error(text: str) -> None:
    with pytest.raises(BatchUnavailable, match="printed"):
        parse_bjobs(completed(text))


def test_failed_bjobs_is_an_error_even_with_jobs_in_its_output() -> None:
    words = "Failed in an LSF library call: Communication time out"
    with pytest.raises(BatchUnavailable, match="library call"):
        parse_bjobs(completed(answer(RUNNING), words, 255))


# --- bsub ---


@pytest.mark.parametrize(
    "text",
    [
        "Job <12> is submitted to queue <batch>.\n",
        "Job <12> is submitted to default queue <normal>.\n",
        "Project phy123 has 100 hours left.\nJob <12> is submitted to queue <batch>.\nBye\n",
    ],
)
def test_job_id_is_in_the_confirmation(text: str) -> None:
    assert parse_submitted(completed(text)) == "12"


@pytest.mark.parametrize("text", ["", "Job <12> is submitted to que", "12\n"])
def test_success_without_an_id_may_have_been_taken(text: str) -> None:
    with pytest.raises(BatchUnavailable, match="no job id"):
        parse_submitted(completed(text))


@pytest.mark.parametrize(
    "words",
    [
        "gpu: No such queue. Job not submitted.",
        "User cannot use the queue. Job not submitted.",
        "Error: project not specified, use -P.\nRequest aborted by esub. Job not submitted.",
        "Cannot exceed queue's hard limit(s). Job not submitted.",
    ],
)
def test_a_no_is_a_refusal_in_lsfs_own_words(words: str) -> None:
    with pytest.raises(SubmissionRefused, match=words.splitlines()[0][:20]):
        parse_submitted(completed("", words, 255))


@pytest.mark.parametrize(
    "words",
    [
        "Failed in an LSF library call: Communication time out. Job not submitted.",
        "Cannot connect to LSF. Please wait ...",
        "LSF is down. Please wait ...",
        "LIM is down; try later. Job not submitted.",
        "sh: 1: exec: bsub: not found",
        "Killed",
        "",
    ],
)
def test_anything_else_leaves_open_whether_the_job_was_taken(words: str) -> None:
    with pytest.raises(BatchUnavailable):
        parse_submitted(completed("", words, 255))


# --- bkill ---


@pytest.mark.parametrize(
    "words",
    ["Job <12>: No matching job found", "Job <12>: Job has already finished"],
)
def test_cancelled_jobs_that_are_gone_are_fine(words: str) -> None:
    check_cancelled(completed("", words, 255))


@pytest.mark.parametrize("words", ["Job <13>: Operation permission denied by LSF\n", ""])
def test_one_real_failure_among_jobs_that_are_gone_is_an_error(words: str) -> None:
    stderr = f"Job <12>: No matching job found\n{words}" if words else ""
    with pytest.raises(BatchUnavailable):
        check_cancelled(completed("", stderr, 255))


@pytest.mark.parametrize("job", ["0", "-u all", "", "habcde-aaaaaa", "12 13"])
def test_only_ids_are_given_to_bkill(job: str) -> None:
    with pytest.raises(BatchUnavailable, match="not an LSF job id"):
        bkill_command([JobId("12"), JobId(job)])
