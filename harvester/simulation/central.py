"""A central service in memory that keeps the books: leases, charges, and what it was told.

Behaves as ``docs/native-protocol.md`` says, with time from the fake clock. Faults are switched on
by attributes. The books (``told``, ``settled``) are what tests compare with.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from harvester.central.port import (
    LeaseReply,
    LeaseRequest,
    LeaseStanding,
    Receipt,
    Report,
    Result,
)
from harvester.clock import Clock
from harvester.errors import CentralRefused, CentralUnavailable
from harvester.model import AttemptId, LeasedPoint, LeaseId, PayloadSpec, PointId, TaskId
from payload_runner.files import Files
from payload_runner.protocol import PENALTY_LOSS

OWN_FAILURES_MAX = 3
_T = TypeVar("_T")


@dataclass(slots=True)
class SimulatedPoint:
    """A point and all that was said of it."""

    point: PointId
    parameters: Mapping[str, Any]
    state: str = "waiting"  # waiting | leased | done | failed | cancelled
    grants: int = 0
    expires_at: float = -math.inf  # of the newest grant, monotonic
    own_failures: int = 0
    loss: float | None = None
    settled_by: AttemptId | None = None


@dataclass(slots=True)
class CentralFaults:
    """What goes wrong; each is looked at anew by every call."""

    down: bool = False  # nothing arrives
    loses_answers: bool = False  # what arrives is done, but the answer is lost


@dataclass(slots=True)
class CentralBooks:
    """How often it was told what."""

    calls: Counter[str] = field(default_factory=Counter)
    told: Counter[AttemptId] = field(default_factory=Counter)
    results: dict[AttemptId, Result] = field(default_factory=dict)
    reports: list[Report] = field(default_factory=list)
    uploads: dict[str, int] = field(default_factory=dict)


class SimulatedCentral:
    """:class:`~harvester.central.port.CentralService` for one task, without a server."""

    def __init__(
        self,
        clock: Clock,
        payload: PayloadSpec,
        parameters: Sequence[Mapping[str, Any]],
        *,
        task: str = "1",
        parallel: int | None = None,
        lease_s: float = 3600.0,
        files: Files | None = None,
        inputs: Mapping[str, bytes] | None = None,
    ) -> None:
        self.faults = CentralFaults()
        self.books = CentralBooks()
        self.task = TaskId(task)
        self.points = {
            PointId(str(n)): SimulatedPoint(PointId(str(n)), values)
            for n, values in enumerate(parameters)
        }
        self.stop: dict[PointId, str] = {}  # points to stop, and how
        self._clock = clock
        self._payload = payload
        self._parallel = parallel or len(parameters)
        self._lease_s = lease_s
        self._files = files
        self._inputs = dict(inputs or {})
        self._answers: dict[str, tuple[LeaseId, ...]] = {}

    # --- the port ---

    def lease(self, request: LeaseRequest) -> LeaseReply:
        return self._answer("lease", lambda: self._lease(request))

    def renew(self, leases: Sequence[LeaseId]) -> LeaseStanding:
        return self._answer("renew", lambda: self._renew(leases))

    def deliver(self, results: Sequence[Result]) -> tuple[Receipt, ...]:
        return self._answer("deliver", lambda: tuple(self._take(result) for result in results))

    def report(self, reports: Sequence[Report]) -> Mapping[LeaseId, str]:
        return self._answer("report", lambda: self._report(reports))

    def fetch_input(self, sha256: str, target: Path) -> None:
        self._answer("fetch_input", lambda: self._fetch(sha256, target))

    def upload(self, path: Path, sha256: str, size: int) -> None:
        del path
        self._answer("upload", lambda: self.books.uploads.__setitem__(sha256, size))

    def tasks(self) -> Sequence[Mapping[str, Any]]:
        return self._answer("tasks", lambda: ({"task": self.task, "state": self._state()},))

    # --- what tests ask ---

    def add_input(self, sha256: str, content: bytes) -> None:
        """Have one more input file to give out."""
        self._inputs[sha256] = content

    @property
    def unsettled(self) -> int:
        """Points without an outcome."""
        return sum(point.state in ("waiting", "leased") for point in self.points.values())

    @property
    def losses(self) -> Mapping[PointId, float | None]:
        """The outcome of every point."""
        return {name: point.loss for name, point in self.points.items()}

    # --- within ---

    def _answer(self, call: str, work: Callable[[], _T]) -> _T:
        if self.faults.down:
            raise CentralUnavailable("the simulated central service is down")
        self.books.calls[call] += 1
        answer = work()
        if self.faults.loses_answers:
            raise CentralUnavailable(f"the answer to {call} was lost")
        return answer

    def _lease(self, request: LeaseRequest) -> LeaseReply:
        self._expire()
        answered = self._answers.get(request.key)
        granted = self._grant_some(request.points) if answered is None else self._live_of(answered)
        if granted:
            self._answers[request.key] = tuple(point.lease for point in granted)
        leased = sum(point.state == "leased" for point in self.points.values())
        waiting = sum(point.state == "waiting" for point in self.points.values())
        known = self._payload.payload_id in request.known_payloads
        left = min(waiting, self._parallel - leased)
        return LeaseReply(
            points=granted,
            payloads=() if known or not granted else (self._payload,),
            more=left > 0,
            waiting=left,
        )

    def _grant_some(self, wanted: int) -> tuple[LeasedPoint, ...]:
        leased = sum(point.state == "leased" for point in self.points.values())
        waiting = [point for point in self.points.values() if point.state == "waiting"]
        room = max(0, min(wanted, self._parallel - leased))
        return tuple(self._grant(point) for point in waiting[:room])

    def _live_of(self, leases: Sequence[LeaseId]) -> tuple[LeasedPoint, ...]:
        named = [(lease, self._point_of(lease)) for lease in leases]
        return tuple(self._as_leased(point) for lease, point in named if self._holds(lease, point))

    def _grant(self, point: SimulatedPoint) -> LeasedPoint:
        point.state = "leased"
        point.grants += 1
        point.expires_at = self._clock.monotonic() + self._lease_s
        return self._as_leased(point)

    def _as_leased(self, point: SimulatedPoint) -> LeasedPoint:
        return LeasedPoint(
            lease=LeaseId(f"{self.task}.{point.point}.{point.grants}"),
            task=self.task,
            point=point.point,
            parameters=point.parameters,
            payload_id=self._payload.payload_id,
            expires_s=point.expires_at - self._clock.monotonic(),
        )

    def _expire(self) -> None:
        now = self._clock.monotonic()
        for point in self.points.values():
            if point.state == "leased" and point.expires_at <= now:
                point.state = "waiting"

    def _renew(self, leases: Sequence[LeaseId]) -> LeaseStanding:
        self._expire()
        gone, stop = [], {}
        for lease in leases:
            point = self._point_of(lease)
            if not self._holds(lease, point):
                gone.append(lease)
                continue
            point.expires_at = self._clock.monotonic() + self._lease_s
            if point.point in self.stop:
                stop[lease] = self.stop[point.point]
        return LeaseStanding(gone=tuple(gone), stop=stop, expires_s=self._lease_s)

    def _report(self, reports: Sequence[Report]) -> Mapping[LeaseId, str]:
        self.books.reports.extend(reports)
        asked = {
            report.lease: self.stop.get(self._point_of(report.lease).point) for report in reports
        }
        return {lease: how for lease, how in asked.items() if how is not None}

    def _take(self, result: Result) -> Receipt:
        self.books.told[result.attempt] += 1
        point = self._point_of(result.lease)
        known = self.books.results.get(result.attempt)
        if known is not None and not (result.final and not known.final):
            return Receipt(result.attempt, "recorded")
        self.books.results[result.attempt] = result
        if not result.final or point.state not in ("waiting", "leased"):
            return Receipt(result.attempt, "recorded")
        if result.state != "succeeded" and not self._holds(result.lease, point):
            return Receipt(result.attempt, "recorded")
        self._settle(point, result)
        return Receipt(result.attempt, "counted")

    def _settle(self, point: SimulatedPoint, result: Result) -> None:
        if result.state == "succeeded":
            point.state, point.loss = "done", result.loss
        elif result.state in ("pruned", "cancelled"):
            point.state = "cancelled"
        elif result.blame == "point" or (result.state, result.blame) == ("timed_out", "walltime"):
            point.own_failures += 1
            used_up = point.own_failures >= OWN_FAILURES_MAX
            point.state = "failed" if used_up else "waiting"
            point.loss = PENALTY_LOSS if used_up else None
        else:
            point.state = "waiting"
        point.settled_by = result.attempt if point.state != "waiting" else None

    def _holds(self, lease: LeaseId, point: SimulatedPoint) -> bool:
        return point.state == "leased" and lease == f"{self.task}.{point.point}.{point.grants}"

    def _point_of(self, lease: LeaseId) -> SimulatedPoint:
        parts = lease.split(".")
        if len(parts) != 3 or PointId(parts[1]) not in self.points:
            raise CentralRefused(f"no such lease: {lease}")
        return self.points[PointId(parts[1])]

    def _fetch(self, sha256: str, target: Path) -> None:
        if sha256 not in self._inputs or self._files is None:
            raise CentralRefused(f"no file of SHA-256 {sha256}")
        assert hashlib.sha256(self._inputs[sha256]).hexdigest() == sha256
        self._files.create_exclusive(target, self._inputs[sha256])

    def _state(self) -> str:
        return "running" if self.unsettled else "finished"
