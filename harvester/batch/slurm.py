"""Slurm through its commands: sbatch, squeue, sacct, scancel, scontrol and sinfo, 20.11 or newer.

Argument vectors and the reading of outputs are pure functions; :class:`Slurm` puts them together
with one executor. What cannot be read strictly is an error, never a shorter list.

Source of the state names: squeue(1) and sacct(1) of Slurm 22.05 and 24.05, "JOB STATE CODES".
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from harvester.batch import slurm_windows
from harvester.batch.adapter import CommandAdapter
from harvester.batch.answers import check_complaints, last_line
from harvester.batch.commands import Completed
from harvester.batch.port import (
    BatchJob,
    Capabilities,
    JobEnd,
    JobState,
    Observation,
    ObservedJob,
)
from harvester.batch.script import plain_word, render_script, whole_minutes
from harvester.errors import BatchUnavailable, SubmissionRefused
from harvester.model import BackfillWindow, JobId, Tag

# How far back accounting is asked for a name; our allocations and their disputes are younger.
_ACCOUNTING_START = "now-30days"
_SIGNAL_MAX_S = 65535  # sbatch(1): the largest sig_time

STATES: Mapping[str, tuple[JobState, JobEnd | None]] = {
    "PENDING": (JobState.QUEUED, None),
    "REQUEUED": (JobState.QUEUED, None),
    "REQUEUE_FED": (JobState.QUEUED, None),
    "RESV_DEL_HOLD": (JobState.HELD, None),
    "REQUEUE_HOLD": (JobState.HELD, None),
    "SPECIAL_EXIT": (JobState.HELD, None),
    "CONFIGURING": (JobState.RUNNING, None),  # has its nodes, which boot
    "RUNNING": (JobState.RUNNING, None),
    "RESIZING": (JobState.RUNNING, None),
    "SIGNALING": (JobState.RUNNING, None),
    "SUSPENDED": (JobState.RUNNING, None),  # its walltime stands still, its nodes are kept
    "STOPPED": (JobState.RUNNING, None),
    "COMPLETING": (JobState.ENDING, None),
    "STAGE_OUT": (JobState.ENDING, None),
    "COMPLETED": (JobState.ENDED, JobEnd.COMPLETED),
    "FAILED": (JobState.ENDED, JobEnd.FAILED),
    "LAUNCH_FAILED": (JobState.ENDED, JobEnd.FAILED),
    "RECONFIG_FAIL": (JobState.ENDED, JobEnd.NODE_FAILED),
    "CANCELLED": (JobState.ENDED, JobEnd.CANCELLED),
    "REVOKED": (JobState.ENDED, JobEnd.CANCELLED),  # a federation's sibling took it
    "TIMEOUT": (JobState.ENDED, JobEnd.TIMED_OUT),
    "DEADLINE": (JobState.ENDED, JobEnd.TIMED_OUT),
    "PREEMPTED": (JobState.ENDED, JobEnd.PREEMPTED),
    "NODE_FAIL": (JobState.ENDED, JobEnd.NODE_FAILED),
    "BOOT_FAIL": (JobState.ENDED, JobEnd.NODE_FAILED),
    "OUT_OF_MEMORY": (JobState.ENDED, JobEnd.OUT_OF_MEMORY),
}
_HOLDING_REASONS = frozenset({"JobHeldUser", "JobHeldAdmin", "job_requeued_in_held_state"})

# Name and user id come last: a job's name may hold anything, "|" and line breaks included.
_SQUEUE_FIELDS = (
    "JobArrayID:40|,State:20|,Reason:60|,Partition:60|,NumNodes:10|,RestartCnt:10|,"
    "NodeList:250|,UserName:64|,Account:64|,Name:64|,UserID:12|"
)
_JOB_ID = r"\d+(?:_(?:\d+|\[[^|\n]*\]))?(?:\+\d+)?"
_SQUEUE_RECORD = re.compile(
    rf"({_JOB_ID}) *\|([A-Z_]+) *\|([^|\n]*)\|([^|\n]*)\|(\d+) *\|(\d+) *\|([^|\n]*)\|"
    r"([^|\n]*)\|([^|\n]*)\|([\s\S]*?)\|\d[\d ]{11}\|\n"
)
_SACCT_FIELDS = "JobID,State,ExitCode,Partition,NNodes,NodeList,JobName"
_SACCT_RECORD = re.compile(
    rf"({_JOB_ID})\|([A-Z_]+(?: by \d+)?)\+?\|(\d+:\d+)\|([^|\n]*)\|(\d+)\|([^|\n]*)\|(.*)\n"
)
_SUBMITTED = re.compile(r"(\d+)(?:;[\w.-]+)?")  # sbatch --parsable: id[;cluster]

# Words by which a command says that slurmctld could not be asked, or lost the answer.
_OUT_OF_REACH = re.compile(
    r"unable to contact slurm|socket timed out|connection refused|connection timed out"
    r"|communication|zero bytes were transmitted|connection reset|no route to host"
    r"|backup controller|standby mode|authentication|munge|temporarily unable"
    r"|resource temporarily unavailable|try again|message receive failure|slurmdbd"
    r"|configuration source|invalid protocol|incompatible versions?|transport endpoint"
    r"|unexpected message|header lengths|insane message|broken pipe|network is unreachable",
    re.IGNORECASE,
)
_NOT_SENT = re.compile(
    r"unrecognized option|invalid option|requires an argument|is ambiguous|unable to open file"
    r"|error: invalid |is not a valid|batch script (?:is empty|contains)"
    r"|this does not look like a batch script",
    re.IGNORECASE,
)
_SAID_NO = re.compile(r"batch job submission failed: (.*)", re.IGNORECASE)
_GONE = re.compile(r"invalid job id|already completing or completed|job not found", re.IGNORECASE)
_NOTHING_TO_RELEASE = re.compile(
    rf"{_GONE.pattern}|already finished|no longer pending", re.IGNORECASE
)
_NAMELESS = "allocation"  # what slurmdbd calls a job whose submission it has not heard of yet
_NO_ACCOUNTING = "accounting storage is disabled"


class Slurm(CommandAdapter):
    """Slurm as this user sees it. Implements ``BatchSystem``."""

    name = "slurm"
    capabilities = Capabilities(
        accounting=True,
        requeue=True,
        held_submission=True,
        exclude_nodes=True,
        walltime_step_s=60.0,
        window_commands=3,
    )

    def render(self, job: BatchJob) -> str:
        return render_script(job, prefix="#SBATCH", options=script_options(job))

    def submit_command(self, job: BatchJob, script: Path) -> tuple[str, ...]:
        """The command that submits ``script``, for people to see."""
        return sbatch_command(job, script)

    def submit(self, job: BatchJob, script: Path) -> JobId:
        environment = sbatch_environment(job, self._environment)
        return parse_submitted(self._run(sbatch_command(job, script), environment))

    def observe(self) -> Observation:
        command = squeue_command(everybody=bool(self._project))
        return self._parted(parse_squeue(self._ask(command)))

    def backfill_windows(self) -> tuple[BackfillWindow, ...]:
        asked = (slurm_windows.SINFO, slurm_windows.EXPECTED, slurm_windows.RESERVATIONS)
        environment = {**query_environment(self._environment), **slurm_windows.TIME_FORMAT}
        states, expected, reservations = (self._run(command, environment) for command in asked)
        return slurm_windows.parse_windows(states, expected, reservations)

    def ended(self, jobs: Sequence[JobId], tags: Sequence[Tag]) -> tuple[ObservedJob, ...]:
        # sacct joins --jobs and --name by "and", so that ids and names are a query each.
        commands = [
            *([sacct_command(jobs=jobs)] if jobs else []),
            *([sacct_command(tags=tags)] if tags else []),
        ]
        found = {job.job_id: job for command in commands for job in parse_sacct(self._ask(command))}
        return tuple(found.values())

    def cancel(self, jobs: Sequence[JobId]) -> None:
        if jobs:
            check_cancelled(self._ask(scancel_command(jobs)))

    def release(self, jobs: Sequence[JobId]) -> None:
        if jobs:
            check_released(self._ask(release_command(jobs)))

    def _ask(self, command: Sequence[str]) -> Completed:
        return self._run(command, query_environment(self._environment))


# --- command lines ---


def script_options(job: BatchJob) -> tuple[str, ...]:
    """The ``#SBATCH`` options of ``job``, without the site's own directives.

    Raises:
        ConfigurationError: queue, account or a node name is not a plain word.
    """
    options = [
        f"--job-name={plain_word('tag', job.tag)}",
        f"--nodes={job.nodes}",
        f"--time={walltime_text(job.walltime_s)}",
        "--ntasks-per-node=1",
        "--requeue" if job.requeue else "--no-requeue",
    ]
    if job.held:
        options.append("--hold")
    if job.queue:
        kind = "qos" if job.queue_kind == "qos" else "partition"
        options.append(f"--{kind}={plain_word('queue', job.queue)}")
    if job.account:
        options.append(f"--account={plain_word('account', job.account)}")
    if job.gpus_per_node:
        gres = "gres=gpu:" if job.gpu_request == "gres" else f"{job.gpu_request}="
        options.append(f"--{gres}{job.gpus_per_node}")
    if job.cores_per_node:
        options.append(f"--cpus-per-task={job.cores_per_node}")
    if job.memory_mb_per_node:
        options.append(f"--mem={job.memory_mb_per_node}M")
    if job.warn_s > 0:
        # B: only the batch shell, whose place the runner's leader has taken by exec.
        options.append(f"--signal=B:USR1@{min(math.ceil(job.warn_s), _SIGNAL_MAX_S)}")
    if job.exclude_nodes:
        nodes = (plain_word("exclude_nodes", node) for node in job.exclude_nodes)
        options.append(f"--exclude={','.join(nodes)}")
    return tuple(options)


def sbatch_command(job: BatchJob, script: Path) -> tuple[str, ...]:
    """Paths go here rather than into the script: sbatch has quoting rules of its own there."""
    output = str(job.directory / "batch.out").replace("%", "%%")  # %j and the like are patterns
    return (
        "sbatch",
        "--parsable",
        f"--chdir={job.directory}",
        f"--output={output}",
        "--open-mode=append",
        str(script),
    )


def squeue_command(*, everybody: bool = False) -> tuple[str, ...]:
    """One query for all jobs of this user, array elements and just ended jobs included.

    For a user and a project, everybody's jobs: squeue joins the two by "and", and what it asks
    the controller for is the same, since it picks accounts itself from the list of all jobs.
    """
    whose = () if everybody else ("--me",)
    fixed = ("squeue", "--noheader", "--array", "--states=all")
    return (*fixed, *whose, f"--Format={_SQUEUE_FIELDS}")


def sacct_command(*, jobs: Sequence[JobId] = (), tags: Sequence[Tag] = ()) -> tuple[str, ...]:
    """One query for jobs, or for names within the last 30 days."""
    which = (f"--jobs={','.join(jobs)}",) if jobs else (f"--name={','.join(tags)}",)
    start = () if jobs else (f"--starttime={_ACCOUNTING_START}",)
    fixed = ("sacct", "--noheader", "--parsable2", "--allocations", f"--format={_SACCT_FIELDS}")
    return (*fixed, *which, *start)


def scancel_command(jobs: Sequence[JobId]) -> tuple[str, ...]:
    """Cancel by id; ids are checked, for scancel reads other words as other requests."""
    return ("scancel", *map(check_id, jobs))


def release_command(jobs: Sequence[JobId]) -> tuple[str, ...]:
    """Release by id; scontrol reads other words as names of jobs."""
    return ("scontrol", "release", ",".join(map(check_id, jobs)))


def check_id(job: JobId) -> str:
    """A job's id, if it is one."""
    if not re.fullmatch(_JOB_ID, job):
        raise BatchUnavailable(f"{job!r:.80} is not a Slurm job id; nothing was asked")
    return job


