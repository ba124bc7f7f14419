"""What the commands of PBS print, read strictly. Texts of OpenPBS 22.05's sources."""

from __future__ import annotations

import json
import re

import pytest

from harvester.batch.commands import Completed
from harvester.batch.pbs import qdel_command, qselect_command, qstat_command, qsub_environment
from harvester.batch.pbs_answers import (
    EXITS,
    check_cancelled,
    has_no_history,
    parse_qselect,
    parse_qstat,
    parse_submitted,
)
from harvester.batch.port import JobEnd, JobState, ObservedJob
from harvester.errors import BatchUnavailable, ConfigurationError, SubmissionRefused
from harvester.model import JobId, Tag

RUNNING = {
    "Job_Name": "habcde-aaaaaa",
    "Job_Owner": "user@login1",
    "Account_Name": "proj",
    "job_state": "R",
    "queue": "prod",
    "exec_host": "nid001/0*32+nid001/1*32+nid002/0*32",
    "Resource_List": {"nodect": 2, "walltime": "01:30:00", "select": "2:ncpus=32:ngpus=4"},
    "comment": "Job run at Mon Mar 04 at 10:01 on (nid001:ncpus=32)",
    "run_count": 2,
    "substate": 42,
}


def completed(stdout: str = "", stderr: str = "", returncode: int = 0) -> Completed:
    return Completed("qstat -f", returncode, stdout, stderr)


def answer(**changes: object) -> str:
    job = {**RUNNING, **changes}
    found = {"timestamp": 1, "pbs_version": "22.05.11", "pbs_server": "pbs01"}
    return json.dumps({**found, "Jobs": {"12.pbs01": job}})


def one(**changes: object) -> ObservedJob:
    (job,) = parse_qstat(completed(answer(**changes)))
    return job


# --- qstat ---


def test_a_running_job_is_read_with_its_nodes_and_restarts() -> None:
    assert one() == ObservedJob(
        job_id=JobId("12.pbs01"),
        name="habcde-aaaaaa",
        state=JobState.RUNNING,
        reason="Job run at Mon Mar 04 at 10:01 on (nid001:ncpus=32)",
        queue="prod",
        nodes=2,
        restarts=1,
        node_names="nid001,nid002",
        user="user",
        account="proj",
    )


@pytest.mark.parametrize(
    ("letter", "state"),
    [
        ("Q", JobState.QUEUED),
        ("W", JobState.QUEUED),
        ("T", JobState.QUEUED),
        ("H", JobState.HELD),
        ("B", JobState.RUNNING),
        ("R", JobState.RUNNING),
        ("S", JobState.RUNNING),
        ("U", JobState.RUNNING),
        ("E", JobState.ENDING),
        ("F", JobState.ENDED),
        ("X", JobState.ENDED),
        ("M", JobState.UNKNOWN),
        ("Z", JobState.UNKNOWN),
    ],
)
def test_states_map_one_by_one(letter: str, state: JobState) -> None:
    found = one(job_state=letter)
    assert found.state is state
    assert (found.end is not None) == (state is JobState.ENDED)


@pytest.mark.parametrize(
    ("changes", "end"),
    [
        ({"Exit_status": 0, "substate": 92}, JobEnd.COMPLETED),
        ({"Exit_status": 3, "substate": 93}, JobEnd.FAILED),
        ({"Exit_status": -29, "substate": 93}, JobEnd.TIMED_OUT),
        ({"Exit_status": -27, "substate": 93}, JobEnd.OUT_OF_MEMORY),
        ({"Exit_status": -11, "substate": 92}, JobEnd.PREEMPTED),
        ({"Exit_status": -4, "substate": 93}, JobEnd.NODE_FAILED),
        ({"Exit_status": 271, "substate": 91}, JobEnd.CANCELLED),
        ({"Exit_status": 271, "substate": 93}, JobEnd.FAILED),
        ({"substate": 91}, JobEnd.CANCELLED),
        ({"substate": 92}, JobEnd.UNKNOWN),
        ({"Exit_status": -99, "substate": 93}, JobEnd.UNKNOWN),
        (
            {"Exit_status": 271, "substate": 93, "resources_used": {"walltime": "01:30:07"}},
            JobEnd.TIMED_OUT,
        ),
        (
            {"Exit_status": 271, "substate": 91, "resources_used": {"walltime": "01:29:59"}},
            JobEnd.CANCELLED,
        ),
    ],
)
def test_ends_are_told_by_exit_status_and_substate(changes: dict[str, object], end: JobEnd) -> None:
    assert one(job_state="F", **changes).end is end


