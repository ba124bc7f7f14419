"""What the commands of Flux print, read strictly. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from harvester.batch.answers import (
    Table,
    check_complaints,
    count,
    last_line,
    read_table,
    table,
    tables,
    text,
    text_if_any,
)
from harvester.batch.commands import Completed
from harvester.batch.port import JobEnd, JobState, ObservedJob
from harvester.errors import SubmissionRefused
from harvester.model import JobId

STATES: Mapping[str, JobState] = {
    "NEW": JobState.QUEUED,
    "DEPEND": JobState.QUEUED,
    "PRIORITY": JobState.QUEUED,
    "SCHED": JobState.QUEUED,
    "RUN": JobState.RUNNING,
    "CLEANUP": JobState.ENDING,
    "INACTIVE": JobState.ENDED,
}
RESULTS: Mapping[str, JobEnd] = {
    "COMPLETED": JobEnd.COMPLETED,
    "FAILED": JobEnd.FAILED,
    "CANCELED": JobEnd.CANCELLED,
    "TIMEOUT": JobEnd.TIMED_OUT,
}
_NODE_LOST = "node-failure"  # the type of the exception that the job's exec service raises then
_HELD = "0"  # the urgency of a job that is held

# RFC 19: base 58 in the order of Bitcoin's alphabet.
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_SUBMITTED = re.compile(rf"[fƒ]([{_BASE58}]+)")
_SAID_NO = re.compile(r"^flux-batch: (?:error|critical): ", re.IGNORECASE | re.MULTILINE)
# Of these it is unknown whether Flux has the job, or they pass.
_OUT_OF_REACH = re.compile(
    r"connect|connection|broker|socket|not implemented|unreachable|timed out|timeout|shut ?down"
    r"|no route|temporarily|try again|protocol|broken pipe|reset by peer|munge",
    re.IGNORECASE,
)
_GONE = re.compile(r"unknown job|job is inactive|no such file or directory", re.IGNORECASE)


def f58(number: int) -> str:
    """A job id as Flux shows it to people, with an ASCII ``f``."""
    digits = ""
    while number or not digits:
        number, digit = divmod(number, 58)
        digits = _BASE58[digit] + digits
    return f"f{digits}"


def parse_submitted(done: Completed) -> JobId:
    """The job id that flux batch printed.

    Raises:
        SubmissionRefused: Flux said no.
        BatchUnavailable: anything else; the job may have been taken.
    """
    if done.returncode == 0:
        return JobId(f"f{last_line(done, _SUBMITTED, 'job id').group(1)}")
    if not _SAID_NO.search(done.stderr) or _OUT_OF_REACH.search(done.stderr):
        raise done.unavailable("batch failed")
    words = " ".join(done.stderr.split())[:1000]
    raise SubmissionRefused(f"Flux refuses the job: {words}")


def parse_jobs(done: Completed) -> tuple[ObservedJob, ...]:
    """The jobs that ``flux jobs --json`` lists."""
    if done.returncode != 0:
        raise done.unavailable("jobs failed")
    records = tables(done, read_table(done), "jobs")
    return tuple(_observed(done, record) for record in records)


def check_cancelled(done: Completed) -> None:
    """Raise unless flux cancel did it, or every complaint of its is about a job that is gone."""
    check_complaints(done, _GONE)


def check_released(done: Completed) -> None:
    """Raise unless flux did it, or it complains about a job that is gone."""
    # It says what the urgency was, on either stream: not a complaint.
    if done.returncode != 0:
        check_complaints(done, _GONE)


def _observed(done: Completed, job: Table) -> ObservedJob:
    number = text(done, job, "id")
    if not number.isdecimal():
        raise done.unavailable(f"printed what is no job id: {number!r:.80}")
    state = STATES.get(text(done, job, "state"), JobState.UNKNOWN)
    if state is JobState.QUEUED and text_if_any(done, job, "urgency") == _HELD:
        state = JobState.HELD
    return ObservedJob(
        job_id=JobId(f58(int(number))),
        name=text(done, job, "name"),
        state=state,
        end=_end(done, job) if state is JobState.ENDED else None,
        reason=_reason(done, job, state),
        queue=text_if_any(done, job, "queue"),
        nodes=count(done, job, "nnodes"),
        node_names=text_if_any(done, job, "nodelist"),
        user=text_if_any(done, job, "userid"),
        account=text_if_any(done, job, "bank"),
    )


def _end(done: Completed, job: Table) -> JobEnd:
    end = RESULTS.get(text_if_any(done, job, "result"), JobEnd.UNKNOWN)
    lost = text_if_any(done, table(done, job, "exception"), "type") == _NODE_LOST
    return JobEnd.NODE_FAILED if end is JobEnd.FAILED and lost else end


def _reason(done: Completed, job: Table, state: JobState) -> str:
    """Flux's own words: what a waiting job waits for, or how an ended one ended."""
    if state is not JobState.ENDED:
        scheduler = table(done, table(done, job, "annotations"), "sched")
        waits = text_if_any(done, scheduler, "reason_pending")
        word = text(done, job, "state")
        if state is JobState.HELD:
            return "held: its urgency is 0"
        return "" if word == "RUN" else waits or word.lower()
    exception = table(done, job, "exception")
    words = [text_if_any(done, exception, key) for key in ("type", "note")]
    said = ": ".join(" ".join(word.split()) for word in words if word)
    parts = [f"exit {text_if_any(done, job, 'returncode') or 'unknown'}", said]
    return ", ".join(part for part in parts if part)
