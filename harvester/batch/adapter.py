"""What all adapters share that speak to a batch system through its commands."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

from harvester.batch.commands import Completed, Executor, run_command
from harvester.batch.port import Observation, ObservedJob
from harvester.model import BackfillWindow


class CommandAdapter:
    """Deadline, executor and environment of an adapter's commands.

    ``project``: where limits count the jobs of all its members, the project (account) whose jobs
    each look lists too. ``user``: whose jobs are ours, by login name; by default whoever the
    commands run as, which is asked once, for it may be on another host.
    """

    # Says whom the batch system takes us for, whatever PATH it needs.
    _IDENTITY: ClassVar[tuple[str, ...]] = ("/usr/bin/id", "-un")

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

    def backfill_windows(self) -> tuple[BackfillWindow, ...]:
        """None: what the command would say is not to be had of most batch systems."""
        return ()

    def _owner(self) -> str:
        if self._user is None:
            done = self._run(self._IDENTITY, self._environment)
            words = done.stdout.split()
            if done.returncode != 0 or len(words) != 1:
                raise done.unavailable("does not say who we are")
            self._user = words[0]
        return self._user

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
