"""What the commands of LSF print, read strictly. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from harvester.batch.answers import (
    Table,
    check_complaints,
    count,
    read_table,
    tables,
    text,
    text_if_any,
)
from harvester.batch.commands import Completed
from harvester.batch.port import JobEnd, JobState, ObservedJob
from harvester.errors import SubmissionRefused
from harvester.model import JobId

STATES: Mapping[str, JobState] = {
    "PEND": JobState.QUEUED,
    "WAIT": JobState.QUEUED,  # member of a chunk of jobs
    "PSUSP": JobState.HELD,
    "PROV": JobState.RUNNING,  # has its hosts, which wake up
    "RUN": JobState.RUNNING,
    "USUSP": JobState.RUNNING,  # suspended while running; its hosts are kept
    "SSUSP": JobState.RUNNING,
    "ZOMBI": JobState.ENDING,  # killed while its host is out of reach
    "UNKWN": JobState.UNKNOWN,  # its host is out of reach
    "DONE": JobState.ENDED,
    "EXIT": JobState.ENDED,
}
# Why a job is EXIT. What is not here, "" included, is a failure of the job itself.
REASONS: Mapping[str, JobEnd] = {
    "TERM_RUNLIMIT": JobEnd.TIMED_OUT,
    "TERM_DEADLINE": JobEnd.TIMED_OUT,
    "TERM_WINDOW": JobEnd.TIMED_OUT,  # the queue's hours are over
    "TERM_PREEMPT": JobEnd.PREEMPTED,
    "TERM_LOAD": JobEnd.PREEMPTED,  # its hosts are needed otherwise
    "TERM_RC_RECLAIM": JobEnd.PREEMPTED,
    "TERM_REQUEUE_OWNER": JobEnd.PREEMPTED,
    "TERM_REQUEUE_ADMIN": JobEnd.PREEMPTED,
    "TERM_REQUEUE_RC": JobEnd.PREEMPTED,
    "TERM_CHKPNT": JobEnd.PREEMPTED,
    "TERM_OWNER": JobEnd.CANCELLED,
    "TERM_FORCE_OWNER": JobEnd.CANCELLED,
    "TERM_ADMIN": JobEnd.CANCELLED,
    "TERM_FORCE_ADMIN": JobEnd.CANCELLED,
    "TERM_BUCKET_KILL": JobEnd.CANCELLED,
    "TERM_ORPHAN_SYSTEM": JobEnd.CANCELLED,
    "TERM_MEMLIMIT": JobEnd.OUT_OF_MEMORY,
    "TERM_SWAP": JobEnd.OUT_OF_MEMORY,
    "TERM_ZOMBIE": JobEnd.NODE_FAILED,
    "TERM_REMOVE_HUNG_JOB": JobEnd.NODE_FAILED,
    "TERM_UNKNOWN": JobEnd.UNKNOWN,
}

_SUBMITTED = re.compile(r"^Job <(\d+)> is submitted to (?:default )?queue <[^>\n]*>\.$", re.M)
_SAID_NO = re.compile(r"job not submitted|request aborted by esub", re.IGNORECASE)
# Of these it is unknown whether LSF has the job, or they pass.
_OUT_OF_REACH = re.compile(
    r"cannot connect|connection|communication|time[ -]?out|timed out|not respond|lsf is down"
    r"|lim is down|\bdown\b|try (?:again )?later|please wait|library call|rpc|internal"
    r"|authenticat|eauth|license|temporarily",
    re.IGNORECASE,
)
_NONE = re.compile(r"^no (?:unfinished )?job found\b", re.IGNORECASE)
_GONE = re.compile(r"no matching job found|already finished|is being terminated", re.IGNORECASE)


_NOT_HELD = re.compile(rf"{_GONE.pattern}|not in suspended state|is not suspended", re.IGNORECASE)


def parse_submitted(done: Completed) -> JobId:
    """The job id in bsub's confirmation.

    Raises:
        SubmissionRefused: bsub, the site's esub or the cluster said no.
        BatchUnavailable: anything else; the job may have been taken.
    """
    if done.returncode == 0:
        found = _SUBMITTED.findall(done.stdout)
        if len(found) != 1:
            raise done.unavailable(f"printed no job id but {done.stdout[-200:]!r}")
        return JobId(found[0])
    said = f"{done.stdout}\n{done.stderr}"  # esubs write to either
    if not _SAID_NO.search(said) or _OUT_OF_REACH.search(said):
        raise done.unavailable("(for bsub) failed")
    raise SubmissionRefused(f"LSF refuses the job: {' '.join(said.split())[:1000]}")


def parse_bjobs(done: Completed) -> tuple[ObservedJob, ...]:
    """The jobs that bjobs lists. Exit codes say little: a cluster may give 255 for no job."""
    if not done.stdout.strip() and _NONE.search(done.stderr.strip()):
        return ()
    if done.returncode != 0 and not _NONE.search(done.stderr.strip()):
        raise done.unavailable("failed")
    answer = read_table(done)
    if text(done, answer, "COMMAND") != "bjobs":
        raise done.unavailable(f"printed no answer of bjobs but {done.stdout[:120]!r}")
    records = tables(done, answer, "RECORDS")
    if count(done, answer, "JOBS") != len(records):
        raise done.unavailable(f"announced {answer.get('JOBS')} jobs and printed {len(records)}")
    return tuple(_observed(done, record) for record in records)


def check_cancelled(done: Completed) -> None:
    """Raise unless bkill did it, or every complaint of its is about a job that is gone."""
    check_complaints(done, _GONE)


def check_released(done: Completed) -> None:
    """Raise unless bresume did it, or every complaint of its is about a job that is not held."""
    complaints = [line for line in done.stderr.splitlines() if line.strip()]
    if done.returncode != 0 or complaints:
        check_complaints(done, _NOT_HELD)


def _observed(done: Completed, job: Table) -> ObservedJob:
    index = text_if_any(done, job, "JOBINDEX")
    number = text(done, job, "JOBID")
    if not re.fullmatch(r"\d+", number) or not re.fullmatch(r"\d*", index):
        raise done.unavailable(f"printed what is no job id: {number!r:.80}")
    state = STATES.get(text(done, job, "STAT"), JobState.UNKNOWN)
    hosts = _hosts(text_if_any(done, job, "EXEC_HOST"))
    return ObservedJob(
        job_id=JobId(number if index in ("", "0") else f"{number}[{index}]"),
        name=text(done, job, "JOB_NAME"),
        state=state,
        end=_end(done, job) if state is JobState.ENDED else None,
        reason=_reason(done, job),
        queue=text_if_any(done, job, "QUEUE"),
        nodes=count(done, job, "NEXEC_HOST") or len(hosts),
        node_names=",".join(hosts),
        user=text_if_any(done, job, "USER"),
        account=text_if_any(done, job, "PROJ_NAME"),
    )


def _end(done: Completed, job: Table) -> JobEnd:
    if job["STAT"] == "DONE":
        return JobEnd.COMPLETED
    word = text_if_any(done, job, "EXIT_REASON").split(":", 1)[0].strip()
    return REASONS.get(word, JobEnd.FAILED)


def _reason(done: Completed, job: Table) -> str:
    """LSF's own words: why it is not running, or how it ended."""
    code = text_if_any(done, job, "EXIT_CODE")
    if job["STAT"] in ("DONE", "EXIT"):
        parts = [f"exit {code or 0}", text_if_any(done, job, "EXIT_REASON")]
    else:
        parts = [text_if_any(done, job, key) for key in ("SUSPEND_REASON", "PEND_REASON")]
    return ", ".join(" ".join(part.split()) for part in parts if part)


def _hosts(exec_host: str) -> list[str]:
    """``n1`` and ``n2`` of ``42*n1:42*n2``."""
    names = [part.rpartition("*")[2] for part in exec_host.split(":") if part]
    return list(dict.fromkeys(names))
