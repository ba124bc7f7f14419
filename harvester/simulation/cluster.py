"""A batch system with a queue, nodes, walltimes and bad days, under the fake clock.

Jobs start first come first served, once their wait is over and enough nodes are free; at the
walltime they are killed. What runs in a job is told by the ``launch`` function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from harvester.batch.port import (
    BatchJob,
    Capabilities,
    JobEnd,
    JobState,
    Observation,
    ObservedJob,
)
from harvester.errors import BatchUnavailable, SubmissionRefused
from harvester.model import BackfillWindow, JobId, Tag
from harvester.simulation.agenda import Agenda, Event

_START_INTERVAL_S = 5.0  # the scheduler's own cycle


class Runner(Protocol):
    """What runs in a job, as the cluster sees it."""

    def kill(self) -> None:
        """End at once, without a last word."""

    def lose_node(self, index: int) -> None:
        """One of its nodes dies; the job goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStart:
    """One start of a job, as its runner sees it."""

    job_id: JobId
    restarts: int
    tag: Tag
    directory: Path
    node_names: tuple[str, ...]
    done: Callable[[], None]  # the runner has left


Launch = Callable[[JobStart], Runner]


@dataclass(slots=True)
class SimulatedJob:
    """A job and its life."""

    job_id: JobId
    job: BatchJob
    ready_at: float
    state: JobState = JobState.QUEUED
    end: JobEnd | None = None
    reason: str = ""
    restarts: int = 0
    node_names: tuple[str, ...] = ()
    started_at: float | None = None
    ended_at: float | None = None
    runner: Runner | None = None
    limit: Event | None = None


@dataclass(slots=True)
class ClusterFaults:
    """What goes wrong; each is looked at anew by every call."""

    unavailable: bool = False
    empty: bool = False  # answers with no job at all
    loses_answers: bool = False  # takes a submission, but the answer is lost
    refuses: str = ""  # why it takes no submission
    no_windows: bool = False
    forgotten: set[JobId] = field(default_factory=set)  # listed no more, nor in accounting


