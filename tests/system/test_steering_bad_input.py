"""Every wrong request gets a status and one clear sentence, and changes nothing."""

from __future__ import annotations

import http.client
import json
import logging
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.central_service import SPACE, RunningService, document, running_service, sha256


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with running_service(tmp_path_factory.mktemp("service")) as found:
        yield found


def _send(
    service: RunningService,
    method: str,
    path: str,
    body: Any = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, Any]:
    """One raw request; a body that is not bytes is sent as JSON."""
    parts = urlsplit(service.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 0, timeout=60)
    token = service.token_file().read_text()
    sent = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    try:
        connection.request(method, path, data, sent | (headers or {}))
        response = connection.getresponse()
        content = response.read()
        return response.status, json.loads(content) if content else None
    finally:
        connection.close()


def _sentence(answer: Any) -> str:
    error = answer["error"]
    assert set(error) >= {"field", "value", "message"}
    return f"{error['field']}: {error['message']}"


LEASE = {"key": "k", "harvester": "h", "site": "s", "points": 1}
RESULT = {"attempt": "1.1.1.1", "lease": "1.1.1", "state": "succeeded", "final": True, "loss": 1.0}


@pytest.mark.fault("request wrong or too large")
@pytest.mark.parametrize(
    ("path", "body", "status", "sentence"),
    [
        ("/leases", b"", 400, "body: the body is not JSON"),
        ("/leases", b"{", 400, "body: the body is not JSON"),
        ("/leases", b'{"points": NaN}', 400, "finite numbers only"),
        ("/leases", b'{"points": -Infinity}', 400, "finite numbers only"),
        ("/leases", b'{"points": 1e999}', 400, "finite numbers only"),
        ("/leases", b'{"points": ' + b"9" * 5000 + b"}", 400, "the body is not JSON"),
        ("/leases", b"[" * 60_000, 400, "nested more than 64 levels"),
        ("/leases", b"[" * 100 + b"]" * 100, 400, "nested more than 64 levels"),
        ("/leases", b'"\xff\xfe"', 400, "the body is not JSON"),
        ("/leases", b'{"key": "\\u0000"}', 400, "NUL"),
        ("/leases", b'{"key": "\\ud800"}', 400, "half a surrogate pair"),
        ("/leases", [], 422, "valid dictionary"),
        ("/leases", {**LEASE, "points": "1"}, 422, "points: input should be a valid integer"),
        ("/leases", {**LEASE, "points": True}, 422, "points: input should be a valid integer"),
        ("/leases", {**LEASE, "points": -1}, 422, "points: input should be greater than or equal"),
        ("/leases", {**LEASE, "points": 10**9}, 422, "points: input should be less than"),
        ("/leases", {"key": "k"}, 422, "harvester: is missing"),
        ("/leases", {**LEASE, "key": "k" * 1000}, 422, "key: string should have at most 200"),
        ("/leases", {**LEASE, "known_payloads": [1]}, 422, "known_payloads[0]: input should be"),
        ("/leases/renew", {"harvester": "h", "leases": "1.1.1"}, 422, "leases: input should be"),
        ("/results", {"harvester": "h", "results": [RESULT, {}]}, 422, "results[1].attempt: is mi"),
        (
            "/results",
            {"harvester": "h", "results": [{**RESULT, "loss": "nan"}]},
            422,
            "results[0].loss: input should be a valid number",
        ),
        ("/results", {"harvester": "h", "results": [RESULT] * 1001}, 422, "at most 1000 items"),
        (
            "/reports",
            {"harvester": "h", "reports": [{"lease": "1.1.1", "attempt": "a", "values": [{}]}]},
            422,
            "reports[0].values[0].step: is missing",
        ),
        ("/tasks", {"name": "x"}, 422, "config: expected an object"),
        ("/tasks", document(config_maxPoint=3), 422, "did you mean 'maxPoints'?"),
        ("/tasks", document(search_space={}), 422, "search_space: expected an object"),
        (
            "/tasks",
            document(config_evaluationExec='sh "x'),
            422,
            'evaluationExec: is no command that a shell can parse: line 1, column 4: the quote "',
        ),
        ("/tasks", document(search_space={"a\nb": SPACE["x"]}), 422, "1 to 200 printable"),
        (
            "/tasks",
            document(search_space={"x": {"method": "unifrom"}}),
            422,
            "search_space.x.method",
        ),
        ("/tasks", document(payload={"gpus_per_node": "all"}), 422, "payload.gpus_per_node"),
        ("/tasks/1/explode", {}, 422, "action: input should be 'pause'"),
        ("/tasks/77/kill", {}, 404, "there is no task '77'"),
        ("/nothing", {}, 404, "POST /api/v1/nothing: Not Found"),
        ("/ping", {}, 405, "Method Not Allowed"),
    ],
)
def test_a_wrong_body_gets_one_clear_sentence(
    service: RunningService, path: str, body: Any, status: int, sentence: str
) -> None:
    found, answer = _send(service, "POST", f"/api/v1{path}", body)
    assert found == status, answer
    assert sentence in _sentence(answer)


