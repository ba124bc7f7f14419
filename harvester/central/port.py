"""What the harvester needs of a central service, whichever it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from harvester.model import AttemptId, LeasedPoint, LeaseId, PayloadSpec, TaskId


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRequest:
    """Ask for points. ``key`` names the request: asked again, it gets the same points.

    An answer without points binds nobody: the same key may get points later.
    """

    key: str
    harvester: str
    site: str
    points: int  # at most this many
    known_payloads: tuple[str, ...] = ()  # definitions that need not be sent again


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseReply:
    """Points to evaluate and the definitions of payloads not known yet."""

    points: tuple[LeasedPoint, ...]
    payloads: tuple[PayloadSpec, ...] = ()
    more: bool = False  # points were left over
    waiting: int = 0  # points the service could still hand out now or soon


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseStanding:
    """What the service says of leases when they are renewed."""

    gone: tuple[
        LeaseId, ...
    ] = ()  # expired and given to others, or settled: results are still taken
    stop: Mapping[LeaseId, str] = field(default_factory=dict)  # lease -> "cancelled" | "pruned"
    expires_s: float | None = None  # what the others have from now on; None: it does not say


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultFile:
    """A file that belongs to a result; uploaded under its SHA-256 before the result is told."""

    role: str  # metrics | metadata | stdout | stderr
    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """An attempt's outcome on its way to the service; ``attempt`` is its idempotency key."""

    attempt: AttemptId
    lease: LeaseId
    state: str
    final: bool  # False: the harvester goes on with this lease itself
    blame: str | None = None
    reason: str | None = None
    loss: float | None = None
    message: str | None = None
    metadata: Mapping[str, Any] | None = None
    files: tuple[ResultFile, ...] = ()
    allocation: str | None = None
    node: str | None = None
    started: str | None = None  # ISO 8601 UTC
    ended: str | None = None
    resumed_from: AttemptId | None = None
    stdout: str | None = None  # kept head and tail of a failed attempt
    stderr: str | None = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the service did with one result: ``counted``, ``recorded`` (known already, or the
    point was settled by another) or ``refused`` (with the reason; repeating will not help)."""

    attempt: AttemptId
    verdict: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """One intermediate metric of a lease; newest value per (lease, step) wins."""

    lease: LeaseId
    attempt: AttemptId
    values: tuple[Mapping[str, Any], ...]


class CentralService(Protocol):
    """A central service. Every call is one request with time-outs, safe to repeat.

    Raises ``CentralUnavailable`` (try later), ``CentralRefused`` (do not repeat) and
    ``CredentialsRefused`` (keep working on what is leased; try with fresh credentials).
    """

    def lease(self, request: LeaseRequest) -> LeaseReply:
        """Points for this harvester; an empty reply means that there are none now."""

    def renew(self, leases: Sequence[LeaseId]) -> LeaseStanding:
        """Prolong leases in one call."""

    def deliver(self, results: Sequence[Result]) -> tuple[Receipt, ...]:
        """Tell outcomes, one receipt each in the same order. In effect exactly once.

        ``CentralRefused`` speaks of these results, never of the caller or the way there."""

    def report(self, reports: Sequence[Report]) -> Mapping[LeaseId, str]:
        """Tell metrics; the answer names leases to stop and why."""

    def fetch_input(self, sha256: str, target: Path) -> None:
        """Bring one input file to ``target`` (a new file), checked against its SHA-256."""

    def upload(self, path: Path, sha256: str, size: int) -> None:
        """Bring a result's file to the service, resuming a partial transfer.

        Raises ``FileNotFoundError`` when the file is not there (any more)."""

    def tasks(self) -> Sequence[Mapping[str, Any]]:
        """Summaries for status views: id, name, state, counts, best loss. May be empty."""


__all__ = [
    "CentralService",
    "LeaseReply",
    "LeaseRequest",
    "LeaseStanding",
    "Receipt",
    "Report",
    "Result",
    "ResultFile",
    "TaskId",
]