def test_every_exit_of_pbs_itself_has_an_end() -> None:
    skipped = {-8, -9}  # never used
    assert set(EXITS) == set(range(-30, 1)) - skipped


def test_the_reason_of_an_end_has_exit_and_comment() -> None:
    assert one(job_state="F", Exit_status=3, comment="and\n failed").reason == "exit 3, and failed"


@pytest.mark.parametrize("name", ["1e5", "007", "12"])
def test_names_that_look_like_numbers_stay_what_they_are(name: str) -> None:
    text = answer().replace('"habcde-aaaaaa"', name if name != "007" else '"007"')
    assert parse_qstat(completed(text))[0].name == name


def test_a_tab_in_a_users_variable_does_no_harm() -> None:
    text = answer(Variable_List={"A": "@"}).replace("@", "a\tb")
    assert len(parse_qstat(completed(text))) == 1


def test_no_jobs_is_no_jobs() -> None:
    head = {"timestamp": 1, "pbs_version": "22.05.11", "pbs_server": "pbs01"}
    assert parse_qstat(completed(json.dumps(head))) == ()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "Welcome to the cluster!\n" + answer(),
        answer()[:-40],
        "[" * 100_000,
        answer(job_state=None),
        answer(Job_Name={}),
        answer(Resource_List="two"),
        answer(run_count="many"),
        answer().replace('"Jobs": {', '"Jobs": [{').replace("}}}", "}}}]"),
    ],
)
def test_output_that_is_not_all_jobs_is_an_error(text: str) -> None:
    with pytest.raises(BatchUnavailable, match="printed"):
        parse_qstat(completed(text))


GONE = (
    "qstat: Unknown Job Id 13.pbs01\n"
    "qstat: 14.pbs01 Job has finished, use -x or -H to obtain historical job information\n"
)


def test_jobs_that_went_between_two_commands_are_left_out() -> None:
    assert [job.job_id for job in parse_qstat(completed(answer(), GONE, 35))] == ["12.pbs01"]
    assert parse_qstat(completed("", GONE, 153)) == ()


@pytest.mark.parametrize(
    "words",
    [
        "qstat: cannot connect to server pbs01 (errno=15010)",
        GONE + "qstat: End of File",
        "",
    ],
)
def test_failed_qstat_is_an_error_even_with_jobs_in_its_output(words: str) -> None:
    with pytest.raises(BatchUnavailable) as caught:
        parse_qstat(completed(answer(), words, 1))
    assert (caught.value.returncode, caught.value.stderr) == (1, words)


def test_a_server_without_history_says_so() -> None:
    words = "qstat: PBS is not configured to maintain job history\n"
    assert has_no_history(completed("", words, 142))
    assert not has_no_history(completed("", GONE, 35))


# --- qselect ---


def test_ids_come_one_a_line() -> None:
    assert parse_qselect(completed("12.pbs01\n13[].pbs01\n")) == ("12.pbs01", "13[].pbs01")
    assert parse_qselect(completed()) == ()


@pytest.mark.parametrize("text", ["Welcome!\n12.pbs01\n", "12.pbs01\n13.pb", "\n", "12 13\n"])
def test_what_is_no_list_of_ids_is_an_error(text: str) -> None:
    with pytest.raises(BatchUnavailable, match="no job id"):
        parse_qselect(completed(text))


def test_failed_qselect_is_not_an_empty_queue() -> None:
    with pytest.raises(BatchUnavailable, match="cannot connect"):
        parse_qselect(completed("", "qselect: cannot connect to server pbs01 (errno=111)", 2))


