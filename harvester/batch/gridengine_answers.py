"""What the commands of Grid Engine print, read strictly. Pure."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree  # see _parse  # nosec B405
from collections.abc import Mapping
from dataclasses import replace

from harvester.batch.answers import last_line
from harvester.batch.commands import Completed
from harvester.batch.port import JobEnd, JobState, ObservedJob
from harvester.errors import BatchUnavailable, SubmissionRefused
from harvester.model import JobId

# sge_status(5), "Job state", and what qstat of 8.1.9 prints for a job that waits anew (Rqw).
_WAITING = ("qw", "Rq", "Rqw")
_WAITING_ON_HOLD = ("hqw", "hRwq", "hRqw")
_WAITING_IN_ERROR = ("Eqw", "ERqw", "Ehqw", "EhRqw")
_RUNNING = ("r", "hr", "t", "Rr", "Rt")
_SUSPENDED = ("s", "ts", "S", "tS", "T", "tT", "Rs", "Rts", "RS", "RtS", "RT", "RtT")
_DELETED = ("dr", "dt", "dRr", "dRt", "ds", "dS", "dT", "dRs", "dRS", "dRT")
STATES: Mapping[str, JobState] = {
    **dict.fromkeys(_WAITING, JobState.QUEUED),
    **dict.fromkeys(_WAITING_ON_HOLD, JobState.HELD),
    **dict.fromkeys(_WAITING_IN_ERROR, JobState.HELD),  # until somebody clears it: qmod -cj
    **dict.fromkeys(_RUNNING, JobState.RUNNING),
    **dict.fromkeys(_SUSPENDED, JobState.RUNNING),  # it keeps its hosts
    **dict.fromkeys(_DELETED, JobState.ENDING),
    "z": JobState.ENDED,
}
# Its node came back without it: sge_status(5), "probably program or machine crash". Where it was
# to run again (-r y), it is listed anew before it has left the list, and nobody asks the books.
_NODE_CRASHED = 19
# "failed" of an accounting record whose job has run and does not come again; sge_status(5).
_AFTER_JOB = frozenset({0, 12, 13, 14, 15, 16, 17, _NODE_CRASHED, 37, 100})
_BY_LIMIT = 37  # qmaster enforced a limit
_KILLED = 137
_TOTAL = re.compile(r"^OWNER +WALLCLOCK.*\n=+\n(?:.+\n)?\Z", re.MULTILINE)
_NO_BOOKS = "no jobs running since startup"  # of a cluster on which no job has ended yet
_NEEDED = ("owner", "jobname", "jobnumber", "failed", "exit_status", "ru_wallclock", "arid")

_JOB_ID = r"[1-9]\d*"
_GONE = re.compile(r'denied: job "\d+" does not exist|is already in deletion')
_DONE = re.compile(r"has (?:registered the job \d+ for deletion|deleted job \d+)")
_RELEASED = re.compile(r"modified hold of job \d+")
_SAID_NO = re.compile(
    r"unable to run job: (?:.+)|^qsub: (?:.+)|unable to read script file|^denied: ",
    re.MULTILINE | re.IGNORECASE,
)
# Of these it is unknown whether qmaster has the job, or they pass.
_OUT_OF_REACH = re.compile(
    r"commlib|unable to (?:send|receive|contact)|send error|receive error|connection|timeout"
    r"|timed out|communication|not reachable|got no response|reading answer|try again|temporarily"
    r"|get_configuration|sge_root|act_qmaster|resolve|out of memory|shutting down",
    re.IGNORECASE,
)


def check_id(job: JobId) -> str:
    """A job's id, if it is one: qdel and qstat read other words as patterns of names."""
    if not re.fullmatch(_JOB_ID, job):
        raise BatchUnavailable(f"{job!r:.80} is not a Grid Engine job id; nothing was asked")
    return job


def parse_submitted(done: Completed) -> JobId:
    """The job id that ``qsub -terse`` printed.

    Raises:
        SubmissionRefused: qsub or qmaster said no.
        BatchUnavailable: anything else; the job may have been taken.
    """
    if done.returncode == 0:
        return JobId(last_line(done, re.compile(_JOB_ID), "job id").group())
    if not _SAID_NO.search(done.stderr) or _OUT_OF_REACH.search(done.stderr):
        raise done.unavailable("failed")
    words = " ".join(done.stderr.split())[:1000].removesuffix(" Exiting.")
    raise SubmissionRefused(f"Grid Engine refuses the job: {words}")


# --- qstat ---


def parse_qstat(done: Completed) -> tuple[ObservedJob, ...]:
    """The jobs that ``qstat -xml`` lists."""
    if done.returncode != 0:
        raise done.unavailable("failed")
    try:
        answer = _parse(done.stdout)
    except ElementTree.ParseError as error:
        raise done.unavailable(f"printed what is no XML ({error})") from error
    if answer.tag != "job_info" or [part.tag for part in answer] != ["queue_info", "job_info"]:
        raise done.unavailable(f"printed no list of jobs but {done.stdout[:120]!r}")
    return tuple(_observed(done, job) for job in answer.iter("job_list"))


def _parse(text: str) -> ElementTree.Element:
    """XML without a document type: entities of one would be expanded, to any size."""
    if "<!DOCTYPE" in text:
        raise ElementTree.ParseError("it declares a document type")
    return ElementTree.fromstring(text)  # no entities are left to expand  # nosec B314