class SimulatedCluster:
    """:class:`~harvester.batch.port.BatchSystem` over an agenda."""

    name = "simulated"

    def __init__(
        self,
        agenda: Agenda,
        launch: Launch,
        *,
        nodes: int,
        wait_s: Callable[[BatchJob], float] = lambda job: 60.0,
        accounting: bool = True,
        listed_after_end_s: float = 0.0,
        free_until: float | None = None,
    ) -> None:
        self.capabilities = Capabilities(
            accounting=accounting,
            requeue=True,
            exclude_nodes=True,
            held_submission=True,
            walltime_step_s=60.0,
            window_commands=0 if free_until is None else 1,
        )
        self._free_until = free_until or 0.0  # wall clock: when nodes that are idle are needed
        self.faults = ClusterFaults()
        self.jobs: dict[JobId, SimulatedJob] = {}
        self.queries = 0
        self.windows_asked = 0
        self._agenda = agenda
        self._launch = launch
        self._nodes = nodes
        self._free = [f"node{n:04d}" for n in range(nodes)]
        self._wait_s = wait_s
        self._listed_after_end_s = listed_after_end_s

    # --- the port ---

    def render(self, job: BatchJob) -> str:
        return f"#!/bin/sh\n# {job.tag}\n"

    def submit(self, job: BatchJob, script: Path) -> JobId:
        del script  # the launch function knows what runs
        self._require_answer()
        if self.faults.refuses:
            raise SubmissionRefused(self.faults.refuses)
        if job.nodes > self._nodes:
            raise SubmissionRefused(
                f"the simulated scheduler refuses {job.nodes} nodes; it has {self._nodes}"
            )
        job_id = JobId(str(1001 + len(self.jobs)))
        wait = self._wait_s(job)
        state = JobState.HELD if job.held else JobState.QUEUED
        self.jobs[job_id] = SimulatedJob(job_id, job, self._now() + wait, state)
        self._agenda.after(wait, self._start_jobs)
        if self.faults.loses_answers:
            raise BatchUnavailable("the simulated scheduler took the job and fell silent")
        return job_id

    def observe(self) -> Observation:
        self._query()
        if self.faults.empty:
            return Observation(())
        return Observation(
            tuple(_observed(job) for job in self.jobs.values() if self._is_listed(job))
        )

    def backfill_windows(self) -> tuple[BackfillWindow, ...]:
        if not self.capabilities.window_commands:
            return ()
        self.windows_asked += 1
        self._query()
        if self.faults.no_windows:
            raise BatchUnavailable("the simulated scheduler keeps its windows to itself")
        if not self._free:
            return ()
        return (BackfillWindow("batch", len(self._free), self._free_until),)

    def ended(self, jobs: Sequence[JobId], tags: Sequence[Tag]) -> tuple[ObservedJob, ...]:
        self._query()
        if not self.capabilities.accounting:
            return ()
        return tuple(
            _observed(job)
            for job in self.jobs.values()
            if (job.job_id in jobs or job.job.tag in tags)
            and job.job_id not in self.faults.forgotten
            and (job.end is not None or self._is_listed(job))
        )

    def cancel(self, jobs: Sequence[JobId]) -> None:
        self._require_answer()
        for job_id in jobs:
            if job_id in self.jobs:
                self._end(self.jobs[job_id], JobEnd.CANCELLED)

    def release(self, jobs: Sequence[JobId]) -> None:
        self._require_answer()
        for job_id in jobs:
            if job_id in self.jobs and self.jobs[job_id].state is JobState.HELD:
                self.jobs[job_id].state = JobState.QUEUED
        self._agenda.after(_START_INTERVAL_S, self._start_jobs)

    # --- what happens to jobs ---

    def requeue(self, job_id: JobId, *, wait_s: float = 60.0) -> None:
        """Preempt a running job: it waits again and starts anew."""
        job = self.jobs[job_id]
        self._stop_runner(job)
        job.state, job.restarts, job.started_at = JobState.QUEUED, job.restarts + 1, None
        job.ready_at = self._now() + wait_s
        self._agenda.after(wait_s, self._start_jobs)

    def kill(self, job_id: JobId, end: JobEnd = JobEnd.NODE_FAILED) -> None:
        """End a job from the outside, without a warning."""
        self._end(self.jobs[job_id], end)

    def lose_node(self, job_id: JobId, index: int) -> None:
        """A node of a running job dies; the job keeps the others."""
        runner = self.jobs[job_id].runner
        assert runner is not None, f"job {job_id} does not run"
        runner.lose_node(index)

    # --- within ---

    def _start_jobs(self) -> None:
        for job in self.jobs.values():
            if job.state is not JobState.QUEUED or job.ready_at > self._now():
                continue
            if job.job.nodes > len(self._usable(job)):
                job.reason = "Resources"
                return  # first come first served: nobody passes it
            self._start(job)

    def _start(self, job: SimulatedJob) -> None:
        job.node_names = tuple(self._usable(job)[: job.job.nodes])
        self._free = [name for name in self._free if name not in job.node_names]
        job.state, job.reason, job.started_at = JobState.RUNNING, "", self._now()
        job.limit = self._agenda.after(job.job.walltime_s, lambda: self._end(job, JobEnd.TIMED_OUT))
        job.runner = self._launch(
            JobStart(
                job_id=job.job_id,
                restarts=job.restarts,
                tag=job.job.tag,
                directory=job.job.directory,
                node_names=job.node_names,
                done=lambda: self._end(job, JobEnd.COMPLETED),
            )
        )

    def _usable(self, job: SimulatedJob) -> list[str]:
        """Free nodes that the job does not exclude."""
        return [name for name in self._free if name not in job.job.exclude_nodes]

    def _end(self, job: SimulatedJob, end: JobEnd) -> None:
        if job.state is JobState.ENDED:
            return
        self._stop_runner(job)
        job.state, job.end, job.ended_at = JobState.ENDED, end, self._now()

    def _stop_runner(self, job: SimulatedJob) -> None:
        if job.limit is not None:
            job.limit.call_off()
        runner, job.runner = job.runner, None
        if runner is not None:
            runner.kill()
            self._free += job.node_names
        self._agenda.after(_START_INTERVAL_S, self._start_jobs)

    def _is_listed(self, job: SimulatedJob) -> bool:
        if job.job_id in self.faults.forgotten:
            return False
        if job.ended_at is None:
            return True
        return self._now() - job.ended_at < self._listed_after_end_s

    def _query(self) -> None:
        self.queries += 1
        self._require_answer()

    def _require_answer(self) -> None:
        if self.faults.unavailable:
            raise BatchUnavailable(
                "the simulated scheduler does not answer", command="simulated", returncode=1
            )

    def _now(self) -> float:
        return self._agenda.clock.monotonic()


def _observed(job: SimulatedJob) -> ObservedJob:
    return ObservedJob(
        job_id=job.job_id,
        name=job.job.tag,
        state=job.state,
        end=job.end,
        reason=job.reason,
        queue=job.job.queue,
        nodes=job.job.nodes,
        restarts=job.restarts,
        node_names=",".join(job.node_names),
    )
