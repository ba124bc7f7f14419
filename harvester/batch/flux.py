"""Flux through its commands: flux batch, flux jobs and flux cancel, flux-core 0.49 or newer.

``flux batch`` runs the script as the first program of an instance of Flux of its own, on all the
job's nodes; ``flux run`` in it starts the agents. Job ids are F58 with an ASCII ``f``, whatever
the locale. Flux's warning signals go to the instance rather than to the script, so none is asked
for; the runner goes by the walltime it was planned with.

Sources: flux-batch(1), flux-jobs(1), flux-cancel(1) and flux-environment(7) of flux-core.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from harvester.batch.adapter import CommandAdapter
from harvester.batch.commands import Completed
from harvester.batch.flux_answers import (
    check_cancelled,
    check_released,
    parse_jobs,
    parse_submitted,
)
from harvester.batch.port import BatchJob, Capabilities, Observation, ObservedJob
from harvester.batch.script import plain_word, render_script, whole_minutes
from harvester.errors import BatchUnavailable
from harvester.model import JobId, Tag

# Flux unsets the id in the environment of a batch script; the runner goes by this variable.
_SAY_ID = 'export FLUX_JOB_ID="$(flux getattr jobid)"'
_LATELY = "-1h"  # ended jobs that a look shows still
_LONG_AGO = "-30d"  # our allocations and their disputes are younger
_OF_A_JOB = ("FLUX_JOB_", "FLUX_TASK_", "FLUX_KVS_NAMESPACE", "PMI_")


class Flux(CommandAdapter):
    """Flux as this user sees it. Implements ``BatchSystem``."""

    name = "flux"
    _IDENTITY = ("/usr/bin/id", "-u")  # by number is how jobs are listed
    capabilities = Capabilities(
        accounting=True, held_submission=True, exclude_nodes=True, walltime_step_s=60.0
    )

    def render(self, job: BatchJob) -> str:
        options = script_options(job)
        told = replace(job, warn_s=0.0)
        return render_script(told, prefix="# flux:", options=options, before=(_SAY_ID,))

    def submit_command(self, job: BatchJob, script: Path) -> tuple[str, ...]:
        """The command that submits ``script``, for people to see."""
        return batch_command(job, script)

    def submit(self, job: BatchJob, script: Path) -> JobId:
        environment = batch_environment(self._environment)
        return parse_submitted(self._run(batch_command(job, script), environment))

    def observe(self) -> Observation:
        command = jobs_command(_LATELY, everybody=bool(self._project))
        return self._parted(parse_jobs(self._ask(command)))

    def ended(self, jobs: Sequence[JobId], tags: Sequence[Tag]) -> tuple[ObservedJob, ...]:
        if not jobs and not tags:
            return ()
        known = parse_jobs(self._ask(jobs_command(_LONG_AGO)))
        return tuple(job for job in known if job.job_id in jobs or job.name in tags)

    def cancel(self, jobs: Sequence[JobId]) -> None:
        if jobs:
            check_cancelled(self._ask(cancel_command(jobs)))

    def release(self, jobs: Sequence[JobId]) -> None:
        for job in jobs:  # flux job urgency takes one
            check_released(self._ask(release_command(job)))

    def _ask(self, command: Sequence[str]) -> Completed:
        environment = {**batch_environment(self._environment), "FLUX_F58_FORCE_ASCII": "1"}
        return self._run(command, environment)


def script_options(job: BatchJob) -> tuple[str, ...]:
    """The options of ``job`` for ``# flux:`` lines, without the site's own directives.

    Nodes are taken whole; memory is not Flux's to give.

    Raises:
        ConfigurationError: queue, account or a node name is not a plain word.
    """
    options = [
        f"--job-name={plain_word('tag', job.tag)}",
        f"--nodes={job.nodes}",
        f"--nslots={job.nodes}",
        "--exclusive",
        f"--time-limit={walltime_text(job.walltime_s)}",
    ]
    if job.held:
        options.append("--urgency=hold")
    if job.cores_per_node:
        options.append(f"--cores-per-slot={job.cores_per_node}")
    if job.gpus_per_node:
        options.append(f"--gpus-per-slot={job.gpus_per_node}")
    if job.queue:
        options.append(f"--queue={plain_word('queue', job.queue)}")
    if job.account:
        options.append(f"--setattr=system.bank={plain_word('account', job.account)}")
    if job.exclude_nodes:
        nodes = (plain_word("exclude_nodes", node) for node in job.exclude_nodes)
        options.append(f"--requires=-host:{','.join(nodes)}")
    return tuple(options)


def walltime_text(seconds: float) -> str:
    """Whole minutes in Flux's standard form, rounded up."""
    return f"{whole_minutes(seconds)}m"


def batch_command(job: BatchJob, script: Path) -> tuple[str, ...]:
    """Paths go here rather than into the script, where they had to be quoted."""
    output = str(job.directory / "batch.out")
    return ("flux", "batch", f"--cwd={job.directory}", f"--output={output}", str(script))


def jobs_command(since: str, *, everybody: bool = False) -> tuple[str, ...]:
    """One query for all jobs, of this user or of everybody, active now or since then."""
    whose = ("-A",) if everybody else ()
    return ("flux", "jobs", "-a", *whose, "--json", "--count=0", f"--since={since}")


def cancel_command(jobs: Sequence[JobId]) -> tuple[str, ...]:
    """Cancel by id; ids are checked, for flux reads other words as options."""
    return ("flux", "cancel", *map(check_id, jobs))


def release_command(job: JobId) -> tuple[str, ...]:
    """Give a job the urgency of one that was not held; nothing changes for one that runs."""
    return ("flux", "job", "urgency", check_id(job), "default")


def check_id(job: JobId) -> str:
    """A job's id, if it is one."""
    if not re.fullmatch(r"f[1-9A-HJ-NP-Za-km-z]+|\d+", job):
        raise BatchUnavailable(f"{job!r:.80} is not a Flux job id; nothing was asked")
    return job


def batch_environment(base: Mapping[str, str]) -> dict[str, str]:
    """Without what is left over of a job that the harvester itself runs in; FLUX_URI stays."""
    return {name: value for name, value in base.items() if not name.startswith(_OF_A_JOB)}
