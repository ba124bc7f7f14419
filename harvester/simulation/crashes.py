"""Killing the daemon before or after any one of its effects.

A :class:`CrashPoint` counts effects. Around the one that was chosen it raises :class:`Crash`,
which no handler of the production code catches, so that the process ends there as under kill -9.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from harvester.batch.port import BatchJob, BatchSystem, Observation, ObservedJob
from harvester.central.port import (
    CentralService,
    LeaseReply,
    LeaseRequest,
    LeaseStanding,
    Receipt,
    Report,
    Result,
)
from harvester.model import BackfillWindow, JobId, LeaseId, Tag
from payload_runner.files import AppendFile, Files

_T = TypeVar("_T")


class Crash(BaseException):
    """The process is gone. Not an Exception: nothing may handle it."""


class CrashPoint:
    """Counts effects and crashes before or after the ``at``-th (from 1); None: never."""

    def __init__(self, at: int | None = None, *, after: bool = False) -> None:
        self.at = at
        self.after = after
        self.effects: list[str] = []

    @property
    def passed(self) -> bool:
        """Whether the crash has happened."""
        return self.at is not None and len(self.effects) >= self.at

    def around(self, name: str, effect: Callable[[], _T]) -> _T:
        """Do an effect, and crash where it is time."""
        self.effects.append(name)
        here = len(self.effects) == self.at
        if here and not self.after:
            raise Crash(f"before {name}")
        result = effect()
        if here:
            raise Crash(f"after {name}")
        return result


class CrashingFiles:
    """:class:`~payload_runner.files.Files` whose changes are crash points."""

    def __init__(self, files: Files, point: CrashPoint) -> None:
        self._files = files
        self._point = point

    def create_log(self, path: Path) -> AppendFile:
        made = self._point.around(f"create {path.name}", lambda: self._files.create_log(path))
        return _CrashingAppendFile(made, path, self._point)

    def continue_log(self, path: Path) -> AppendFile:
        return _CrashingAppendFile(self._files.continue_log(path), path, self._point)

    def read(self, path: Path, offset: int, limit: int) -> bytes:
        return self._files.read(path, offset, limit)

    def create_exclusive(self, path: Path, data: bytes) -> None:
        self._point.around(f"create {path.name}", lambda: self._files.create_exclusive(path, data))

    def replace(self, path: Path, data: bytes) -> None:
        self._point.around(f"replace {path.name}", lambda: self._files.replace(path, data))

    def rename(self, source: Path, target: Path) -> None:
        self._point.around(f"rename {target.name}", lambda: self._files.rename(source, target))

    def listdir(self, path: Path) -> tuple[str, ...]:
        return self._files.listdir(path)

    def make_dir(self, path: Path) -> None:
        self._point.around(f"mkdir {path.name}", lambda: self._files.make_dir(path))

    def exists(self, path: Path) -> bool:
        return self._files.exists(path)

    def remove(self, path: Path) -> None:
        self._point.around(f"remove {path.name}", lambda: self._files.remove(path))

    def remove_tree(self, path: Path) -> None:
        self._point.around(f"remove tree {path.name}", lambda: self._files.remove_tree(path))


class _CrashingAppendFile:
    def __init__(self, file: AppendFile, path: Path, point: CrashPoint) -> None:
        self._file = file
        self._path = path
        self._point = point

    def write(self, data: bytes) -> int:
        return self._point.around(f"write {self._path.name}", lambda: self._file.write(data))

    def sync(self) -> None:
        self._point.around(f"sync {self._path.name}", self._file.sync)

    def close(self) -> None:
        self._file.close()


class CrashingBatch:
    """A batch system whose calls are crash points."""

    def __init__(self, batch: BatchSystem, point: CrashPoint) -> None:
        self.name = batch.name
        self.capabilities = batch.capabilities
        self._batch = batch
        self._point = point

    def render(self, job: BatchJob) -> str:
        return self._batch.render(job)

    def submit(self, job: BatchJob, script: Path) -> JobId:
        return self._point.around("submit", lambda: self._batch.submit(job, script))

    def observe(self) -> Observation:
        return self._batch.observe()

    def ended(self, jobs: Sequence[JobId], tags: Sequence[Tag]) -> tuple[ObservedJob, ...]:
        return self._batch.ended(jobs, tags)

    def cancel(self, jobs: Sequence[JobId]) -> None:
        self._point.around("cancel", lambda: self._batch.cancel(jobs))

    def backfill_windows(self) -> tuple[BackfillWindow, ...]:
        return self._batch.backfill_windows()

    def release(self, jobs: Sequence[JobId]) -> None:
        self._batch.release(jobs)


class CrashingCentral:
    """A central service whose calls are crash points."""

    def __init__(self, central: CentralService, point: CrashPoint) -> None:
        self._central = central
        self._point = point

    def lease(self, request: LeaseRequest) -> LeaseReply:
        return self._point.around("lease", lambda: self._central.lease(request))

    def renew(self, leases: Sequence[LeaseId]) -> LeaseStanding:
        return self._point.around("renew", lambda: self._central.renew(leases))

    def deliver(self, results: Sequence[Result]) -> tuple[Receipt, ...]:
        return self._point.around("deliver", lambda: self._central.deliver(results))

    def report(self, reports: Sequence[Report]) -> Mapping[LeaseId, str]:
        return self._point.around("report", lambda: self._central.report(reports))

    def fetch_input(self, sha256: str, target: Path) -> None:
        self._point.around("fetch_input", lambda: self._central.fetch_input(sha256, target))

    def upload(self, path: Path, sha256: str, size: int) -> None:
        self._point.around("upload", lambda: self._central.upload(path, sha256, size))

    def tasks(self) -> Sequence[Mapping[str, Any]]:
        return self._central.tasks()
