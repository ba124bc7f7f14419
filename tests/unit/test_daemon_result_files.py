"""Names of the files that go out with results."""

from __future__ import annotations

import pytest

from harvester.daemon.deliver import result_file_name
from harvester.model import Attempt, AttemptId, AttemptState, FileRef, LeaseId, PointId, TaskId

ATTEMPT = Attempt(
    attempt=AttemptId("31.7.1.2"),
    lease=LeaseId("31.7.1"),
    task=TaskId("31"),
    point=PointId("7"),
    number=2,
    state=AttemptState.SUCCEEDED,
)
SPOOLED = FileRef("allocations/habcde-abcdef/1.0/files/31.7.1.2.metadata.json", 3, "0" * 64)


@pytest.mark.parametrize(
    ("role", "segment", "name"),
    [
        ("metrics", None, "31.metrics.000007.tgz"),
        ("metrics", "barrel", "barrel.31.metrics.000007.tgz"),
        ("metadata", "barrel", "31.7.1.2.metadata.json"),
    ],
)
def test_metrics_are_named_as_panda_names_them(role: str, segment: str | None, name: str) -> None:
    assert result_file_name(role, ATTEMPT, segment, SPOOLED) == name
