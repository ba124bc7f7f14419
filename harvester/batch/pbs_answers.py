"""What the commands of PBS print, read strictly. Pure."""

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
    text,
    text_if_any,
)
from harvester.batch.commands import Completed
from harvester.batch.port import JobEnd, JobState, ObservedJob
from harvester.errors import BatchUnavailable, SubmissionRefused
from harvester.model import JobId

STATES: Mapping[str, JobState] = {
    "Q": JobState.QUEUED,
    "W": JobState.QUEUED,  # for its start time, or for files to be staged in
    "T": JobState.QUEUED,  # on its way from one queue or server to another
    "H": JobState.HELD,
    "B": JobState.RUNNING,  # an array of which something has begun
    "R": JobState.RUNNING,
    "S": JobState.RUNNING,  # suspended by the server, as for a preemption
    "U": JobState.RUNNING,  # suspended because its workstation is in use
    "E": JobState.ENDING,
    "F": JobState.ENDED,
    "X": JobState.ENDED,  # an array's element
    "M": JobState.UNKNOWN,  # moved to another server, which alone knows
}
# Negative exit statuses are PBS's own: JOB_EXEC_* in src/include/job.h.
EXITS: Mapping[int, JobEnd] = {
    0: JobEnd.COMPLETED,
    -1: JobEnd.FAILED,
    -2: JobEnd.FAILED,
    -3: JobEnd.NODE_FAILED,  # could not be started, may be tried again
    -4: JobEnd.NODE_FAILED,  # the node's daemon was restarted
    -5: JobEnd.NODE_FAILED,
    -6: JobEnd.NODE_FAILED,
    -7: JobEnd.FAILED,
    -10: JobEnd.FAILED,
    -11: JobEnd.PREEMPTED,  # run again
    -12: JobEnd.PREEMPTED,  # checkpointed and killed
    -13: JobEnd.FAILED,
    -14: JobEnd.NODE_FAILED,  # a sister node, while the job was run again
    -15: JobEnd.PREEMPTED,
    -16: JobEnd.NODE_FAILED,  # a hook on the node refused; to be tried again
    -17: JobEnd.FAILED,
    -18: JobEnd.PREEMPTED,
    -19: JobEnd.FAILED,
    -20: JobEnd.NODE_FAILED,  # the first node lost touch
    -21: JobEnd.FAILED,
    -22: JobEnd.FAILED,
    -23: JobEnd.FAILED,
    -24: JobEnd.FAILED,
    -25: JobEnd.FAILED,
    -26: JobEnd.OUT_OF_MEMORY,
    -27: JobEnd.OUT_OF_MEMORY,
    -28: JobEnd.FAILED,  # processor time
    -29: JobEnd.TIMED_OUT,
    -30: JobEnd.NODE_FAILED,  # a node could not join
}
# Who holds a job, by what PBS calls Hold_Types; "n" is nobody.
_HOLDS: Mapping[str, str] = {
    "u": "held by its user",
    "o": "held by an operator",
    "s": "held by the system",
    "p": "held for a wrong password",
}
_DELETED = "91"  # substate of a job that somebody deleted
# 256 and the number of the signal; shells say 128: TERM and KILL, as a walltime's end sends them.
_KILLED = frozenset({271, 265, 143, 137})

_JOB_ID = r"\d+(?:\[\d*\])?(?:\.[\w.-]+)?"
_GONE = re.compile(r"unknown job id|job has finished", re.IGNORECASE)
_GONE_OR_GOING = re.compile(rf"{_GONE.pattern}|request invalid for state of job", re.IGNORECASE)
_NO_HISTORY = "not configured to maintain job history"
_SAID_NO = re.compile(r"^(?:qsub|usage): ?(.+)", re.MULTILINE | re.IGNORECASE)
# Of these it is unknown whether the server has the job, or they pass.
_OUT_OF_REACH = re.compile(
    r"cannot connect|connection|communication|timed out|timeout|time-out|end of file|protocol"
    r"|premature|reply|pbs_iff|authenticat|credential|munge|system error|internal|shutting down"
    r"|no server|unknown host|not respond|try again|temporarily|disconnect|database|no memory|busy",
    re.IGNORECASE,
)


def check_id(job: JobId) -> str:
    """A job's id, if it is one: qstat takes other words for queues, qdel for options."""
    if not re.fullmatch(_JOB_ID, job):
        raise BatchUnavailable(f"{job!r:.80} is not a PBS job id; nothing was asked")
    return job


def parse_submitted(done: Completed) -> JobId:
    """The job id that qsub printed.

    Raises:
        SubmissionRefused: qsub, a hook or the server said no.
        BatchUnavailable: anything else; the job may have been taken.
    """
    if done.returncode == 0:
        return JobId(last_line(done, re.compile(_JOB_ID), "job id").group())
    if not _SAID_NO.search(done.stderr) or _OUT_OF_REACH.search(done.stderr):
        raise done.unavailable("failed")
    words = " ".join(done.stderr.split())[:1000]
    raise SubmissionRefused(f"PBS refuses the job: {words}")