def walltime_text(seconds: float) -> str:
    """``[D-]HH:MM:00``, rounded up to the minute: Slurm counts in minutes.

    ``[D-]`` because sbatch(1) takes "HH:MM:SS" of any size, but prints days.
    """
    hours, minutes = divmod(whole_minutes(seconds), 60)
    days, hours = divmod(hours, 24)
    return f"{days}-{hours:02}:{minutes:02}:00" if days else f"{hours:02}:{minutes:02}:00"


def query_environment(base: Mapping[str, str]) -> dict[str, str]:
    """For squeue, sacct and scancel: nothing of the user's that changes what they print."""
    dropped = ("SQUEUE_", "SACCT_", "SCANCEL_", "SINFO_", "SLURM_TIME_FORMAT")
    kept = {name: value for name, value in base.items() if not name.startswith(dropped)}
    return {**kept, "LC_ALL": "C"}


def sbatch_environment(job: BatchJob, base: Mapping[str, str]) -> dict[str, str]:
    """For sbatch, whose environment becomes the job's.

    SBATCH_* variables overrule the script, and SLURM_* ones are left over where the harvester
    itself runs inside a job; only defaults for what the job does not state, and what leads to
    the cluster, stay. The locale stays too: the payloads will have it.
    """
    kept = {"SLURM_CONF", "SLURM_CLUSTERS"}
    if not job.account and not _states(job, "-A", "--account"):
        kept.add("SBATCH_ACCOUNT")
    if not job.queue and not _states(job, "-p", "--partition"):
        kept.add("SBATCH_PARTITION")
    own = ("SBATCH_", "SLURM_", "SLURMD_", "SRUN_")
    return {name: value for name, value in base.items() if name in kept or not name.startswith(own)}


