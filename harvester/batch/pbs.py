"""PBS through its commands: qsub, qselect, qstat and qdel, PBS Professional or OpenPBS 2022.

One look is ``qselect`` for the user's ids, another for the project's where they count, and one
``qstat`` for those: qstat alone has JSON for everybody's jobs only. PBS sends no warning before the
end of the walltime, but SIGTERM at it; the runner goes by the walltime it was planned with.

Sources: qsub(1B), qstat(1B), qselect(1B) and qdel(1B) of OpenPBS 22.05, "Job States" and "Job Exit
Codes" of the PBS Reference Guide 2022.1, src/include/job.h of OpenPBS.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from harvester.batch.adapter import CommandAdapter
from harvester.batch.commands import Completed, Executor, run_command
from harvester.batch.pbs_answers import (
    check_cancelled,
    check_id,
    check_released,
    has_no_history,
    parse_qselect,
    parse_qstat,
    parse_submitted,
)
from harvester.batch.port import BatchJob, Capabilities, Observation, ObservedJob
from harvester.batch.script import plain_word, render_script, whole_minutes
from harvester.model import JobId, Tag

_SELECT = re.compile(r"-l\s*(?:\S*,)?select=")
_PLACE = re.compile(r"-l\s*(?:\S*,)?place=")


class Pbs(CommandAdapter):
    """PBS as this user sees it. Implements ``BatchSystem``."""

    name = "pbs"

    capabilities = Capabilities(
        accounting=True,
        requeue=True,
        held_submission=True,
        walltime_step_s=60.0,
        look_commands=2,
        name_commands=2,
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
        if project:
            self.capabilities = replace(self.capabilities, look_commands=3)

    def render(self, job: BatchJob) -> str:
        # Jobs begin in the home directory. No USR1 ever comes that the script had to survive.
        enter = f"cd {shlex.quote(str(job.directory))} || exit 1"
        told = replace(job, warn_s=0.0, directives=_filled(job))
        return render_script(told, prefix="#PBS", options=script_options(job), before=(enter,))

    def submit_command(self, job: BatchJob, script: Path) -> tuple[str, ...]:
        """The command that submits ``script``, for people to see."""
        return qsub_command(job, script)

    def submit(self, job: BatchJob, script: Path) -> JobId:
        environment = qsub_environment(self._environment)
        return parse_submitted(self._run(qsub_command(job, script), environment))

    def observe(self) -> Observation:
        # qselect joins user and project by "and", so that they are a question each.
        own = parse_qselect(self._ask(qselect_command(self._owner())))
        shared = self._of_project()
        ids = tuple(dict.fromkeys((*own, *shared)))
        jobs = parse_qstat(self._ask(qstat_command(ids))) if ids else ()
        return Observation(
            tuple(job for job in jobs if job.job_id in own),
            tuple(job for job in jobs if job.job_id in shared),
        )

    def ended(self, jobs: Sequence[JobId], tags: Sequence[Tag]) -> tuple[ObservedJob, ...]:
        found = {job.job_id: job for job in self._history(jobs)}
        # qselect takes one name a call; most are known by the ids already.
        for tag in set(tags) - {job.name for job in found.values()}:
            done = self._ask(qselect_command(self._owner(), tag))
            if has_no_history(done):
                break
            found.update({job.job_id: job for job in self._history(parse_qselect(done))})
        return tuple(found.values())

    def cancel(self, jobs: Sequence[JobId]) -> None:
        if jobs:
            check_cancelled(self._ask(qdel_command(jobs)))

    def release(self, jobs: Sequence[JobId]) -> None:
        if jobs:
            check_released(self._ask(qrls_command(jobs)))

    def _of_project(self) -> tuple[JobId, ...]:
        if not self._project:
            return ()
        return parse_qselect(self._ask(qselect_project_command(self._project)))

    def _history(self, jobs: Sequence[JobId]) -> tuple[ObservedJob, ...]:
        if not jobs:
            return ()
        done = self._ask(qstat_command(jobs, history=True))
        return () if has_no_history(done) else parse_qstat(done)

    def _ask(self, command: Sequence[str]) -> Completed:
        environment = {**qsub_environment(self._environment), "LC_ALL": "C"}
        return self._run(command, environment)


def script_options(job: BatchJob) -> tuple[str, ...]:
    """The ``#PBS`` options of ``job``, without the site's own directives.

    A site whose nodes are chosen by other words than ncpus, ngpus and mem states its own
    ``-l select=``, with ``{nodes}`` for the number of nodes; then ours is left out.

    Raises:
        ConfigurationError: queue or account is not a plain word.
    """
    options = [f"-N {plain_word('tag', job.tag)}", "-S /bin/bash"]
    if not any(_SELECT.match(line.strip()) for line in job.directives):
        options.append(f"-l select={_chunks(job)}")
    if not any(_PLACE.match(line.strip()) for line in job.directives):
        options.append("-l place=scatter:excl")
    options.append(f"-l walltime={walltime_text(job.walltime_s)}")
    if job.queue:
        options.append(f"-q {plain_word('queue', job.queue)}")
    if job.account:
        options.append(f"-A {plain_word('account', job.account)}")
    # One output file, written in place while the job runs, for its owner only.
    options += ["-j oe", "-k doe", "-W umask=077", f"-r {'y' if job.requeue else 'n'}"]
    if job.held:
        options.append("-h")
    return tuple(options)


def _chunks(job: BatchJob) -> str:
    parts = [str(job.nodes)]
    if job.cores_per_node:
        parts.append(f"ncpus={job.cores_per_node}")
    if job.gpus_per_node:
        parts.append(f"ngpus={job.gpus_per_node}")
    if job.memory_mb_per_node:
        parts.append(f"mem={job.memory_mb_per_node}mb")
    return ":".join(parts)


def _filled(job: BatchJob) -> tuple[str, ...]:
    return tuple(line.replace("{nodes}", str(job.nodes)) for line in job.directives)


def walltime_text(seconds: float) -> str:
    """``HH:MM:00``, rounded up to the minute; PBS takes any number of hours."""
    hours, minutes = divmod(whole_minutes(seconds), 60)
    return f"{hours:02}:{minutes:02}:00"


def qsub_command(job: BatchJob, script: Path) -> tuple[str, ...]:
    """The output's path goes here rather than into the script, where blanks would part it."""
    return ("qsub", "-o", str(job.directory / "batch.out"), str(script))


