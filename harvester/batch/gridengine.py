"""Grid Engine through its commands: qsub, qstat, qacct and qdel, Son of Grid Engine 8.1 and kin.

Jobs are submitted with ``-notify``: before the kill that a deletion or the end of the walltime
means, all processes of the job get SIGUSR2, as long before as the queue says, and then the runner
leaves in good order. The walltime's end itself it awaits by the plan.

A process may take that one warning twice. With ``enable_addgrp_kill``, the default here, the
shepherd first signals the job's process group and then, one by one, all processes that carry the
job's additional group id (seen in its trace: "now sending signal USR2", "pdc_kill_addgrpid").
Mostly the first is still pending when the second comes, and they are one; 2 of 16 jobs that ended
at once had both, 0.2 and 0.7 ms apart. The runner takes any number of warnings for one.

Grid Engine hands out slots, and the parallel environment says how many of a host: that choice is
the site's (``-pe``). Agents are started by ``qrsh -inherit``, one call a host.

Sources: qsub(1), qstat(1), qacct(1), qdel(1), qrsh(1), sge_pe(5), queue_conf(5), sge_status(5) and
accounting(5) of 8.1.9, and a cluster of that version (``scripts/testbed/sge-up``).
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from harvester.batch.adapter import CommandAdapter
from harvester.batch.commands import Completed, Executor, run_command
from harvester.batch.gridengine_answers import (
    check_cancelled,
    check_id,
    check_released,
    parse_qacct,
    parse_qstat,
    parse_reasons,
    parse_submitted,
    with_reasons,
)
from harvester.batch.port import BatchJob, Capabilities, JobState, Observation, ObservedJob
from harvester.batch.script import plain_word, render_script, whole_minutes
from harvester.model import JobId, Tag

# Where the site names none. Most installations come with one of this name.
_USUAL_ENVIRONMENT = "mpi"
_ENVIRONMENT = re.compile(r"-pe\s")
_EVERYBODY = "*"  # qstat can pick users, but no projects
_ACCOUNTING_DAYS = 30  # our allocations and their disputes are younger


class GridEngine(CommandAdapter):
    """Grid Engine as this user sees it. Implements ``BatchSystem``."""

    name = "gridengine"
    capabilities = Capabilities(
        accounting=True,
        requeue=True,
        held_submission=True,
        exclude_nodes=True,
        walltime_step_s=60.0,
    )

    def __init__(
        self,
        *,
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
        # Of the jobs in error, what is wrong with them: it does not change, so it is asked once.
        self._reasons: Mapping[JobId, str] = {}

    def render(self, job: BatchJob) -> str:
        told = replace(job, warn_s=0.0, directives=_filled(job))
        return render_script(told, prefix="#$", options=script_options(job), before=_before(job))

    def submit_command(self, job: BatchJob, script: Path) -> tuple[str, ...]:
        """The command that submits ``script``, for people to see."""
        return qsub_command(script)

    def submit(self, job: BatchJob, script: Path) -> JobId:
        return parse_submitted(self._ask(qsub_command(script)))

    def observe(self) -> Observation:
        whose = _EVERYBODY if self._project else self._owner()
        seen = self._parted(parse_qstat(self._ask(qstat_command(whose))))
        held = (job for job in seen.jobs if job.state is JobState.HELD)
        broken = [job.job_id for job in held if "E" in job.reason]
        unknown = [job for job in broken if job not in self._reasons]
        self._reasons = {job: words for job, words in self._reasons.items() if job in broken}
        if unknown:
            # Why a job is in error stands nowhere else; it may be gone, and then this fails.
            found = parse_reasons(self._ask(reasons_command(unknown)))
            self._reasons = {**self._reasons, **{job: found.get(job, "") for job in unknown}}
        jobs = tuple(with_reasons(job, self._reasons) for job in seen.jobs)
        return replace(seen, jobs=jobs, extra_commands=int(bool(unknown)))

    def ended(self, jobs: Sequence[JobId], tags: Sequence[Tag]) -> tuple[ObservedJob, ...]:
        if not jobs and not tags:
            return ()
        # qacct reads all its books for every question, and takes one id or name: so ask once.
        found = self._accounted(jobs, tags, _ACCOUNTING_DAYS)
        if {*jobs} <= {job.job_id for job in found} and {*tags} <= {job.name for job in found}:
            return found
        # A job that was lost with its node has no time in the books: no choice of days finds it.
        return self._accounted(jobs, tags, None)

    def _accounted(
        self, jobs: Sequence[JobId], tags: Sequence[Tag], days: int | None
    ) -> tuple[ObservedJob, ...]:
        known = parse_qacct(self._ask(qacct_command(self._owner(), days)))
        return tuple(job for job in known if job.job_id in jobs or job.name in tags)

    def cancel(self, jobs: Sequence[JobId]) -> None:
        if jobs:
            check_cancelled(self._ask(qdel_command(jobs)))

    def release(self, jobs: Sequence[JobId]) -> None:
        if jobs:
            check_released(self._ask(qrls_command(jobs)))

    def _ask(self, command: Sequence[str]) -> Completed:
        return self._run(command, client_environment(self._environment))


def script_options(job: BatchJob) -> tuple[str, ...]:
    """The ``#$`` options of ``job``, without the site's own directives.

    Amounts are what the scheduler multiplies by slots where a resource is consumable: memory is
    asked for per slot, GPUs per host (a site that counts them per slot words that itself).

    Raises:
        ConfigurationError: queue, account or a node name is not a plain word.
    """
    options = [f"-N {plain_word('tag', job.tag)}", "-S /bin/bash"]
    if slots(job) > 1 and not any(_ENVIRONMENT.match(line.strip()) for line in job.directives):
        options.append(f"-pe {_USUAL_ENVIRONMENT} {slots(job)}")
    options.append(f"-l h_rt={walltime_text(job.walltime_s)}")
    if job.gpus_per_node:
        options.append(f"-l gpu={job.gpus_per_node}")
    if job.memory_mb_per_node:
        options.append(f"-l mem_free={math.ceil(job.memory_mb_per_node / _slots_per_node(job))}M")
    if job.exclude_nodes:
        nodes = (plain_word("exclude_nodes", node) for node in job.exclude_nodes)
        options.append(f"-l h=!({'|'.join(nodes)})")
    if job.queue:
        options.append(f"-q {plain_word('queue', job.queue)}")
    if job.account:
        options.append(f"-P {plain_word('account', job.account)}")
    # The script opens its own output: Grid Engine's would be readable by all, and its path is one
    # in which dollar signs, colons and commas mean something. So is that of the directory.
    options += [
        f"-w {_verification(job)}",
        "-wd /",
        "-o /dev/null",
        "-j y",
        "-notify",
        f"-r {'y' if job.requeue else 'n'}",
    ]
    if job.held:
        options.append("-h")
    return tuple(options)


def _verification(job: BatchJob) -> str:
    """``e``: a job that no node could ever run is refused rather than left to wait for good.

    But free memory is a measured value, which this verification takes for not there (``n``).
    """
    return "n" if job.memory_mb_per_node else "e"


def slots(job: BatchJob) -> int:
    """The slots of the whole job: a core each, or one a node where cores are not asked for."""
    return job.nodes * _slots_per_node(job)


def _slots_per_node(job: BatchJob) -> int:
    return max(1, job.cores_per_node)


def _filled(job: BatchJob) -> tuple[str, ...]:
    values = {"{nodes}": str(job.nodes), "{slots}": str(slots(job))}
    lines = []
    for line in job.directives:
        for name, value in values.items():
            line = line.replace(name, value)
        lines.append(line)
    return tuple(lines)


def _before(job: BatchJob) -> tuple[str, ...]:
    return (
        "trap '' USR1 USR2",  # what -notify sends; the runner installs its own handlers
        f"cd {shlex.quote(str(job.directory))} || exit 1",
        "exec >>batch.out 2>&1",
        'export PATH="$PATH${SGE_BINARY_PATH:+:$SGE_BINARY_PATH}"',  # for qrsh
    )


def walltime_text(seconds: float) -> str:
    """``HH:MM:00``, rounded up to the minute; any number of hours."""
    hours, minutes = divmod(whole_minutes(seconds), 60)
    return f"{hours:02}:{minutes:02}:00"


def qsub_command(script: Path) -> tuple[str, ...]:
    return ("qsub", "-terse", str(script))


def qstat_command(user: str) -> tuple[str, ...]:
    """One query for all jobs of this user that have not ended, names and projects in full."""
    return ("qstat", "-xml", "-ext", "-u", user)


def reasons_command(jobs: Sequence[JobId]) -> tuple[str, ...]:
    """What is wrong with these jobs."""
    return ("qstat", "-j", ",".join(map(check_id, jobs)))


def qacct_command(user: str, days: int | None) -> tuple[str, ...]:
    """All jobs of this user that have left; with ``days``, that started within so many."""
    return ("qacct", "-o", user, *(() if days is None else ("-d", str(days))), "-j")


def qdel_command(jobs: Sequence[JobId]) -> tuple[str, ...]:
    return ("qdel", *map(check_id, jobs))


def qrls_command(jobs: Sequence[JobId]) -> tuple[str, ...]:
    """Take away the user's own hold, which is what qsub -h sets."""
    return ("qrls", "-h", "u", ",".join(map(check_id, jobs)))


def client_environment(base: Mapping[str, str]) -> dict[str, str]:
    """Without what changes the commands' output; what leads to the cluster (SGE_*) stays."""
    return {**base, "LC_ALL": "C"}