@pytest.mark.fault("request wrong or too large")
@pytest.mark.parametrize(
    ("path", "status", "sentence"),
    [
        ("/tasks?state=asleep", 422, "state: input should be 'running'"),
        ("/tasks/1e3", 404, "there is no task '1e3'"),
        ("/tasks/" + "9" * 400, 404, "there is no task"),
        ("/tasks/%00", 404, "there is no task"),
        ("/tasks/1/points?limit=0", 422, "limit: input should be greater"),
        ("/tasks/1/points?offset=-1", 422, "offset: input should be greater"),
        ("/changes?since=99999999999999999999", 422, "since: input should be less"),
        ("/changes?wait_s=nan", 422, "wait_s: "),
        ("/files/../../etc/passwd", 404, "Not Found"),
        ("/files/nothex", 422, "sha256: expected a SHA-256"),
        ("/files/" + "0" * 64, 404, "there is no file"),
    ],
)
def test_a_wrong_query_gets_one_clear_sentence(
    service: RunningService, path: str, status: int, sentence: str
) -> None:
    found, answer = _send(service, "GET", f"/api/v1{path}")
    assert found == status, answer
    assert sentence in _sentence(answer)


@pytest.mark.fault("token wrong, expired or unsafe")
@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer rubbish", "Bearer a.b.c", "Basic YTpi", "Bearer \xe9"],
)
def test_nobody_gets_in_without_a_good_token(service: RunningService, header: str) -> None:
    for path in ("/api/v1/ping", "/api/v1/tasks", "/nothing", "/docs"):
        status, answer = _send(service, "GET", path, headers={"Authorization": header})
        assert status == 401
        assert "token" in _sentence(answer)


@pytest.mark.fault("request wrong or too large")
def test_a_body_is_not_read_beyond_its_limit(service: RunningService) -> None:
    status, answer = _send(service, "POST", "/api/v1/results", b" " * 10_000_001)
    assert (status, "larger than 10000000" in _sentence(answer)) == (413, True)


@pytest.mark.fault("request wrong or too large")
def test_a_body_of_unknown_length_is_bounded_too(service: RunningService) -> None:
    chunks = (b" " * 1_000_000 for _ in range(11))
    parts = urlsplit(service.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 0, timeout=60)
    token = service.token_file().read_text()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    try:
        connection.request("POST", "/api/v1/results", chunks, headers, encode_chunked=True)
        response = connection.getresponse()
        assert (response.status, "larger" in _sentence(json.load(response))) == (413, True)
    finally:
        connection.close()


def test_a_chunk_that_does_not_follow_says_how_much_is_there(service: RunningService) -> None:
    path = f"/api/v1/files/{sha256(b'abcdef')}"
    octets = {"Content-Type": "application/octet-stream"}
    assert _send(service, "PUT", f"{path}?offset=0&size=6", b"abc", octets)[0] == 200
    status, answer = _send(service, "PUT", f"{path}?offset=5&size=6", b"f", octets)
    assert (status, answer["have"]) == (409, 3)
    status, answer = _send(service, "PUT", f"{path}?offset=3&size=6", b"defghi", octets)
    assert (status, "at most 3 more bytes" in _sentence(answer)) == (422, True)
    status, answer = _send(service, "PUT", f"{path}?offset=0&size=9999999999", b"", octets)
    assert status == 422


def test_several_problems_are_told_at_once(service: RunningService) -> None:
    body = document(config_maxPoints=0, config_nParallelEvaluation=0)
    status, answer = _send(service, "POST", "/api/v1/tasks", body)
    fields = [item["field"] for item in answer["error"]["problems"]]
    assert (status, set(fields)) == (422, {"maxPoints", "nParallelEvaluation"})


def test_a_mistake_of_ours_shows_no_traceback(
    service: RunningService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr("harvester.steering.tasks.summaries", fail)
    with caplog.at_level(logging.ERROR):
        status, answer = _send(service, "GET", "/api/v1/tasks")
    assert status == 500
    assert "secret" not in json.dumps(answer)
    assert "ZeroDivisionError" in caplog.text


def test_the_published_interface_needs_no_token_and_names_every_call(
    service: RunningService,
) -> None:
    status, answer = _send(
        service, "GET", "/api/v1/openapi.json", headers={"Authorization": "none"}
    )
    assert status == 200
    wanted = {"/api/v1/leases", "/api/v1/results", "/api/v1/files/{sha256}", "/api/v1/tasks/{task}"}
    assert wanted <= set(answer["paths"])
    assert "ResultBody" in answer["components"]["schemas"]
