"""Bodies, queries and paths made up from the published interface: never a 5xx, always an answer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from tests.central_service import RunningService, running_service

# Of each call and kind: enough to find a route that trusts its input.
EXAMPLES = 4
ANSWERED_WITHIN_S = 60.0


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with running_service(tmp_path_factory.mktemp("central")) as running:
        running.submit()
        yield running


def test_no_request_that_the_interface_allows_or_forbids_is_a_mistake_of_ours(
    service: RunningService,
) -> None:
    schema = schemathesis.openapi.from_url(f"{service.url}/api/v1/openapi.json")
    authorization = {"Authorization": f"Bearer {service.token_file().read_text().strip()}"}
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in (
            schemathesis.GenerationMode.POSITIVE,
            schemathesis.GenerationMode.NEGATIVE,
        ):
            _try(operation, mode, authorization)


def _try(operation: Any, mode: Any, headers: dict[str, str]) -> None:
    cases = operation.as_strategy(generation_mode=mode)

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def send(case: Any) -> None:
        if "wait_s" in (case.query or {}):
            case.query["wait_s"] = 0
        answer = case.call(headers=headers, timeout=ANSWERED_WITHIN_S)
        assert answer.status_code < 500, (case.method, case.formatted_path, case.body)

    if mode is schemathesis.GenerationMode.POSITIVE:
        send()
        return
    with contextlib.suppress(Unsatisfiable):  # nothing about some calls can be wrong
        send()


@settings(max_examples=40, deadline=None, database=None, derandomize=True)
@given(data=st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_no_bytes_at_all_are_a_mistake_of_ours(service: RunningService, data: bytes) -> None:
    token = (service.home / "alice.admin.token").read_text().strip()
    for path in ("tasks", "leases", "results", "reports"):
        answer = requests.post(
            f"{service.url}/api/v1/{path}",
            data=data,
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
            timeout=ANSWERED_WITHIN_S,
        )
        assert answer.status_code < 500
