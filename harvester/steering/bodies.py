"""The bodies of the native protocol's calls, checked at the edge and turned into plain values."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from harvester.central import port
from harvester.model import AttemptId, LeaseId
from harvester.steering.leases import LEASES_AT_ONCE

RESULTS_AT_ONCE = 1_000
REPORTS_AT_ONCE = 10_000
_OUTPUT_CHARACTERS = 256 * 1024  # four times what a runner keeps of a stream

_Id = Annotated[str, StringConstraints(min_length=1, max_length=100)]
_Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
_Text = Annotated[str, StringConstraints(max_length=64 * 1024)]
_Output = Annotated[str, StringConstraints(max_length=_OUTPUT_CHARACTERS)]
_Sha256 = Annotated[str, StringConstraints(pattern=re.compile(r"^[0-9a-f]{64}\Z"))]
_Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Body(BaseModel):
    # Unknown fields are left aside: a harvester may be a release ahead of its service.
    model_config = ConfigDict(strict=True, extra="ignore")


class LeaseBody(_Body):
    """``POST /api/v1/leases``."""

    key: _Name
    harvester: _Name
    site: _Name
    points: Annotated[int, Field(ge=0, le=LEASES_AT_ONCE)]
    known_payloads: Annotated[list[_Id], Field(max_length=10_000)] = []

    def to_request(self) -> port.LeaseRequest:
        """As the port has it."""
        return port.LeaseRequest(
            key=self.key,
            harvester=self.harvester,
            site=self.site,
            points=self.points,
            known_payloads=tuple(self.known_payloads),
        )


class RenewBody(_Body):
    """``POST /api/v1/leases/renew``."""

    harvester: _Name
    leases: Annotated[list[_Id], Field(max_length=LEASES_AT_ONCE)]


class ResultFileBody(_Body):
    """A file of a result."""

    role: _Name
    name: _Name
    size: Annotated[int, Field(ge=0, le=2**53)]
    sha256: _Sha256


class ResultBody(_Body):
    """One result."""

    attempt: _Id
    lease: _Id
    state: _Id
    final: bool
    blame: _Id | None = None
    reason: _Text | None = None
    loss: _Finite | None = None
    message: _Text | None = None
    metadata: dict[str, Any] | None = None
    files: Annotated[list[ResultFileBody], Field(max_length=100)] = []
    allocation: _Name | None = None
    node: _Text | None = None
    started: _Name | None = None
    ended: _Name | None = None
    resumed_from: _Id | None = None
    stdout: _Output | None = None
    stderr: _Output | None = None

    def to_result(self) -> port.Result:
        """As the port has it."""
        return port.Result(
            attempt=AttemptId(self.attempt),
            lease=LeaseId(self.lease),
            state=self.state,
            final=self.final,
            blame=self.blame,
            reason=self.reason,
            loss=self.loss,
            message=self.message,
            metadata=self.metadata,
            files=tuple(
                port.ResultFile(role=item.role, name=item.name, size=item.size, sha256=item.sha256)
                for item in self.files
            ),
            allocation=self.allocation,
            node=self.node,
            started=self.started,
            ended=self.ended,
            resumed_from=None if self.resumed_from is None else AttemptId(self.resumed_from),
            stdout=self.stdout,
            stderr=self.stderr,
        )


class ResultsBody(_Body):
    """``POST /api/v1/results``."""

    harvester: _Name
    results: Annotated[list[ResultBody], Field(max_length=RESULTS_AT_ONCE)]


class ReportValues(_Body):
    """One line of metrics; further keys are kept as they are."""

    model_config = ConfigDict(strict=True, extra="allow")
    step: Annotated[int, Field(ge=-(2**53), le=2**53)]


class ReportBody(_Body):
    """The metrics of one lease."""

    lease: _Id
    attempt: _Id
    values: Annotated[list[ReportValues], Field(max_length=10_000)]

    def to_report(self) -> port.Report:
        """As the port has it."""
        return port.Report(
            LeaseId(self.lease),
            AttemptId(self.attempt),
            tuple(item.model_dump() for item in self.values),
        )


class ReportsBody(_Body):
    """``POST /api/v1/reports``."""

    harvester: _Name
    reports: Annotated[list[ReportBody], Field(max_length=REPORTS_AT_ONCE)]
