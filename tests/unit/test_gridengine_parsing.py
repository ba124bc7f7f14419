"""What the commands of Grid Engine print, read strictly. Texts of a Son of Grid Engine 8.1.9."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from harvester.batch.commands import Completed
from harvester.batch.gridengine import (
    GridEngine,
    client_environment,
    qdel_command,
    reasons_command,
)
from harvester.batch.gridengine_answers import (
    STATES,
    check_cancelled,
    parse_qacct,
    parse_qstat,
    parse_submitted,
)
from harvester.batch.port import JobEnd, JobState, ObservedJob
from harvester.errors import BatchUnavailable, SubmissionRefused
from harvester.model import JobId

TAG = "habcde-aaaaaa"


def completed(stdout: str = "", stderr: str = "", returncode: int = 0) -> Completed:
    return Completed("qstat -xml", returncode, stdout, stderr)


# --- qstat ---


def listing(state: str = "r", *, name: str = TAG, queue: str = "all.q@n1", slots: int = 6) -> str:
    return f"""<?xml version='1.0'?>
<job_info  xmlns:xsd="http://arc.liv.ac.uk/repos/qstat.xsd">
  <queue_info>
    <job_list state="running">
      <JB_job_number>12</JB_job_number>
      <JAT_prio>0.50000</JAT_prio>
      <JB_name>{name}</JB_name>
      <JB_owner>user</JB_owner>
      <JB_project>proj</JB_project>
      <state>{state}</state>
      <JAT_start_time>2026-11-21T16:05:16</JAT_start_time>
      <queue_name>{queue}</queue_name>
      <slots>{slots}</slots>
    </job_list>
  </queue_info>
  <job_info>
  </job_info>
