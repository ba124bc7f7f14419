"""Leased points and results as JSON objects, for whichever way they travel."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from harvester.central.port import Result, ResultFile
from harvester.model import AttemptId, LeasedPoint, LeaseId, PointId, TaskId
from payload_runner.protocol import to_fields

_RESULT_NAMES = frozenset(item.name for item in dataclasses.fields(Result))


def leased_point(fields: Mapping[str, Any]) -> LeasedPoint:
    """A point from its JSON object.

    Raises:
        KeyError, TypeError, ValueError: a field is missing or wrong.
    """
    segment = fields.get("segment")
    return LeasedPoint(
        lease=LeaseId(str(fields["lease"])),
        task=TaskId(str(fields["task"])),
        point=PointId(str(fields["point"])),
        parameters=fields["parameters"],
        payload_id=str(fields["payload_id"]),
        segment=None if segment is None else str(segment),
        priority=int(fields.get("priority", 0)),
        expires_s=float(fields["expires_s"]),
        attempts_before=int(fields.get("attempts_before", 0)),
    )


def point_fields(point: LeasedPoint) -> dict[str, Any]:
    """A point's JSON object."""
    fields: dict[str, Any] = to_fields(point)
    return fields | {"expires_s": point.expires_s}


def result_fields(result: Result) -> dict[str, Any]:
    """A result's JSON object."""
    fields: dict[str, Any] = to_fields(result)
    # to_fields leaves out what is at its default; these have none on the wire.
    return fields | {"final": result.final, "state": result.state}


def result_of(fields: Mapping[str, Any]) -> Result:
    """A result from its JSON object; fields of newer writers are left out.

    Raises:
        KeyError, TypeError, ValueError: a field is missing or wrong.
    """
    known = {name: value for name, value in fields.items() if name in _RESULT_NAMES}
    files = tuple(
        ResultFile(
            role=str(item["role"]),
            name=str(item["name"]),
            size=int(item["size"]),
            sha256=str(item["sha256"]),
        )
        for item in known.pop("files", ())
    )
    attempt, lease = AttemptId(str(known.pop("attempt"))), LeaseId(str(known.pop("lease")))
    return Result(attempt=attempt, lease=lease, files=files, **known)