def parse_qselect(done: Completed) -> tuple[JobId, ...]:
    """The ids that qselect printed, one a line; none is a sound answer."""
    if done.returncode != 0:
        raise done.unavailable("failed")
    lines = done.stdout.splitlines()
    wrong = next((line for line in lines if not re.fullmatch(_JOB_ID, line)), None)
    if wrong is not None or (lines and not done.stdout.endswith("\n")):
        raise done.unavailable(f"printed what is no job id: {wrong or done.stdout[-80:]!r:.120}")
    return tuple(JobId(line) for line in lines)


def parse_qstat(done: Completed) -> tuple[ObservedJob, ...]:
    """The jobs that qstat shows; ids that PBS does not know any more are left out."""
    if done.returncode != 0:
        complaints = [line for line in done.stderr.splitlines() if line.strip()]
        if not complaints or not all(_GONE.search(line) for line in complaints):
            raise done.unavailable("failed")
        if not done.stdout.strip():
            return ()
    answer = read_table(done)
    text(done, answer, "pbs_version")  # any other JSON is not from qstat
    jobs = table(done, answer, "Jobs")
    return tuple(_observed(done, job_id, table(done, jobs, job_id)) for job_id in jobs)


def has_no_history(done: Completed) -> bool:
    """Whether this server says that it keeps no ended jobs."""
    return done.returncode != 0 and _NO_HISTORY in done.stderr.lower()


def check_cancelled(done: Completed) -> None:
    """Raise unless qdel did it, or every complaint of its is about a job that is gone or going."""
    check_complaints(done, _GONE_OR_GOING)


def check_released(done: Completed) -> None:
    """Raise unless qrls did it, or every complaint of its is about a job that is gone or runs."""
    check_complaints(done, _GONE_OR_GOING)


def _observed(done: Completed, job_id: str, job: Table) -> ObservedJob:
    asked = table(done, job, "Resource_List")
    state = STATES.get(text(done, job, "job_state"), JobState.UNKNOWN)
    end = _end(done, job) if state is JobState.ENDED else None
    return ObservedJob(
        job_id=JobId(job_id),
        name=text(done, job, "Job_Name"),
        state=state,
        end=end,
        reason=_reason(done, job),
        queue=text_if_any(done, job, "queue"),
        nodes=count(done, asked, "nodect"),
        restarts=max(0, count(done, job, "run_count") - 1),
        node_names=_hosts(text_if_any(done, job, "exec_host")),
        user=text_if_any(done, job, "Job_Owner").partition("@")[0],
        account=text_if_any(done, job, "Account_Name"),
    )


def _end(done: Completed, job: Table) -> JobEnd:
    exit_text = text_if_any(done, job, "Exit_status")
    deleted = text_if_any(done, job, "substate") == _DELETED
    if not re.fullmatch(r"-?\d+", exit_text):
        # It never ran: deleted while it was queued, or we do not know why.
        return JobEnd.CANCELLED if deleted else JobEnd.UNKNOWN
    status = int(exit_text)
    if status in EXITS:
        return EXITS[status]
    if status in _KILLED and _used_up(done, job):
        return JobEnd.TIMED_OUT
    if deleted:
        return JobEnd.CANCELLED
    return JobEnd.FAILED if status > 0 else JobEnd.UNKNOWN


def _used_up(done: Completed, job: Table) -> bool:
    asked = _seconds(text_if_any(done, table(done, job, "Resource_List"), "walltime"))
    used = _seconds(text_if_any(done, table(done, job, "resources_used"), "walltime"))
    return asked > 0 and used >= asked


def _seconds(walltime: str) -> int:
    """Of ``HH:MM:SS``; 0 for what is none."""
    found = re.fullmatch(r"(\d+):(\d\d):(\d\d)", walltime)
    if found is None:
        return 0
    hours, minutes, seconds = map(int, found.groups())
    return (hours * 60 + minutes) * 60 + seconds


def _reason(done: Completed, job: Table) -> str:
    """PBS's own words: who holds it, the comment, and the exit status of what has ended."""
    status = text_if_any(done, job, "Exit_status")
    comment = " ".join(text_if_any(done, job, "comment").split())
    held = _HOLDS.get(text_if_any(done, job, "Hold_Types"), "")
    parts = [f"exit {status}" if status else "", held, comment]
    return ", ".join(part for part in parts if part)


def _hosts(exec_host: str) -> str:
    """``n1,n2`` of ``n1/0*32+n1/1*32+n2/0*32``."""
    names = [part.split("/", 1)[0] for part in exec_host.split("+") if part]
    return ",".join(dict.fromkeys(names))