</job_info>
"""


def one(text: str) -> ObservedJob:
    (job,) = parse_qstat(completed(text))
    return job


def test_running_job_is_read_with_its_queue_and_first_host() -> None:
    assert one(listing()) == ObservedJob(
        job_id=JobId("12"),
        name=TAG,
        state=JobState.RUNNING,
        reason="r",
        queue="all.q",
        node_names="n1",
        user="user",
        account="proj",
    )


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("qw", JobState.QUEUED),
        ("Rq", JobState.QUEUED),
        ("hqw", JobState.HELD),
        ("hRwq", JobState.HELD),
        ("Eqw", JobState.HELD),
        ("EhRqw", JobState.HELD),
        ("r", JobState.RUNNING),
        ("t", JobState.RUNNING),
        ("Rr", JobState.RUNNING),
        ("Rt", JobState.RUNNING),
        ("s", JobState.RUNNING),
        ("S", JobState.RUNNING),
        ("T", JobState.RUNNING),
        ("dr", JobState.ENDING),
        ("dt", JobState.ENDING),
        ("dRr", JobState.ENDING),
        ("z", JobState.ENDED),
        ("xyz", JobState.UNKNOWN),
        ("dEqw", JobState.UNKNOWN),
    ],
)
def test_states_are_read_one_by_one(word: str, state: JobState) -> None:
    assert one(listing(word)).state is state


def test_every_state_of_a_job_that_starts_again_says_so() -> None:
    again = {word for word in STATES if one(listing(word)).restarts == 1}
    assert again == {word for word in STATES if "R" in word}


def test_names_with_markup_are_names() -> None:
    assert one(listing(name="a&lt;b &amp; c")).name == "a<b & c"


def test_job_that_waits_has_neither_queue_nor_host() -> None:
    job = one(listing("qw", queue="", slots=1))
    assert (job.queue, job.node_names, job.nodes) == ("", "", 1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Welcome!\n" + listing(),
        listing()[:-20],
        listing().replace("12", "twelve"),
        listing().replace("<state>r</state>", ""),
        listing().replace("job_info", "detailed_job_info"),
        "<job_info></job_info>",
        listing(slots=-1),
    ],
)
def test_anything_else_is_no_list_of_jobs(text: str) -> None:
    with pytest.raises(BatchUnavailable, match="printed"):
        parse_qstat(completed(text))


def test_qmaster_that_does_not_answer_is_no_empty_list() -> None:
    words = "error: commlib error: got select error (Connection refused)"
    with pytest.raises(BatchUnavailable, match="commlib"):
        parse_qstat(completed("", words, 1))


def test_job_in_error_says_what_is_wrong() -> None:
    answers = {
        "-xml": completed(listing("Eqw", queue="", slots=1)),
        "-j": completed(
            "==============\njob_number:                 12\n"
            "error reason          1:      11/21/2026 16:06:03 [1001:244]: can't chdir to /x\n"
        ),
    }
    batch = GridEngine(execute=lambda argv, **_: answers[argv[1]], user="user")

    (job,) = batch.observe().jobs

    assert job.state is JobState.HELD
    assert job.reason == "Eqw: 11/21/2026 16:06:03 [1001:244]: can't chdir to /x"


def test_reason_of_a_job_in_error_is_asked_for_once_and_counted() -> None:
    asked: list[str] = []
    answers = {
        "-xml": completed(listing("Eqw", queue="", slots=1)),
        "-j": completed("job_number:  12\nerror reason  1:  can't chdir to /x\n"),
    }

    def execute(argv: Sequence[str], **_: object) -> Completed:
        asked.append(argv[1])
        return answers[argv[1]]

    batch = GridEngine(execute=execute, user="user")

    looks = [batch.observe() for _ in range(3)]

    assert [look.jobs[0].reason for look in looks] == ["Eqw: can't chdir to /x"] * 3
    assert asked == ["-xml", "-j", "-xml", "-xml"]
    assert [look.extra_commands for look in looks] == [1, 0, 0]


def test_job_in_error_that_is_gone_meanwhile_keeps_its_state() -> None:
    gone = completed("Following jobs do not exist: \n12\n", "", 1)
    answers = {"-xml": completed(listing("Eqw", queue="")), "-j": gone}
    batch = GridEngine(execute=lambda argv, **_: answers[argv[1]], user="user")
    assert [job.reason for job in batch.observe().jobs] == ["Eqw"]


# --- qacct ---

RULE = "=" * 62 + "\n"
TOTAL = f"OWNER      WALLCLOCK   UTIME\n{RULE}"


def record(
    failed: str = "0",
    status: str = "0",
    lasted: str = "31s",
    number: int = 9,
    category: str = "-l h_rt=600 -pe mpi 6",
) -> str:
    fields = {
        "qname": "all.q",
        "hostname": "n1",
        "owner": "user",
        "jobname": TAG,
        "jobnumber": number,
        "start_time": "Sat Nov 21 16:06:03 2026",
        "slots": 6,
        "failed": failed,
        "exit_status": status,
        "ru_wallclock": lasted,
        "arid": "undefined",
        "category": category,
    }
    return RULE + "".join(f"{key:<12} {value}\n" for key, value in fields.items())


KILLED = "137                  (Killed)"
LIMIT = "37  : qmaster enforced h_rt, h_cpu, or h_vmem limit"
AFTER = "100 : assumedly after job"


@pytest.mark.parametrize(
    ("failed", "status", "lasted", "end"),
    [
        ("19  : before writing exit_status", "0", "0", JobEnd.NODE_FAILED),
        ("0", "0", "31s", JobEnd.COMPLETED),
        ("0", "3", "31s", JobEnd.FAILED),
        (AFTER, KILLED, "10s", JobEnd.CANCELLED),
        (AFTER, KILLED, "605s", JobEnd.TIMED_OUT),
        (LIMIT, KILLED, "605s", JobEnd.TIMED_OUT),
        (LIMIT, KILLED, "605.31", JobEnd.TIMED_OUT),
        (LIMIT, KILLED, "90s", JobEnd.FAILED),
        (AFTER, "138                  (User defined signal 1)", "10s", JobEnd.FAILED),
        ("15  : in epilog", "0", "10s", JobEnd.FAILED),
    ],
)
def test_ends_are_told_apart(failed: str, status: str, lasted: str, end: JobEnd) -> None:
    (job,) = parse_qacct(completed(record(failed, status, lasted) + TOTAL))
    assert (job.state, job.end) == (JobState.ENDED, end)


def test_job_without_a_start_time_in_the_books_is_found_without_a_choice_of_days() -> None:
    """As of a job whose node crashed: ``qacct -d`` leaves it out."""
    asked: list[bool] = []

    def execute(argv: Sequence[str], *, timeout_s: float, environment: object) -> Completed:
        asked.append("-d" in argv)
        lost = record("19  : before writing exit_status", "0", "0", number=10)
        return completed(record(number=9) + ("" if "-d" in argv else lost) + TOTAL)

    batch = GridEngine(execute=execute, user="user")
    assert [job.job_id for job in batch.ended([JobId("9")], [])] == ["9"]
    assert asked == [True]
    (lost,) = batch.ended([JobId("10")], [])
    assert (lost.job_id, lost.end) == ("10", JobEnd.NODE_FAILED)
    assert asked == [True, True, False]


def test_end_comes_in_grid_engines_own_words() -> None:
    (job,) = parse_qacct(completed(record(AFTER, KILLED) + TOTAL))
    assert job.reason == "exit 137, assumedly after job"
    assert (job.name, job.queue, job.node_names) == (TAG, "all.q", "n1")


@pytest.mark.parametrize(
    "failed", ["25  : rescheduling", "1   : assumedly before job", "28  : changing into x"]
)
def test_start_that_failed_before_its_job_ran_is_no_end(failed: str) -> None:
    (job,) = parse_qacct(completed(record(failed) + TOTAL))
    assert (job.state, job.end) == (JobState.UNKNOWN, None)


def test_last_start_of_a_job_counts() -> None:
    text = record("25  : rescheduling") + record("0", "3", number=8) + record() + TOTAL
    jobs = {job.job_id: job.end for job in parse_qacct(completed(text))}
    assert jobs == {"9": JobEnd.COMPLETED, "8": JobEnd.FAILED}


def test_books_without_a_job_are_a_table_without_a_line() -> None:
    assert parse_qacct(completed(TOTAL)) == ()


def test_cluster_on_which_nothing_has_ended_yet_has_no_books() -> None:
    words = "/sge/default/common/accounting: No such file or directory\n"
    told = "no jobs running since startup\n"
    assert parse_qacct(completed(told, words, 1)) == parse_qacct(completed("", told, 1)) == ()
    with pytest.raises(BatchUnavailable, match="No such file"):
        parse_qacct(completed("", words, 1))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "OWNER      WALLCL",
        TOTAL[:-1],
        record(),
        f"Welcome!\n{TOTAL}",
        f"Welcome!\n{record()}{TOTAL}",
        record()[: record().index("exit_status")] + TOTAL,
        record(failed="none") + TOTAL,
    ],
)
def test_anything_else_is_no_accounting(text: str) -> None:
    with pytest.raises(BatchUnavailable, match="printed"):
        parse_qacct(completed(text))


# --- qsub and qdel ---


@pytest.mark.parametrize("text", ["12\n", "Using project physics\n12\n"])
def test_last_line_of_qsub_is_the_job_id(text: str) -> None:
    assert parse_submitted(completed(text)) == "12"


@pytest.mark.parametrize("text", ["", "12", "12\nbye\n", "job 12\n", "0\n"])
def test_submission_without_an_id_may_have_been_taken(text: str) -> None:
    with pytest.raises(BatchUnavailable, match="no job id"):
        parse_submitted(completed(text))


@pytest.mark.parametrize(
    "words",
    [
        "Unable to run job: error: no suitable queues\nExiting.",
        'Unable to run job: unknown resource "nosuch"\nExiting.',
        'Unable to run job: Job was rejected because job requests unknown queue "q"\nExiting.',
        'Unable to run job: job rejected: the requested parallel environment "mpi" does not exist',
        'Unable to run job: attribute "h_rt" is not a time value\nExiting.',
        'qsub: invalid option argument "-frob"',
        "Unable to read script file because of error: error opening x: No such file or directory",
    ],
)
def test_a_no_is_a_refusal_in_grid_engines_own_words(words: str) -> None:
    with pytest.raises(SubmissionRefused, match="Grid Engine refuses the job") as refusal:
        parse_submitted(completed("", words, 1))
    assert " ".join(words.split()).removesuffix(" Exiting.") in str(refusal.value)


@pytest.mark.parametrize(
    "words",
    [
        "error: commlib error: got select error (Connection refused)\nUnable to run job: unable to "
        'send message to qmaster using port 6444 on host "login": got send error\nExiting.',
        "Unable to run job: failed receiving gdi request response for mid=1 (got syncron message "
        "receive timeout error).\nExiting.",
        "Unable to run job: Error reading answer list from qmaster\nExiting.",
        'error: SGE_ROOT directory "/nonexist" doesn\'t exist',
        "Killed",
    ],
)
def test_submission_without_a_sound_answer_is_no_refusal(words: str) -> None:
    with pytest.raises(BatchUnavailable):
        parse_submitted(completed("", words, 1))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("user has registered the job 10 for deletion\n", 0),
        ("user has deleted job 3\n", 0),
        ("job 14 is already in deletion\n", 0),
        ('denied: job "77" does not exist\n', 1),
        ('user has deleted job 3\ndenied: job "77" does not exist\n', 1),
    ],
)
def test_jobs_that_are_gone_or_going_are_cancelled(text: str, code: int) -> None:
    check_cancelled(completed(text, "", code))


@pytest.mark.parametrize(
    ("text", "code"), [("", 0), ("", 1), ('user - you do not have permission to delete job "3"', 1)]
)
def test_other_answers_to_a_cancellation_are_no_success(text: str, code: int) -> None:
    with pytest.raises(BatchUnavailable, match="failed"):
        check_cancelled(completed(text, "", code))


@pytest.mark.parametrize("job", ["*", "habcde-*", "-u", "", "12.3", "0"])
def test_only_ids_are_given_to_commands_that_take_patterns(job: str) -> None:
    for command in (qdel_command, reasons_command):
        with pytest.raises(BatchUnavailable, match="not a Grid Engine job id"):
            command([JobId("12"), JobId(job)])


def test_commands_speak_english_and_find_their_cluster() -> None:
    given = client_environment({"SGE_ROOT": "/sge", "SGE_CELL": "c", "LC_ALL": "de_DE.UTF-8"})
    assert given == {"SGE_ROOT": "/sge", "SGE_CELL": "c", "LC_ALL": "C"}


def test_list_with_a_document_type_is_refused_before_its_entities_are_expanded() -> None:
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    text = (
        f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e0 "x">{entities}]><job_info>&e11;</job_info>'
    )
    with pytest.raises(BatchUnavailable, match="document type"):
        parse_qstat(completed(text))