def _observed(done: Completed, job: ElementTree.Element) -> ObservedJob:
    word, number = _text(done, job, "state"), _text(done, job, "JB_job_number")
    asked = _text(done, job, "slots")
    if not re.fullmatch(_JOB_ID, number) or not asked.isdecimal():
        raise done.unavailable(f"printed a job as {ElementTree.tostring(job)[:200]!r}")
    state = STATES.get(word, JobState.UNKNOWN)
    queue, _, host = (job.findtext("queue_name") or "").partition("@")
    return ObservedJob(
        job_id=JobId(number),
        name=_text(done, job, "JB_name"),
        state=state,
        reason=word,
        queue=queue,
        nodes=int(asked == "1"),  # of more slots it is unknown over how many hosts they lie
        restarts=int("R" in word),  # Grid Engine says only that there was one
        node_names=host,  # the first one; it would take a line per slot to hear of all
        user=_text(done, job, "JB_owner"),
        account=job.findtext("JB_project") or "",
    )


def _text(done: Completed, job: ElementTree.Element, key: str) -> str:
    found = job.findtext(key)
    if not found:
        raise done.unavailable(f"printed a job without {key}")
    return found


def parse_reasons(done: Completed) -> Mapping[JobId, str]:
    """What ``qstat -j`` says is wrong with jobs, of those that are still there."""
    found: dict[JobId, str] = {}
    job = JobId("")
    for line in done.stdout.splitlines():
        if line.startswith("job_number:"):
            job = JobId(line.split(":", 1)[1].strip())
        elif line.startswith("error reason"):
            found[job] = " ".join(line.split(":", 1)[1].split())
    return found


def with_reasons(job: ObservedJob, reasons: Mapping[JobId, str]) -> ObservedJob:
    """``job`` with what is wrong with it added to its state."""
    words = reasons.get(job.job_id)
    return replace(job, reason=f"{job.reason}: {words}") if words else job


# --- qacct ---


def parse_qacct(done: Completed) -> tuple[ObservedJob, ...]:
    """The last record of each job in the books, in the order of their records.

    A job whose last start failed before it ran may be on its way to another: that is UNKNOWN.
    """
    if done.returncode != 0:
        if _NO_BOOKS in done.stdout + done.stderr:
            return ()
        raise done.unavailable("failed")
    total = _TOTAL.search(done.stdout)
    if total is None:  # it comes last, so that nothing is missing where it is
        raise done.unavailable(f"printed no table at its end but {done.stdout[-120:]!r}")
    before, *parts = re.split(r"^={20,}\n", done.stdout[: total.start()], flags=re.MULTILINE)
    if before:
        raise done.unavailable(f"printed what is no record: {before[:120]!r}")
    records = [_record(done, part) for part in parts]
    last = {record["jobnumber"]: record for record in records}
    return tuple(_accounted(done, record) for record in last.values())


def _record(done: Completed, part: str) -> Mapping[str, str]:
    pairs = (line.partition(" ") for line in part.splitlines() if line.strip())
    record = {key: value.strip() for key, _, value in pairs}
    missing = [key for key in _NEEDED if key not in record]
    if missing:
        raise done.unavailable(f"printed a record without {', '.join(missing)}: {part[:80]!r}")
    return record


def _accounted(done: Completed, record: Mapping[str, str]) -> ObservedJob:
    failed, status = _number(done, record, "failed"), _number(done, record, "exit_status")
    _, _, words = record["failed"].partition(":")
    over = failed in _AFTER_JOB
    return ObservedJob(
        job_id=JobId(record["jobnumber"]),
        name=record["jobname"],
        state=JobState.ENDED if over else JobState.UNKNOWN,
        end=_end(done, record, failed, status) if over else None,
        reason=f"exit {status}" + (f", {words.strip()}" if words else ""),
        queue=record.get("qname", ""),
        nodes=int(record.get("slots") == "1"),
        node_names=record.get("hostname", ""),
    )


def _end(done: Completed, record: Mapping[str, str], failed: int, status: int) -> JobEnd:
    if failed == 0 and status == 0:
        return JobEnd.COMPLETED
    if failed == _NODE_CRASHED:
        return JobEnd.NODE_FAILED
    asked = re.search(r"\bh_rt=(\d+)", record.get("category", ""))
    lasted = _number(done, record, "ru_wallclock")
    if failed in (_BY_LIMIT, 100) and asked and lasted >= int(asked.group(1)):
        return JobEnd.TIMED_OUT
    return JobEnd.CANCELLED if failed == 100 and status == _KILLED else JobEnd.FAILED


def _number(done: Completed, record: Mapping[str, str], key: str) -> int:
    """The number with which a field begins: ``100 : assumedly after job``, ``31s``, ``9.5``."""
    found = re.match(r"\d+", record[key])
    if found is None:
        raise done.unavailable(f"printed {key} as {record[key]!r:.80}")
    return int(found.group())


def check_cancelled(done: Completed) -> None:
    """Raise unless qdel did it, or all that it did not do is about jobs that are gone or going."""
    lines = _lines(done)
    if not lines or not all(_GONE.search(line) or _DONE.search(line) for line in lines):
        raise done.unavailable(f"failed, and printed {done.stdout[-200:]!r},")


def check_released(done: Completed) -> None:
    """Raise unless qrls did it, or all that it did not do is about jobs that are gone.

    Of a job that is not held it says nothing.
    """
    lines = _lines(done)
    sound = all(_GONE.search(line) or _RELEASED.search(line) for line in lines)
    if not sound or (done.returncode != 0 and not lines):
        raise done.unavailable(f"failed, and printed {done.stdout[-200:]!r},")


def _lines(done: Completed) -> list[str]:
    return [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
