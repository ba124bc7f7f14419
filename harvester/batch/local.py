"""The embedded batch system: jobs with real semantics on this machine, without root.

A queue (first in, first out) before a virtual cluster of N nodes with G virtual GPUs each. Jobs
get a warning signal, a walltime limit, cancel, hold, release and requeue. They outlive this
process: a small scheduler process of the same user keeps them, started by the first submission
and gone a minute after the last job (``local_server``); each running job has a shepherd of its
own (``local_shepherd``). Linux 5.3 or newer.

At the limit, and when cancelled, all processes of a job get SIGTERM, and SIGKILL ``warn_s``
later. ``BatchJob.warn_s`` before the limit the batch script's process alone gets SIGUSR1. Memory
and cores are counted, not enforced.

The script's environment is the submitter's, plus HARVESTER_LOCAL_JOB_ID, HARVESTER_LOCAL_RESTART
(starts before this one), HARVESTER_LOCAL_NODES (comma list), HARVESTER_LOCAL_END (epoch seconds
of the limit) and the site's GPU variable with the GPU indexes that it holds on each node.
"""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from harvester.batch.local_queue import Cluster, JobSpec
from harvester.batch.local_records import Records, from_json
from harvester.batch.local_wire import Message, connect, read_message, send_message
from harvester.batch.port import BatchJob, Capabilities, Observation, ObservedJob
from harvester.batch.script import render_script
from harvester.errors import BatchUnavailable, SubmissionRefused
from harvester.model import BackfillWindow, JobId, Tag
from payload_runner.files import require_private_dir
from payload_runner.protocol import BadRecord, NodeShape, to_fields

_ANSWER_S = 30.0
_REPEATABLE = frozenset({"list", "free", "cancel", "hold", "release"})
_START_S = 15.0  # a cold interpreter on a busy machine