def _states(job: BatchJob, *options: str) -> bool:
    return any(directive.strip().startswith(options) for directive in job.directives)


# --- what the commands answer ---


def parse_submitted(done: Completed) -> JobId:
    """The job id that ``sbatch --parsable`` printed.

    Raises:
        SubmissionRefused: sbatch or the controller said no.
        BatchUnavailable: anything else; the job may have been taken.
    """
    if done.returncode == 0:
        return JobId(last_line(done, _SUBMITTED, "job id").group(1))
    answer = _SAID_NO.search(done.stderr)
    refused = answer or _NOT_SENT.search(done.stderr)
    if not refused or _OUT_OF_REACH.search(answer.group(1) if answer else done.stderr):
        raise done.unavailable("failed")
    words = " ".join(done.stderr.split())[:1000]
    raise SubmissionRefused(f"Slurm refuses the job: {words}")


def parse_squeue(done: Completed) -> tuple[ObservedJob, ...]:
    """The jobs that :func:`squeue_command` lists."""
    if done.returncode != 0:
        raise done.unavailable("failed")
    jobs = []
    for found in _records(_SQUEUE_RECORD, done):
        job_id, state, reason, queue, nodes, restarts, node_names, user, account, name = found
        job_state, end = read_state(state, reason.strip())
        jobs.append(
            ObservedJob(
                job_id=JobId(job_id),
                name=name.rstrip(" "),
                state=job_state,
                end=end,
                reason=_reason(state, reason.strip()),
                queue=queue.strip(),
                nodes=int(nodes),
                restarts=int(restarts),
                node_names=node_names.strip(),
                user=user.strip(),
                account=account.strip(),
            )
        )
    return tuple(jobs)