# --- qsub ---


@pytest.mark.parametrize("text", ["12.pbs01.cluster\n", "12\n", "Using project phy123\n12.p-1\n"])
def test_job_id_is_the_last_line(text: str) -> None:
    assert parse_submitted(completed(text)) == text.splitlines()[-1]


@pytest.mark.parametrize("text", ["", "12.pbs01", "12.pbs01\nbye\n", "job 12.pbs01\n"])
def test_success_without_an_id_may_have_been_taken(text: str) -> None:
    with pytest.raises(BatchUnavailable, match="no job id"):
        parse_submitted(completed(text))


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("qsub: Unknown queue", 172),
        ("qsub: Job violates queue and/or server resource limits", 188),
        ("qsub: Illegal attribute or resource value Resource_List.select", 166),
        ("qsub: Unauthorized Request ", 159),
        ("qsub: would exceed queue debug's per-user limit of jobs in 'Q' state", 141),
        ("qsub: Job rejected: please say -l filesystems=", 32),
        ("qsub: Maximum number of jobs already in queue for user", 1),
        ("usage: qsub [-a date_time] [-A account_string]", 2),
    ],
)
def test_a_no_is_a_refusal_in_pbs_own_words(words: str, code: int) -> None:
    with pytest.raises(SubmissionRefused, match=re.escape(words.strip())):
        parse_submitted(completed("", words, code))


@pytest.mark.parametrize(
    "words",
    [
        "Connection refused\nqsub: cannot connect to server pbs01 (errno=15010)",
        "qsub: End of File",
        "qsub: Server shutting down",
        "qsub: Invalid credential",
        "pbs_iff: error returned: 15031\nqsub: No Permission.",
        "qsub: Communication failure.",
        "qsub: Request timed out",
        "Killed",
        "",
    ],
)
def test_anything_else_leaves_open_whether_the_job_was_taken(words: str) -> None:
    with pytest.raises(BatchUnavailable):
        parse_submitted(completed("", words, 1))


# --- qdel and the command lines ---


@pytest.mark.parametrize(
    "words",
    [
        "qdel: Unknown Job Id 12.pbs01",
        "qdel: Job has finished 12.pbs01",
        "qdel: Request invalid for state of job 12.pbs01",
    ],
)
def test_cancelled_jobs_that_are_gone_are_fine(words: str) -> None:
    check_cancelled(completed("", words, 153))


@pytest.mark.parametrize("words", ["qdel: Unauthorized Request  13.pbs01", ""])
def test_one_real_failure_among_jobs_that_are_gone_is_an_error(words: str) -> None:
    stderr = f"qdel: Unknown Job Id 12.pbs01\n{words}" if words else ""
    with pytest.raises(BatchUnavailable):
        check_cancelled(completed("", stderr, 159))


@pytest.mark.parametrize("job", ["prod", "@server", "-Wforce", "12 13", "", "12.a;b"])
def test_only_ids_are_given_to_commands(job: str) -> None:
    with pytest.raises(BatchUnavailable, match="not a PBS job id"):
        qdel_command([JobId("12.pbs01"), JobId(job)])
    with pytest.raises(BatchUnavailable, match="not a PBS job id"):
        qstat_command([JobId(job)])


def test_names_are_looked_for_among_ended_jobs_too() -> None:
    tag = Tag("habcde-aaaaaa")
    assert qselect_command("user", tag) == ("qselect", "-u", "user", "-x", "-N", tag)
    with pytest.raises(ConfigurationError):
        qselect_command("user", Tag("a b"))


def test_leftovers_of_an_outer_job_do_not_reach_qsub() -> None:
    base = {"PBS_JOBID": "7", "PBS_DPREFIX": "#X", "PBS_CONF_FILE": "/etc/pbs.conf", "PATH": "/"}
    assert qsub_environment(base) == {"PBS_CONF_FILE": "/etc/pbs.conf", "PATH": "/"}
