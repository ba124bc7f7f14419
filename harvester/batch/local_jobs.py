"""The jobs of the local batch system: queued, running and just ended ones, and their steps.

Killed with -9 at any point, the scheduler loses nothing: every step stands on disk before it has
an effect, running jobs live under their shepherds, and :meth:`Jobs.recover` takes them over by
recorded pid and start time. A job whose shepherd itself was killed ends as ``node_failed`` (or
starts again if it may be requeued); what is left of its processes is found by the mark in their
environment and killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from harvester.batch.local_processes import (
    ProcessIdentity,
    children,
    descendants,
    identify,
    marked,
    open_process,
    send_signal,
)
from harvester.batch.local_queue import Cluster, JobSpec, Phase, Placement, starts, why_impossible
from harvester.batch.local_records import REQUEUED, EndRecord, JobStatus, Records, to_json
from harvester.batch.local_shepherd import Flock, fork_shepherd, mark
from harvester.batch.port import JobEnd, JobState, ObservedJob
from harvester.model import JobId
from payload_runner.protocol import BadRecord, from_fields

RECENT_S = 60.0  # an ended job is still listed for this long
_SWEEP_ROUNDS = 100  # of 10 ms; what survives SIGKILL for longer hangs in the kernel

_STATES = {
    Phase.QUEUED: JobState.QUEUED,
    Phase.HELD: JobState.HELD,
    Phase.RUNNING: JobState.RUNNING,
    Phase.ENDING: JobState.ENDING,
}

Request = Mapping[str, Any]  # JSON from a client


class RequestRefused(Exception):
    """The request makes no sense here; ``str()`` says why, for people."""


@dataclass(frozen=True, slots=True)
class _Job:
    spec: JobSpec
    status: JobStatus

    @property
    def phase(self) -> Phase:
        return Phase(self.status.phase)

    @property
    def has_nodes(self) -> bool:
        return self.phase in (Phase.RUNNING, Phase.ENDING)


class Jobs:
    """All unfinished jobs of one directory; the caller holds its lock.

    ``wait_for(pidfd, job id)`` is told of each shepherd whose end is to be waited for, and owns
    the descriptor; at its end :meth:`settle` is to be called.
    """

    def __init__(self, records: Records, wait_for: Callable[[int, str], None]) -> None:
        self._records = records
        self._wait_for = wait_for
        self._cluster = records.load_cluster()
        self._jobs: dict[str, _Job] = {}
        self._recent: dict[str, tuple[float, ObservedJob]] = {}
        self._next_id = records.last_id() + 1
        self._requests: Mapping[str, Callable[[Request], object]] = {
            "submit": self._submit,
            "list": self._list,
            "free": self._free,
            "cancel": self._cancel,
            "hold": self._hold,
            "release": self._release,
            "requeue": self._requeue,
        }

    def __bool__(self) -> bool:
        """Whether there is any that has not ended."""
        return bool(self._jobs)

    def do(self, request: Request) -> object:
        """Carry out a client's request and return the answer's value.

        Raises:
            RequestRefused, BadRecord: the request makes no sense; nothing was done.
            OSError: a record could not be written.
        """
        known = self._requests.get(str(request.get("do")))
        if known is None:
            raise RequestRefused(f"the scheduler knows no request {request.get('do')!r:.40}")
        return known(request)

    def cancel_all(self) -> None:
        """Ask for the end of every job."""
        self._cancel({"jobs": list(self._jobs)})

    def start(self) -> None:
        """Start every queued job that can start now. Raises OSError."""
        if self._cluster is None:
            return
        busy = [(job.spec, job.status.placement) for job in self._jobs.values() if job.has_nodes]
        waiting = [job.spec for job in self._jobs.values() if job.phase is Phase.QUEUED]
        for spec, placement in tuple(starts(self._cluster, busy, waiting)):
            self._start(self._cluster, self._jobs[spec.id], placement)

    def settle(self, job_id: str) -> None:
        """A shepherd has ended: account for its job or queue it again."""
        reap()
        job = self._jobs[job_id]
        end = self._records.load_end(job_id, job.status.restarts)
        if end is None:
            self._sweep(job)
            end = _unwitnessed(job)
        if end.end == REQUEUED:
            self._queue_again(job)
        else:
            self._account(job, JobEnd(end.end), end.reason)

    def recover(self) -> None:
        """Take over what a predecessor has left."""
        for job_id in self._records.live_jobs():
            try:
                job = _Job(self._records.load_spec(job_id), self._records.load_status(job_id))
            except BadRecord as error:  # a power cut can leave this; the job never got an answer
                print(f"job {job_id} is unreadable and is dropped: {error}", file=sys.stderr)
                self._records.forget(job_id)
                continue
            self._jobs[job_id] = job
        for job in [job for job in self._jobs.values() if job.has_nodes]:
            if job.phase is Phase.ENDING:  # the predecessor may not have come to the signal
                asked = signal.SIGUSR1 if job.status.requeue_asked else signal.SIGTERM
                send_signal(job.status.shepherd, asked)
            self._watch(job.spec.id, job.status.shepherd)

    # --- requests ---

    def _submit(self, request: Request) -> str:
        self._adopt(from_fields(Cluster, request.get("cluster")))
        assert self._cluster is not None
        spec = replace(from_fields(JobSpec, request.get("job")), id=str(self._next_id))
        impossible = why_impossible(self._cluster, spec)
        if impossible:
            raise RequestRefused(impossible)
        first = Phase.HELD if spec.held else Phase.QUEUED
        # Its spec makes the job, and a job without a status is queued: so the status goes first.
        if spec.held:
            self._records.save_status(spec.id, JobStatus(phase=first.value))
        self._records.save_spec(spec)
        self._next_id += 1
        self._jobs[spec.id] = _Job(spec, JobStatus(phase=first.value))
        return spec.id

    def _adopt(self, cluster: Cluster) -> None:
        if cluster != self._cluster:
            self._records.save_cluster(cluster)
            self._cluster = cluster

    def _list(self, _: Request) -> list[dict[str, object]]:
        now = time.monotonic()
        self._recent = {
            job: (at, seen) for job, (at, seen) in self._recent.items() if now - at < RECENT_S
        }
        recent = [to_json(seen) for _, seen in self._recent.values()]
        return [*recent, *(to_json(_observed(job)) for job in self._jobs.values())]

    def _free(self, _: Request) -> int:
        """Nodes that stand idle; none while a job waits, which comes first."""
        phases = {job.phase for job in self._jobs.values()}
        if self._cluster is None or Phase.QUEUED in phases:
            return 0
        busy = {
            name
            for job in self._jobs.values()
            if job.has_nodes
            for name in job.status.placement.node_names
        }
        return len(set(self._cluster.node_names) - busy)

    def _cancel(self, request: Request) -> None:
        for job in self._named(request):
            if job.has_nodes:
                self._keep(job, phase=Phase.ENDING)
                send_signal(job.status.shepherd, signal.SIGTERM)
            else:
                self._account(job, JobEnd.CANCELLED, "cancelled before it started")

    def _hold(self, request: Request) -> None:
        for job in self._named(request):
            if job.has_nodes:
                raise RequestRefused(f"job {job.spec.id} runs already; only queued jobs are held")
            self._keep(job, phase=Phase.HELD)

    def _release(self, request: Request) -> None:
        for job in self._named(request):
            if job.phase is Phase.HELD:
                self._keep(job, phase=Phase.QUEUED)

    def _requeue(self, request: Request) -> None:
        for job in self._named(request):
            if job.phase is not Phase.RUNNING:
                raise RequestRefused(f"job {job.spec.id} does not run; only running jobs requeue")
            self._keep(job, phase=Phase.ENDING, requeue_asked=True)
            send_signal(job.status.shepherd, signal.SIGUSR1)

    def _named(self, request: Request) -> list[_Job]:
        """The jobs that a request names and that are still there."""
        return [self._jobs[job] for job in request.get("jobs", ()) if job in self._jobs]

    def _keep(self, job: _Job, *, phase: Phase, requeue_asked: bool = False) -> None:
        status = replace(job.status, phase=phase.value, requeue_asked=requeue_asked)
        self._records.save_status(job.spec.id, status)
        self._jobs[job.spec.id] = _Job(job.spec, status)

    # --- steps ---

    def _start(self, cluster: Cluster, job: _Job, placement: Placement) -> None:
        flock = Flock(
            spec=job.spec,
            placement=placement,
            restarts=job.status.restarts,
            kill_s=cluster.kill_s,
            gpu_variable=cluster.node.gpu_variable,
        )
        self._records.forget_end(job.spec.id, job.status.restarts)
        pid, go = fork_shepherd(self._records, flock)
        try:
            shepherd = identify(pid) or ProcessIdentity()
            status = replace(
                job.status, phase=Phase.RUNNING.value, placement=placement, shepherd=shepherd
            )
            # Recorded before the word to start, so that no running job is ever unknown.
            self._records.save_status(job.spec.id, status)
            self._jobs[job.spec.id] = _Job(job.spec, status)
            self._watch(job.spec.id, shepherd)
            with contextlib.suppress(BrokenPipeError):  # it died; its pidfd says so
                os.write(go, b"g")
        finally:
            os.close(go)

    def _watch(self, job: str, shepherd: ProcessIdentity) -> None:
        """Wake up when the shepherd has ended; at once if it is gone already."""
        pidfd = open_process(shepherd)
        if pidfd is None:
            self.settle(job)
        else:
            self._wait_for(pidfd, job)

    def _sweep(self, job: _Job) -> None:
        """Kill what a shepherd that was killed has left behind."""
        entry = mark(self._records, job.spec.id, job.status.restarts)
        shepherds = {other.status.shepherd for other in self._jobs.values()}
        for _ in range(_SWEEP_ROUNDS):
            # Its children are ours now, as their subreaper, whatever their environment says;
            # if we are a later scheduler, they are init's, and the mark finds them.
            found = {*marked(entry), *children(os.getpid())} - shepherds
            found |= set(descendants([process.pid for process in found]))
            if not found:
                return
            for process in found:
                send_signal(process, signal.SIGKILL)
            time.sleep(0.01)
            reap()

    def _queue_again(self, job: _Job) -> None:
        status = JobStatus(restarts=job.status.restarts + 1)
        self._records.save_status(job.spec.id, status)
        self._records.forget_end(job.spec.id, job.status.restarts)
        self._jobs[job.spec.id] = _Job(job.spec, status)

    def _account(self, job: _Job, end: JobEnd, reason: str) -> None:
        seen = replace(_observed(job), state=JobState.ENDED, end=end, reason=reason)
        self._records.account(seen)
        self._records.forget(job.spec.id)
        del self._jobs[job.spec.id]
        self._recent[job.spec.id] = (time.monotonic(), seen)


def _observed(job: _Job) -> ObservedJob:
    phase = job.phase
    reasons = {Phase.QUEUED: "waits for nodes", Phase.HELD: "held by the user"}
    return ObservedJob(
        job_id=JobId(job.spec.id),
        name=job.spec.tag,
        state=_STATES[phase],
        reason=reasons.get(phase, ""),
        queue=job.spec.queue,
        nodes=job.spec.nodes,
        restarts=job.status.restarts,
        node_names=",".join(job.status.placement.node_names),
    )


def _unwitnessed(job: _Job) -> EndRecord:
    """The end of a start whose shepherd was killed: as asked for, else the node's failure."""
    if job.phase is Phase.ENDING:
        end = REQUEUED if job.status.requeue_asked else JobEnd.CANCELLED.value
    else:
        end = REQUEUED if job.spec.requeue else JobEnd.NODE_FAILED.value
    reason = "its shepherd process was killed, so its exit is not known"
    return EndRecord(end=end, reason=reason, at=time.time())


def reap() -> None:
    """Collect dead children; how jobs ended stands in their shepherds' records."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