def qselect_command(user: str, tag: Tag | None = None) -> tuple[str, ...]:
    """The ids of this user's jobs; with a tag, of those with that name, ended ones included."""
    named = ("-x", "-N", plain_word("tag", tag)) if tag else ()
    return ("qselect", "-u", user, *named)


def qselect_project_command(project: str) -> tuple[str, ...]:
    """The ids of all jobs that are charged to a project, whosever they are."""
    return ("qselect", "-A", plain_word("account", project))


def qstat_command(jobs: Sequence[JobId], *, history: bool = False) -> tuple[str, ...]:
    """One request for all these jobs (``-E``); with ``history`` ended ones are shown as well."""
    ended = ("-x",) if history else ()
    return ("qstat", "-E", *ended, "-f", "-F", "json", *map(check_id, jobs))


def qdel_command(jobs: Sequence[JobId]) -> tuple[str, ...]:
    return ("qdel", *map(check_id, jobs))


def qrls_command(jobs: Sequence[JobId]) -> tuple[str, ...]:
    """Take away the user's own hold, which is what qsub -h sets."""
    return ("qrls", "-h", "u", *map(check_id, jobs))


def qsub_environment(base: Mapping[str, str]) -> dict[str, str]:
    """Without what is left over of a job that the harvester itself runs in, and without a
    directive prefix of the user's; what leads to the server stays.
    """
    own = ("PBS_DPREFIX", "PBS_JOB", "PBS_NODE", "PBS_TASK", "PBS_O_", "PBS_ENVIRONMENT")
    return {name: value for name, value in base.items() if not name.startswith(own)}
