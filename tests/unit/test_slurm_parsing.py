"""What Slurm's commands print, read strictly. Texts recorded from Slurm 22.05."""

from __future__ import annotations

import re

import pytest

from harvester.batch.commands import Completed
from harvester.batch.port import JobEnd, JobState, ObservedJob
from harvester.batch.slurm import (
    STATES,
    check_cancelled,
    parse_sacct,
    parse_squeue,
    parse_submitted,
    read_state,
    sacct_command,
    scancel_command,
)
from harvester.errors import BatchUnavailable, SubmissionRefused
from harvester.model import JobId, Tag

NO = "sbatch: error: Batch job submission failed: "


def completed(stdout: str = "", stderr: str = "", returncode: int = 0) -> Completed:
    return Completed("command --option", returncode, stdout, stderr)


def squeue_line(
    job: str = "12",
    state: str = "PENDING",
    reason: str = "Resources",
    name: str = "habcde-aaaaaa",
    nodes: str = "2",
) -> str:
    front = f"{job:<40}|{state:<20}|{reason:<60}|{'batch':<60}|{nodes:<10}|1         |"
    whose = f"{'ada':<64}|{'proj':<64}"
    return f"{front}{'':250}|{whose}|{name:<64}|1000        |\n"


# --- squeue ---


def test_a_pending_job_is_read_with_its_reason_and_restarts() -> None:
    assert parse_squeue(completed(squeue_line())) == (
        ObservedJob(
            job_id=JobId("12"),
            name="habcde-aaaaaa",
            state=JobState.QUEUED,
            reason="Resources",
            queue="batch",
            nodes=2,
            restarts=1,
            user="ada",
            account="proj",
        ),
    )


def test_no_jobs_is_no_jobs() -> None:
    assert parse_squeue(completed()) == ()


@pytest.mark.parametrize("name", ["a|b", "two\nlines", "x|1|\ny", "  led by blanks", "é", ""])
def test_other_jobs_may_have_any_name(name: str) -> None:
    text = squeue_line("7", name=name) + squeue_line("8")
    assert [(j.job_id, j.name) for j in parse_squeue(completed(text))] == [
        ("7", name),
        ("8", "habcde-aaaaaa"),
    ]


@pytest.mark.parametrize("job", ["12", "12_3", "12_[4-9%2]", "12+1"])
def test_array_and_heterogeneous_job_ids_are_ids(job: str) -> None:
    assert parse_squeue(completed(squeue_line(job)))[0].job_id == job


@pytest.mark.parametrize(
    "text",
    [
        "Welcome to the cluster!\n" + squeue_line(),
        squeue_line()[:200],
        squeue_line() + squeue_line()[:-1],
        squeue_line() + "\n",
        squeue_line(nodes="two"),
        squeue_line(job="job"),
        "slurm_load_jobs error: Unexpected message received\n",
    ],
)
def test_output_that_is_not_all_jobs_is_an_error(text: str) -> None:
    with pytest.raises(BatchUnavailable, match="no job"):
        parse_squeue(completed(text))


def test_failed_squeue_is_an_error_even_with_jobs_in_its_output() -> None:
    words = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
    with pytest.raises(BatchUnavailable, match="Unable to contact") as caught:
        parse_squeue(completed(squeue_line(), words, 1))
    assert (caught.value.returncode, caught.value.stderr) == (1, words)


@pytest.mark.parametrize(
    ("word", "reason", "expected"),
    [
        ("PENDING", "Priority", (JobState.QUEUED, None)),
        ("PENDING", "JobHeldUser", (JobState.HELD, None)),
        ("PENDING", "JobHeldAdmin", (JobState.HELD, None)),
        ("CONFIGURING", "", (JobState.RUNNING, None)),
        ("RUNNING", "", (JobState.RUNNING, None)),
        ("SUSPENDED", "", (JobState.RUNNING, None)),
        ("STOPPED", "", (JobState.RUNNING, None)),
        ("SIGNALING", "", (JobState.RUNNING, None)),
        ("COMPLETING", "", (JobState.ENDING, None)),
        ("STAGE_OUT", "", (JobState.ENDING, None)),
        ("REQUEUED", "", (JobState.QUEUED, None)),
        ("REQUEUE_HOLD", "", (JobState.HELD, None)),
        ("SPECIAL_EXIT", "", (JobState.HELD, None)),
        ("RESV_DEL_HOLD", "", (JobState.HELD, None)),
        ("COMPLETED", "", (JobState.ENDED, JobEnd.COMPLETED)),
        ("FAILED", "", (JobState.ENDED, JobEnd.FAILED)),
        ("CANCELLED", "", (JobState.ENDED, JobEnd.CANCELLED)),
        ("CANCELLED by 1000", "", (JobState.ENDED, JobEnd.CANCELLED)),
        ("REVOKED", "", (JobState.ENDED, JobEnd.CANCELLED)),
        ("TIMEOUT", "", (JobState.ENDED, JobEnd.TIMED_OUT)),
        ("DEADLINE", "", (JobState.ENDED, JobEnd.TIMED_OUT)),
        ("PREEMPTED", "", (JobState.ENDED, JobEnd.PREEMPTED)),
        ("NODE_FAIL", "", (JobState.ENDED, JobEnd.NODE_FAILED)),
        ("BOOT_FAIL", "", (JobState.ENDED, JobEnd.NODE_FAILED)),
        ("OUT_OF_MEMORY", "", (JobState.ENDED, JobEnd.OUT_OF_MEMORY)),
        ("TELEPORTED", "", (JobState.UNKNOWN, None)),
    ],
)
def test_states_map_one_by_one(
    word: str, reason: str, expected: tuple[JobState, JobEnd | None]
) -> None:
    assert read_state(word, reason) == expected