def parse_sacct(done: Completed) -> tuple[ObservedJob, ...]:
    """The jobs that :func:`sacct_command` knows.

    A job's name is "" while accounting has not got it yet, which can be after the job's end:
    match by id where the id is known, and ask again before a name counts as unknown.
    """
    if done.returncode != 0:
        if _NO_ACCOUNTING in done.stderr.lower():
            return ()
        raise done.unavailable("failed")
    jobs = []
    for job_id, state, exit_code, queue, nodes, node_names, name in _records(_SACCT_RECORD, done):
        job_state, end = read_state(state)
        jobs.append(
            ObservedJob(
                job_id=JobId(job_id),
                name="" if name == _NAMELESS else name,
                state=job_state,
                end=end,
                reason=f"{state}, exit {exit_code}" if end else state,
                queue=queue,
                nodes=int(nodes),
                node_names="" if node_names == "None assigned" else node_names,
            )
        )
    return tuple(jobs)


def check_cancelled(done: Completed) -> None:
    """Raise unless scancel did it, or every complaint of its is about a job that is gone."""
    complaints = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    if done.returncode == 0 and not complaints:
        return
    if not complaints or not all(_GONE.search(line) for line in complaints):
        raise done.unavailable("failed")


def check_released(done: Completed) -> None:
    """Raise unless scontrol did it, or all its complaints are about jobs that are gone or run."""
    check_complaints(done, _NOTHING_TO_RELEASE)


def read_state(word: str, reason: str = "") -> tuple[JobState, JobEnd | None]:
    """A state as Slurm prints it ("CANCELLED by 1000" too); what we do not know is UNKNOWN."""
    state, end = STATES.get(word.split(" ", 1)[0], (JobState.UNKNOWN, None))
    if state is JobState.QUEUED and reason in _HOLDING_REASONS:
        return JobState.HELD, None
    return state, end


def _reason(state: str, reason: str) -> str:
    """Slurm's own words: the reason of a pending job, else the state with it."""
    if state == "PENDING":
        return reason
    return state if reason in ("None", "") else f"{state}, {reason}"


def _records(pattern: re.Pattern[str], done: Completed) -> list[tuple[str, ...]]:
    """All records of an output, which must consist of nothing else."""
    found = []
    at = 0
    while at < len(done.stdout):
        record = pattern.match(done.stdout, at)
        if record is None:
            raise done.unavailable(f"printed what is no job: {done.stdout[at : at + 120]!r}")
        found.append(record.groups())
        at = record.end()
    return found
