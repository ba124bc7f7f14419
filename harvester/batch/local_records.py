"""What the local batch system keeps on disk, and how an observed job looks as JSON.

Layout of its directory (0700, on a local disk)::

    lock                        held (flock) by the one scheduler process
    socket  server.log          where it listens; what it has to complain about
    cluster.json                Cluster, as the newest submission stated it
    jobs/<id>.spec.json         JobSpec; its presence makes the job exist
    jobs/<id>.status.json       JobStatus; absent: queued, never started
    jobs/<id>.<restarts>.sh     the script as that start executes it
    jobs/<id>.<restarts>.end.json   EndRecord of that start, written by its shepherd
    accounting.log              JSON lines, one for each ended job; accounting.1.log the older
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harvester.batch.local_processes import ProcessIdentity
from harvester.batch.local_queue import Cluster, JobSpec, Phase, Placement
from harvester.batch.port import JobEnd, JobState, ObservedJob
from harvester.model import JobId
from payload_runner.files import RealFiles
from payload_runner.protocol import BadRecord, dump_json, load_json

ACCOUNTING_BYTES = 4 * 1024 * 1024  # about 15,000 jobs, and as many in the older file
_SPEC = re.compile(r"(\d+)\.spec\.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """What changes in a job's life before its end."""

    phase: str = Phase.QUEUED.value
    restarts: int = 0
    placement: Placement = field(default_factory=Placement)
    shepherd: ProcessIdentity = field(default_factory=ProcessIdentity)
    requeue_asked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EndRecord:
    """How one start of a job ended. ``end`` is a ``JobEnd`` value, or "requeued"."""

    end: str
    reason: str
    at: float


REQUEUED = "requeued"


class Records:
    """The files below one directory. Raises OSError; unreadable records raise BadRecord."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._jobs = directory / "jobs"
        self._files = RealFiles()

    @property
    def lock(self) -> Path:
        return self.directory / "lock"

    @property
    def socket(self) -> Path:
        return self.directory / "socket"

    @property
    def server_log(self) -> Path:
        return self.directory / "server.log"

    def prepare(self) -> None:
        """Make the directories, private to this user."""
        self._files.make_dir(self.directory)
        self._files.make_dir(self._jobs)

    def live_jobs(self) -> tuple[str, ...]:
        """Ids of the jobs that have not ended, in the order of their submission."""
        try:
            names = os.listdir(self._jobs)
        except FileNotFoundError:
            return ()
        found = [match.group(1) for match in map(_SPEC.fullmatch, names) if match]
        return tuple(sorted(found, key=int))

    def last_id(self) -> int:
        """The largest job id ever given, as far as is known; 0 when none."""
        ids = [int(job) for job in self.live_jobs()]
        ids += [int(job.job_id) for job in self.accounted()]
        return max(ids, default=0)

    def load_spec(self, job: str) -> JobSpec:
        return load_json((self._jobs / f"{job}.spec.json").read_bytes(), JobSpec)

    def save_spec(self, spec: JobSpec) -> None:
        self._files.replace(self._jobs / f"{spec.id}.spec.json", dump_json(spec))

    def load_status(self, job: str) -> JobStatus:
        try:
            data = (self._jobs / f"{job}.status.json").read_bytes()
        except FileNotFoundError:
            return JobStatus()
        return load_json(data, JobStatus)

    def save_status(self, job: str, status: JobStatus) -> None:
        self._files.replace(self._jobs / f"{job}.status.json", dump_json(status))

    def write_script(self, spec: JobSpec, restarts: int) -> Path:
        """The file that bash is to execute in this start of the job."""
        path = self._jobs / f"{spec.id}.{restarts}.sh"
        path.write_text(spec.script, "utf-8", "surrogateescape")
        return path

    def load_end(self, job: str, restarts: int) -> EndRecord | None:
        """How that start ended; None if its shepherd has left no record."""
        try:
            return load_json(self._end(job, restarts).read_bytes(), EndRecord)
        except (FileNotFoundError, BadRecord):
            return None

    def save_end(self, job: str, restarts: int, end: EndRecord) -> None:
        self._files.replace(self._end(job, restarts), dump_json(end))

    def forget_end(self, job: str, restarts: int) -> None:
        self._files.remove(self._end(job, restarts))

    def forget(self, job: str) -> None:
        """Remove a job that is in the accounting; the spec goes last, for it makes the job."""
        for path in sorted(self._jobs.glob(f"{job}.*"), key=lambda path: "spec" in path.name):
            self._files.remove(path)

    def load_cluster(self) -> Cluster | None:
        try:
            return load_json((self.directory / "cluster.json").read_bytes(), Cluster)
        except FileNotFoundError:
            return None

    def save_cluster(self, cluster: Cluster) -> None:
        self._files.replace(self.directory / "cluster.json", dump_json(cluster))

    def account(self, job: ObservedJob) -> None:
        """Append an ended job. The newline in front keeps a torn line from spoiling the next."""
        line = "\n" + json.dumps(to_json(job)) + "\n"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        fd = os.open(self.directory / "accounting.log", flags, 0o600)
        try:
            os.write(fd, line.encode("ascii"))
            os.fsync(fd)
        finally:
            os.close(fd)

    def accounted(self) -> Iterator[ObservedJob]:
        """All ended jobs that are remembered, oldest first; the last word on an id counts."""
        for name in ("accounting.1.log", "accounting.log"):
            with contextlib.suppress(FileNotFoundError), open(self.directory / name, "rb") as lines:
                yield from _readable(lines)

    def roll_accounting(self) -> None:
        """Start a new accounting file when the present one is large."""
        path = self.directory / "accounting.log"
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size > ACCOUNTING_BYTES:
                os.replace(path, self.directory / "accounting.1.log")

    def _end(self, job: str, restarts: int) -> Path:
        return self._jobs / f"{job}.{restarts}.end.json"


def to_json(job: ObservedJob) -> dict[str, object]:
    """An observed job as a JSON object."""
    return {
        "job_id": job.job_id,
        "name": job.name,
        "state": job.state.value,
        "end": job.end.value if job.end else None,
        "reason": job.reason,
        "queue": job.queue,
        "nodes": job.nodes,
        "restarts": job.restarts,
        "node_names": job.node_names,
    }


def from_json(value: object) -> ObservedJob:
    """An observed job from its JSON object.

    Raises:
        BadRecord: it is not one.
    """
    if not isinstance(value, Mapping):
        raise BadRecord(f"expected an object, got {type(value).__name__}")
    try:
        return ObservedJob(
            job_id=JobId(str(value["job_id"])),
            name=str(value["name"]),
            state=JobState(value["state"]),
            end=None if value["end"] is None else JobEnd(value["end"]),
            reason=str(value["reason"]),
            queue=str(value["queue"]),
            nodes=int(value["nodes"]),
            restarts=int(value["restarts"]),
            node_names=str(value["node_names"]),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise BadRecord(f"not a job: {error!r}") from error


def _readable(lines: Iterator[bytes]) -> Iterator[ObservedJob]:
    for line in lines:
        # A line torn by a crash is lost; its job's files are still there and account again.
        with contextlib.suppress(ValueError):
            yield from_json(json.loads(line))