class LocalBatch:
    """Client of the scheduler of one directory. Implements ``BatchSystem``.

    ``directory`` is private to the user, on a local disk, and one virtual cluster: everybody who
    names it shares its queue. Safe to use from several threads and processes.
    """

    name = "local"
    capabilities = Capabilities(
        accounting=True,
        requeue=True,
        held_submission=True,
        exclude_nodes=True,
        walltime_step_s=1.0,
        window_commands=1,
    )

    def __init__(
        self,
        directory: Path,
        nodes: int,
        node: NodeShape,
        warn_s: float = 5.0,
        *,
        idle_s: float = 60.0,
    ) -> None:
        self._records = Records(directory.absolute())
        self._cluster = Cluster(nodes=nodes, node=node, kill_s=warn_s)
        self._idle_s = idle_s

    def render(self, job: BatchJob) -> str:
        return render_script(job, prefix="#LOCAL", options=())

    def submit(self, job: BatchJob, script: Path) -> JobId:
        if job.directives:
            raise SubmissionRefused(
                f"the local batch system has no directives, so {job.directives[0]!r:.80} means "
                "nothing to it; remove `directives` from the site file"
            )
        spec = JobSpec(
            id="",
            tag=job.tag,
            nodes=job.nodes,
            walltime_s=job.walltime_s,
            directory=str(job.directory.absolute()),
            script=_read(script),
            queue=job.queue,
            gpus_per_node=job.gpus_per_node,
            cores_per_node=job.cores_per_node,
            memory_mb_per_node=job.memory_mb_per_node,
            warn_s=job.warn_s,
            exclude_nodes=job.exclude_nodes,
            requeue=job.requeue,
            held=job.held,
            environment=dict(os.environ),
        )
        request = {"do": "submit", "cluster": to_fields(self._cluster), "job": to_fields(spec)}
        return JobId(str(self._ask(request)))

    def observe(self) -> Observation:
        if not self._has_live_jobs():
            return Observation(())
        return Observation(self._listed())

    def backfill_windows(self) -> tuple[BackfillWindow, ...]:
        free = self._ask({"do": "free"}) if self._has_live_jobs() else self._cluster.nodes
        if not isinstance(free, int):
            raise BatchUnavailable(f"the local scheduler answers nonsense: {free!r:.80}")
        return (BackfillWindow("", free, math.inf),) if free else ()

    def ended(self, jobs: Sequence[JobId], tags: Sequence[Tag]) -> tuple[ObservedJob, ...]:
        try:
            # Listed first, read second: a job that ends in between is in one of them.
            listed = self._listed() if self._has_live_jobs() else ()
            seen = {job.job_id: job for job in (*listed, *self._records.accounted())}
        except OSError as error:
            raise BatchUnavailable(f"the local accounting cannot be read: {error}") from error
        return tuple(job for job in seen.values() if job.job_id in jobs or job.name in tags)

    def cancel(self, jobs: Sequence[JobId]) -> None:
        self._tell("cancel", jobs)

    def hold(self, jobs: Sequence[JobId]) -> None:
        """Keep queued jobs from starting. Raises SubmissionRefused for running ones."""
        self._tell("hold", jobs)

    def release(self, jobs: Sequence[JobId]) -> None:
        self._tell("release", jobs)

    def requeue(self, jobs: Sequence[JobId]) -> None:
        """End running jobs and queue them again. Raises SubmissionRefused for others."""
        self._tell("requeue", jobs)

    def shut_down(self) -> None:
        """Cancel all jobs, wait for their ends and for that of the scheduler process."""
        if not self._has_live_jobs():
            return
        try:
            with self._connection() as server:
                server.settimeout(self._cluster.kill_s + _ANSWER_S)
                send_message(server, {"do": "leave"})
                server.recv(1)  # never answered: the end of the connection is the answer
        except OSError as error:
            raise BatchUnavailable(f"the local scheduler did not leave: {error}") from error

    def _tell(self, what: str, jobs: Sequence[JobId]) -> None:
        if jobs and self._has_live_jobs():
            self._ask({"do": what, "jobs": list(jobs)})

    def _listed(self) -> tuple[ObservedJob, ...]:
        listing = self._ask({"do": "list"})
        try:
            return tuple(from_json(job) for job in listing)  # type: ignore[attr-defined]  # JSON
        except (BadRecord, TypeError) as error:
            raise BatchUnavailable(f"the local scheduler answers nonsense: {error}") from error

    def _has_live_jobs(self) -> bool:
        try:
            return bool(self._records.live_jobs()) or self._records.socket.exists()
        except OSError as error:
            raise BatchUnavailable(f"the local queue cannot be read: {error}") from error

    def _ask(self, request: Message) -> object:
        """The scheduler's answer, starting one where there is none."""
        try:
            answer = self._exchange(request)
        except OSError as error:
            raise BatchUnavailable(f"the local scheduler does not answer: {error}") from error
        if "refused" in answer:
            raise SubmissionRefused(f"the local batch system refuses: {answer['refused']}")
        if "ok" not in answer:
            raise BatchUnavailable(str(answer.get("failed", "the local scheduler failed")))
        return answer["ok"]

    def _exchange(self, request: Message) -> Message:
        for last in (request["do"] not in _REPEATABLE, True):
            try:
                with self._connection() as server:
                    send_message(server, request)
                    return read_message(server)
            except ConnectionError:  # it died, or left, between our connecting and its answer
                if last:
                    raise
        raise AssertionError("the second round returns or raises")

    def _connection(self) -> socket.socket:
        give_up = time.monotonic() + _START_S
        while True:
            try:
                return connect(self._records.directory, _ANSWER_S)
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > give_up:
                    raise
            # It may be gone again when we come: it was on its way out. Then once more.
            self._start_server()

    def _start_server(self) -> None:
        self._records.prepare()
        require_private_dir(self._records.directory)
        command = [sys.executable, "-m", "harvester.batch.local_server"]
        with open(self._records.server_log, "ab", opener=_private) as log:
            process = subprocess.Popen(
                [*command, str(self._records.directory), str(self._idle_s)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )
        try:
            returncode: int | None = process.wait(_START_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            returncode = None
        if returncode != 0:
            raise BatchUnavailable(
                f"the local scheduler does not start; see {self._records.server_log}",
                command=" ".join(command),
                returncode=returncode,
            )


def _read(script: Path) -> str:
    try:
        return script.read_text("utf-8", "surrogateescape")
    except OSError as error:
        raise SubmissionRefused(f"the batch script cannot be read: {error}") from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
