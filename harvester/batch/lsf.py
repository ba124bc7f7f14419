"""LSF through its commands: bsub, bjobs and bkill, IBM Spectrum LSF 10.1 or newer.

bjobs forgets ended jobs after the cluster's CLEAN_PERIOD (one hour by default); it is the witness
of ends within that time. LSF's warning signals go to every process of the job, launchers included,
so none is asked for; the runner goes by the walltime it was planned with.

Where jobs are launched with jsrun (Summit and its kin), jobs are of whole nodes (``-nnodes``) and
the script runs on a launch node; elsewhere slots, GPUs and memory are asked for node by node.

Sources: bsub, bjobs and bkill in the command reference of IBM Spectrum LSF 10.1; "Termination
reasons" there; the Summit User Guide.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from harvester.batch.adapter import CommandAdapter
from harvester.batch.commands import Completed, Executor, run_command
from harvester.batch.lsf_answers import (
    check_cancelled,
    check_released,
    parse_bjobs,
    parse_submitted,
)
from harvester.batch.port import BatchJob, Capabilities, Observation, ObservedJob
from harvester.batch.script import plain_word, render_script, whole_minutes
from harvester.errors import BatchUnavailable
from harvester.model import JobId, Tag

_FIELDS = (
    "jobid jobindex stat job_name queue nexec_host exec_host pend_reason suspend_reason"
    " exit_code exit_reason user proj_name"
)
# bsub reads its script from standard input; what varies is an argument, never part of the line.
_FROM_SCRIPT = 'exec bsub "$@" < "$0"'
_KEPT = frozenset({"LSB_DEFAULTQUEUE", "LSB_DEFAULTPROJECT", "LSB_DEFAULT_USERGROUP"})


class Lsf(CommandAdapter):
    """LSF as this user sees it. Implements ``BatchSystem``.

    ``whole_nodes``: the cluster takes ``-nnodes`` (jsrun launches there).
    """

    name = "lsf"

    def __init__(
        self,
        *,
        whole_nodes: bool = False,
        timeout_s: float = 30.0,
        execute: Executor = run_command,
        environment: Mapping[str, str] | None = None,
        user: str | None = None,
        project: str = "",
    ) -> None:
        super().__init__(
            timeout_s=timeout_s,
            execute=execute,
            environment=environment,
            user=user,
            project=project,
        )
        self.capabilities = Capabilities(
            accounting=True,
            requeue=True,
            held_submission=True,
            exclude_nodes=not whole_nodes,
            walltime_step_s=60.0,
        )
        self._whole_nodes = whole_nodes

    def render(self, job: BatchJob) -> str:
        options = script_options(job, whole_nodes=self._whole_nodes)
        return render_script(replace(job, warn_s=0.0), prefix="#BSUB", options=options)

    def submit_command(self, job: BatchJob, script: Path) -> tuple[str, ...]:
        """The command that submits ``script``, for people to see."""
        return bsub_command(job, script)

    def submit(self, job: BatchJob, script: Path) -> JobId:
        environment = bsub_environment(self._environment)
        return parse_submitted(self._run(bsub_command(job, script), environment))

    def observe(self) -> Observation:
        return self._parted(self._jobs(everybody=bool(self._project)))

    def ended(self, jobs: Sequence[JobId], tags: Sequence[Tag]) -> tuple[ObservedJob, ...]:
        if not jobs and not tags:
            return ()
        return tuple(job for job in self._jobs() if job.job_id in jobs or job.name in tags)

    def cancel(self, jobs: Sequence[JobId]) -> None:
        if jobs:
            check_cancelled(self._ask(bkill_command(jobs)))

    def release(self, jobs: Sequence[JobId]) -> None:
        if jobs:
            check_released(self._ask(bresume_command(jobs)))

    def _jobs(self, *, everybody: bool = False) -> tuple[ObservedJob, ...]:
        return parse_bjobs(self._ask(bjobs_command(everybody=everybody)))

    def _ask(self, command: Sequence[str]) -> Completed:
        environment = {**bsub_environment(self._environment), "LC_ALL": "C"}
        return self._run(command, environment)


def script_options(job: BatchJob, *, whole_nodes: bool) -> tuple[str, ...]:
    """The ``#BSUB`` options of ``job``, without the site's own directives.

    Raises:
        ConfigurationError: queue, account or a node name is not a plain word.
    """
    options = [f"-J {plain_word('tag', job.tag)}"]
    options += [f"-nnodes {job.nodes}"] if whole_nodes else _resources(job)
    options.append(f"-W {walltime_text(job.walltime_s)}")
    if job.queue:
        options.append(f"-q {plain_word('queue', job.queue)}")
    if job.account:
        options.append(f"-P {plain_word('account', job.account)}")
    options.append("-r" if job.requeue else "-rn")
    if job.held:
        options.append("-H")
    return tuple(options)


def _resources(job: BatchJob) -> list[str]:
    cores = max(1, job.cores_per_node)
    options = [f"-n {job.nodes * cores}", f'-R "span[ptile={cores}]"']
    if job.gpus_per_node:
        options.append(f'-gpu "num={job.gpus_per_node}/host:mode=shared:j_exclusive=yes"')
    if job.memory_mb_per_node:
        options.append(f'-R "rusage[mem={job.memory_mb_per_node}MB/host]"')
    if job.exclude_nodes:
        nodes = [plain_word("exclude_nodes", node) for node in job.exclude_nodes]
        options.append(f'-R "select[{" && ".join(f"hname!={node!r}" for node in nodes)}]"')
    return options


def walltime_text(seconds: float) -> str:
    """``H:MM``, rounded up to the minute, in which LSF counts; any number of hours."""
    hours, minutes = divmod(whole_minutes(seconds), 60)
    return f"{hours}:{minutes:02}"


def bsub_command(job: BatchJob, script: Path) -> tuple[str, ...]:
    """Paths go here rather than into the script, where blanks would part them."""
    output = str(job.directory / "batch.out")
    return ("sh", "-c", _FROM_SCRIPT, str(script), "-cwd", str(job.directory), "-o", output)


def bjobs_command(*, everybody: bool = False) -> tuple[str, ...]:
    """One query for all jobs, of this user or of everybody, those included that ended lately."""
    whose = ("-u", "all") if everybody else ()
    return ("bjobs", "-a", *whose, "-json", "-o", _FIELDS)


def bkill_command(jobs: Sequence[JobId]) -> tuple[str, ...]:
    """Kill by id; ids are checked, for bkill reads 0 as all jobs and other words as options."""
    return ("bkill", *map(check_id, jobs))


def bresume_command(jobs: Sequence[JobId]) -> tuple[str, ...]:
    """Resume by id; bresume reads other words as bkill does."""
    return ("bresume", *map(check_id, jobs))


def check_id(job: JobId) -> str:
    """A job's id, if it is one."""
    if not re.fullmatch(r"[1-9]\d*(?:\[\d+\])?", job):
        raise BatchUnavailable(f"{job!r:.80} is not an LSF job id; nothing was asked")
    return job


def bsub_environment(base: Mapping[str, str]) -> dict[str, str]:
    """Without what is left over of a job that the harvester itself runs in and what changes the
    commands' output; defaults and what leads to the cluster (LSF_*) stay.
    """
    own = ("LSB_", "LS_")
    return {
        name: value for name, value in base.items() if name in _KEPT or not name.startswith(own)
    }