def test_only_final_states_have_an_end() -> None:
    assert {state for state, end in STATES.values() if end} == {JobState.ENDED}
    assert all(end for state, end in STATES.values() if state is JobState.ENDED)


# --- sacct ---


def test_accounting_says_how_a_job_ended() -> None:
    text = "12|CANCELLED by 1000|0:15|batch|2|node[1-2]|habcde-aaaaaa\n"
    (job,) = parse_sacct(completed(text))
    assert (job.state, job.end) == (JobState.ENDED, JobEnd.CANCELLED)
    assert (job.reason, job.node_names) == ("CANCELLED by 1000, exit 0:15", "node[1-2]")


def test_accounting_without_nodes_names_none() -> None:
    (job,) = parse_sacct(completed("12|PENDING|0:0|batch|1|None assigned|habcde-aaaaaa\n"))
    assert (job.state, job.end, job.node_names) == (JobState.QUEUED, None, "")


def test_name_that_accounting_does_not_know_yet_is_empty() -> None:
    (job,) = parse_sacct(completed("12|COMPLETED|0:0|batch|1|node1|allocation\n"))
    assert (job.name, job.end) == ("", JobEnd.COMPLETED)


def test_unreachable_accounting_is_an_error() -> None:
    words = "sacct: error: Problem talking to the database: Connection refused"
    with pytest.raises(BatchUnavailable, match="database"):
        parse_sacct(completed("", words, 1))


def test_absent_accounting_knows_nothing() -> None:
    assert parse_sacct(completed("", "Slurm accounting storage is disabled\n", 1)) == ()


def test_garbage_from_accounting_is_an_error() -> None:
    with pytest.raises(BatchUnavailable, match="no job"):
        parse_sacct(completed("12|COMPLETED|0:0|batch\n"))


def test_names_are_looked_for_beyond_today() -> None:
    # Without a start time sacct looks no further back than midnight.
    command = sacct_command(tags=[Tag("habcde-aaaaaa"), Tag("habcde-bbbbbb")])
    assert command[-2:] == ("--name=habcde-aaaaaa,habcde-bbbbbb", "--starttime=now-30days")


# --- sbatch ---


@pytest.mark.parametrize("text", ["4711\n", "4711;cluster-a\n", "sbatch: welcome\n4711\n"])
def test_job_id_is_the_last_line(text: str) -> None:
    assert parse_submitted(completed(text)) == "4711"


@pytest.mark.parametrize("text", ["", "4711", "Submitted batch job 4711\n", "4711\nbye\n"])
def test_success_without_an_id_may_have_been_taken(text: str) -> None:
    with pytest.raises(BatchUnavailable, match="no job id"):
        parse_submitted(completed(text))


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (f"sbatch: error: invalid partition specified: x\n{NO}Invalid partition name specified", 1),
        (f"sbatch: error: QOSMaxSubmitJobPerUserLimit\n{NO}Job violates accounting/QOS policy", 1),
        (f"{NO}Requested time limit is invalid (missing or exceeds some limit)", 1),
        (f"{NO}Requested node configuration is not available", 1),
        (f"sbatch: error: Please say --account\n{NO}Unspecified error", 1),
        ("sbatch: error: Invalid --time specification", 255),
        ("sbatch: error: Invalid generic resource (gres) specification", 1),
        ("sbatch: unrecognized option '--frob'\nTry \"sbatch --help\" for more information", 255),
        ("sbatch: error: Unable to open file batch.sh", 1),
    ],
)
def test_a_no_is_a_refusal_in_slurms_words(words: str, code: int) -> None:
    with pytest.raises(SubmissionRefused, match=re.escape(words.splitlines()[0])):
        parse_submitted(completed("", words, code))


@pytest.mark.parametrize(
    "words",
    [
        f"{NO}Unable to contact slurm controller (connect failure)",
        f"{NO}Socket timed out on send/recv operation",
        f"{NO}Zero Bytes were transmitted or received",
        f"{NO}Transport endpoint is not connected",
        f"{NO}Unexpected message received",
        f"{NO}Header lengths are longer than data received",
        f"{NO}Slurm backup controller in standby mode",
        f"{NO}Protocol authentication error",
        f"{NO}Resource temporarily unavailable",
        "sbatch: fatal: Could not establish a configuration source",
        "Killed",
        "",
    ],
)
def test_anything_else_leaves_open_whether_the_job_was_taken(words: str) -> None:
    with pytest.raises(BatchUnavailable):
        parse_submitted(completed("", words, 1))


# --- scancel ---


@pytest.mark.parametrize(
    "words",
    [
        "scancel: error: Kill job error on job id 12: Invalid job id specified",
        "scancel: error: Kill job error on job id 12: Job/step already completing or completed",
    ],
)
@pytest.mark.parametrize("code", [0, 1])
def test_cancelled_jobs_that_are_gone_are_fine(words: str, code: int) -> None:
    check_cancelled(completed("", words, code))


def test_one_real_failure_among_jobs_that_are_gone_is_an_error() -> None:
    words = (
        "scancel: error: Kill job error on job id 12: Invalid job id specified\n"
        "scancel: error: Kill job error on job id 13: Access/permission denied\n"
    )
    with pytest.raises(BatchUnavailable, match="permission denied"):
        check_cancelled(completed("", words, 0))


def test_scancel_that_fails_without_words_is_an_error() -> None:
    with pytest.raises(BatchUnavailable, match="no message"):
        check_cancelled(completed("", "", 1))


@pytest.mark.parametrize("job", ["--user=me", "12 13", "", "habcde-aaaaaa"])
def test_only_ids_are_given_to_scancel(job: str) -> None:
    with pytest.raises(BatchUnavailable, match="not a Slurm job id"):
        scancel_command([JobId("12"), JobId(job)])
