"""A batch system in a directory: jobs as JSON, real processes, stepped by whoever looks.

Every fake command takes the lock, steps the cluster (collects what has exited, starts what fits)
and answers in its dialect. Standard library only: the fakes start often and must start fast.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Job = dict[str, Any]

NODES = ("node1", "node2")
GPUS = 2
CPUS = 2


@contextlib.contextmanager
def opened(directory: Path) -> Iterator[Cluster]:
    """The cluster of ``directory`` under its lock, stepped, and saved at the end."""
    directory.mkdir(exist_ok=True)
    with open(directory / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        cluster = Cluster(directory)
        cluster.step()
        yield cluster
        cluster.step()
        cluster.save()


class Cluster:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.jobs: list[Job] = []
        with contextlib.suppress(FileNotFoundError):
            self.jobs = json.loads((directory / "jobs.json").read_text())

    def save(self) -> None:
        (self.directory / "jobs.json").write_text(json.dumps(self.jobs))

    def add(self, job: Job) -> str:
        """Queue a job of ours: name, account, script (text), directory, output, nodes, gpus, cpus,
        exclude, and ``held`` if it is to be.
        """
        job_id = str(len(self.jobs) + 1)
        path = self.directory / f"{job_id}.sh"
        path.write_text(job["script"], errors="surrogateescape")
        fresh: Job = {
            "id": job_id,
            "user": getpass.getuser(),
            "state": "held" if job.get("held") else "pending",
            "exit": None,
            "on": [],
            "pid": 0,
            "restarts": 0,
        }
        self.jobs.append({**job, **fresh})
        return job_id

    def step(self) -> None:
        for job in self.jobs:
            if job["state"] in ("running", "cancelling"):
                self._collect(job)
        for job in self.jobs:
            if job["state"] == "pending" and not self._start(job):
                break

    def cancel(self, job: Job) -> None:
        if job["state"] == "running":
            job["state"] = "cancelling"
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job["pid"], signal.SIGTERM)
        elif job["state"] in ("pending", "held"):
            job["state"] = "cancelled"

    def release(self, job: Job) -> None:
        if job["state"] == "held":
            job["state"] = "pending"

    def jobs_of(self, user: str | None = None, account: str | None = None) -> list[Job]:
        """The jobs of a user, those charged to an account, or all."""
        return [
            job
            for job in self.jobs
            if user in (None, job["user"]) and account in (None, job["account"])
        ]

    def find(self, job_id: str) -> Job | None:
        return next((job for job in self.jobs if job["id"] == job_id), None)

    def is_busy(self, node: str) -> bool:
        return any(node in job["on"] and job["exit"] is None for job in self.jobs)

    def _collect(self, job: Job) -> None:
        path = self.directory / f"{job['id']}.exit"
        if path.exists() and path.read_text().endswith("\n"):
            job["exit"] = int(path.read_text())
            ended = "failed" if job["exit"] else "completed"
            job["state"] = "cancelled" if job["state"] == "cancelling" else ended

    def _start(self, job: Job) -> bool:
        free = [name for name in NODES if name not in job["exclude"] and self._fits(name, job)]
        if len(free) < job["nodes"]:
            return False
        job["on"] = free[: job["nodes"]]
        job["state"] = "running"
        stem = shlex.quote(str(self.directory / job["id"]))
        # The shell outlives the job's SIGTERM to write down how the job ended.
        line = f"trap : TERM; bash {stem}.sh & wait $!; c=$?; wait; echo $c > {stem}.exit"
        with open(job["output"], "ab") as output:
            job["pid"] = subprocess.Popen(
                ["sh", "-c", line],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=job["directory"],
                env={**os.environ, "FAKE_JOB_ID": job["id"]},
                start_new_session=True,
            ).pid
        return True

    def _fits(self, node: str, job: Job) -> bool:
        there = [other for other in self.jobs if node in other["on"] and other["exit"] is None]
        gpus = int(job["gpus"]) + sum(int(other["gpus"]) for other in there)
        cpus = int(job["cpus"]) + sum(int(other["cpus"]) for other in there)
        return gpus <= GPUS and cpus <= CPUS
