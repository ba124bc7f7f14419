"""What all adapters share that speak to a batch system through its commands."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterable, Mapping, Sequence

from harvester.batch.commands import Completed, Executor, run_command
from harvester.batch.port import Observation, ObservedJob


class CommandAdapter:
    """Deadline, executor and environment of an adapter's commands; keeps nothing between calls.

    ``project``: where limits count the jobs of all its members, the project (account) whose jobs
    each look lists too. ``user``: whose jobs are ours, by login name; by default this process's.
    """

    def __init__(
        self,
        *,
        timeout_s: float = 30.0,
        execute: Executor = run_command,
        environment: Mapping[str, str] | None = None,
        user: str | None = None,
        project: str = "",
    ) -> None:
        self._timeout_s = timeout_s
        self._execute = execute
        self._environment = os.environ if environment is None else environment
        self._user = user
        self._project = project

    def _owner(self) -> str:
        return self._user or pwd.getpwuid(os.getuid()).pw_name

    def _run(self, command: Sequence[str], environment: Mapping[str, str]) -> Completed:
        return self._execute(command, timeout_s=self._timeout_s, environment=environment)

    def _parted(self, jobs: Iterable[ObservedJob]) -> Observation:
        """A listing as an observation: of this user's jobs, or with a project of everybody's."""
        return (
            part(jobs, self._owner(), self._project) if self._project else Observation(tuple(jobs))
        )


def part(jobs: Iterable[ObservedJob], owner: str, project: str) -> Observation:
    """This user's jobs and the project's, of a listing of everybody's. Pure.

    A job of this user that is charged to the project is in both.
    """
    listed = tuple(jobs)
    return Observation(
        tuple(job for job in listed if job.user == owner),
        # Slurm and Grid Engine write accounts in small letters, whatever was asked for.
        tuple(job for job in listed if job.account.casefold() == project.casefold()),
    )
