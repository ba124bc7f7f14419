"""The client against servers that misbehave, and how it finds its service."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from harvester.central.http import Http, Rejected, encode
from harvester.central.native import NativeCentral
from harvester.central.port import LeaseRequest, Result
from harvester.central.tasks import TaskClient, discover
from harvester.errors import (
    CentralRefused,
    CentralUnavailable,
    ConfigurationError,
    CredentialsRefused,
    InputError,
    NotFound,
)
from harvester.model import AttemptId, LeaseId


@contextmanager
def _server(status: int, body: bytes, headers: dict[str, str] | None = None) -> Iterator[str]:
    """A server that always answers the same."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", "0")))
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = _answer

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("a.b.c\n")
    path.chmod(0o600)
    return path


def _error(message: str, field: str = "") -> bytes:
    return json.dumps({"error": {"field": field, "value": "", "message": message}}).encode()


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, b"not json", CentralUnavailable),
        (200, b"[]", CentralUnavailable),
        (200, b'{"points": 7}', CentralUnavailable),
        (200, b'{"points": [{"lease": "1.1.1"}]}', CentralUnavailable),
        (200, b'{"payloads": [{"payload_id": 1}]}', CentralUnavailable),
        (302, b"", CentralUnavailable),
        (500, _error("a mistake"), CentralUnavailable),
        (503, b"<html>busy</html>", CentralUnavailable),
        (408, _error("too slow"), CentralUnavailable),
        (429, _error("too many"), CentralUnavailable),
        (401, _error("expired"), CredentialsRefused),
        (403, _error("not yours"), CentralRefused),
        (404, _error("no such thing"), CentralRefused),
        (422, _error("is wrong", "points"), CentralRefused),
        # Not the service's own word: a gateway that is set up wrongly, for a while.
        (400, b"<html>plain HTTP request to an HTTPS port</html>", CentralUnavailable),
        (403, b"", CentralUnavailable),
        (404, b"<html>not found</html>", CentralUnavailable),
    ],
)
def test_every_answer_says_whether_to_try_again(
    token: Path, status: int, body: bytes, expected: type[Exception]
) -> None:
    with _server(status, body, {"Location": "http://127.0.0.1:1/"}) as url:
        central = NativeCentral(url, token, timeout_s=5)
        with pytest.raises(expected):
            central.lease(LeaseRequest(key="k", harvester="h", site="s", points=1))


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (403, _error("your token is for submitting"), CredentialsRefused),
        (404, _error("no such address"), CentralUnavailable),
        (404, b"<html>not found</html>", CentralUnavailable),
        (409, _error("not now"), CentralUnavailable),
    ],
)
def test_a_refusal_of_the_caller_is_none_of_the_results(
    token: Path, status: int, body: bytes, expected: type[Exception]
) -> None:
    """A result that is refused is told no more: its loss would be gone."""
    told = [
        Result(
            attempt=AttemptId(f"1.{n}.1.1"),
            lease=LeaseId(f"1.{n}.1"),
            state="succeeded",
            final=True,
            loss=0.5,
        )
        for n in (1, 2)
    ]
    with _server(status, body) as url, pytest.raises(expected):
        NativeCentral(url, token, timeout_s=5).deliver(told)


def test_an_upload_of_a_file_that_is_gone_says_so(token: Path, tmp_path: Path) -> None:
    with _server(404, b"") as url, pytest.raises(FileNotFoundError):
        NativeCentral(url, token, timeout_s=5).upload(tmp_path / "purged", "0" * 64, 10)


def test_an_upload_of_a_file_that_lost_its_end_is_given_up(token: Path, tmp_path: Path) -> None:
    """Tried for ever it would hold up every result behind it."""
    (tmp_path / "cut").write_bytes(b"12345")
    answer, headers = b'{"have": 5, "complete": false}', {"X-Have": "5"}
    with _server(200, answer, headers) as url, pytest.raises(FileNotFoundError, match="shorter"):
        NativeCentral(url, token, timeout_s=5).upload(tmp_path / "cut", "0" * 64, 10)


@pytest.mark.fault("service away")
def test_nobody_listening_is_unavailable(token: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(CentralUnavailable, match="does not answer"):
            NativeCentral(url, token, timeout_s=2).tasks()


@pytest.mark.fault("service away")
def test_a_server_that_never_answers_is_unavailable(token: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(CentralUnavailable, match="does not answer"):
            NativeCentral(url, token, timeout_s=0.2).tasks()


@pytest.mark.fault("service away")
def test_an_endless_answer_is_cut_off(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harvester.central.http.ANSWER_LIMIT_BYTES", 1000)
    with (
        _server(200, b" " * 100_000) as url,
        pytest.raises(CentralUnavailable, match="more than 1000 bytes"),
    ):
        NativeCentral(url, token, timeout_s=5).tasks()


def test_no_proxy_stands_between_us_and_the_loopback(
    token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with _server(200, b'{"tasks": []}') as url:
        assert NativeCentral(url, token, timeout_s=5).tasks() == []


@pytest.mark.fault("token wrong, expired or unsafe")
@pytest.mark.parametrize(
    ("content", "mode", "sentence"),
    [
        (b"a.b.c", 0o640, "is open to others"),
        (b"", 0o600, "does not hold a token"),
        (b"a\nX-Other: b", 0o600, "does not hold a token"),
        (b"\xff", 0o600, "cannot read the token file"),
    ],
)
def test_a_token_file_that_is_not_safe_is_refused(
    tmp_path: Path, content: bytes, mode: int, sentence: str
) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(CredentialsRefused, match=sentence):
        Http("http://127.0.0.1:1", path).call("GET", "/ping")


def test_a_missing_token_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CredentialsRefused, match="missing"):
        Http("http://127.0.0.1:1", tmp_path / "missing").call("GET", "/ping")


def test_people_are_told_of_problems_as_of_their_own_input(token: Path) -> None:
    with (
        _server(422, _error("expected at least 1", "maxPoints")) as url,
        pytest.raises(InputError, match="maxPoints: expected at least 1"),
    ):
        TaskClient(url, token).submit({}, {})
    with (
        _server(404, _error("there is no task '7'")) as url,
        pytest.raises(NotFound, match=r"^there is no task '7'$"),
    ):
        TaskClient(url, token).show("7")


def test_a_refusal_carries_its_status(token: Path) -> None:
    with _server(409, _error("too late")) as url, pytest.raises(Rejected) as raised:
        Http(url, token).call("POST", "/tasks/1/pause", body=b"{}")
    assert raised.value.status == 409


def test_numbers_that_are_not_finite_are_not_sent() -> None:
    with pytest.raises(CentralRefused, match="cannot be sent"):
        encode({"loss": float("nan")})


def test_text_that_no_database_keeps_is_replaced() -> None:
    sent = json.loads(encode({"a\0": ["x\0y", "\\u0000"]}))
    assert sent == {"a\ufffd": ["x\ufffdy", "\\u0000"]}


class TestDiscover:
    def test_the_service_of_the_state_directory_is_found(self, tmp_path: Path) -> None:
        self._write(tmp_path)
        assert discover(None, {}, tmp_path) == ("http://127.0.0.1:5", Path("/t"))

    def test_the_option_wins_over_the_environment(self, tmp_path: Path) -> None:
        environ = {"HARVESTER_CENTRAL": "http://b:1", "HARVESTER_TOKEN_FILE": "/mine"}
        assert discover("http://a:1", environ, tmp_path) == ("http://a:1", Path("/mine"))
        assert discover(None, environ, tmp_path) == ("http://b:1", Path("/mine"))

    def test_a_local_token_is_not_offered_to_another_service(self, tmp_path: Path) -> None:
        self._write(tmp_path)
        assert discover("http://127.0.0.1:5/", {}, tmp_path)[1] == Path("/t")
        with pytest.raises(ConfigurationError, match="HARVESTER_TOKEN_FILE"):
            discover("http://elsewhere:5", {}, tmp_path)

    def test_no_service_says_how_to_start_one(self, tmp_path: Path) -> None:
        with pytest.raises(NotFound, match="harvester central serve"):
            discover(None, {}, tmp_path)

    def test_a_service_that_died_is_not_offered(self, tmp_path: Path) -> None:
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        self._write(tmp_path, pid=child, host=socket.gethostname())
        with pytest.raises(NotFound, match="does not run any more"):
            discover(None, {}, tmp_path)

    @pytest.mark.parametrize("text", ["", "[]", '{"url": 7}', "\0"])
    def test_a_damaged_file_is_named(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "central.json").write_text(text)
        with pytest.raises(ConfigurationError, match=r"central\.json"):
            discover(None, {}, tmp_path)

    @pytest.mark.parametrize(
        "url",
        [
            "127.0.0.1:80",
            "ftp://x",
            "http://",
            "http://[::1",
            "http://[::1]x:1",
            "http://h:99999",
            "http://h:x",
            "http://a b/",
            "http://h\n/",
            "http://../",
            "http://" + "a" * 300,
        ],
    )
    def test_a_url_that_is_none_is_refused(self, tmp_path: Path, url: str) -> None:
        with pytest.raises(ConfigurationError, match="expected a URL"):
            discover(url, {}, tmp_path)

    @pytest.mark.parametrize(
        "url", ["http://[::1]:8080", "https://central.example.org/a", "http://h."]
    )
    def test_a_sound_url_is_taken(self, tmp_path: Path, url: str) -> None:
        assert discover(url, {"HARVESTER_TOKEN_FILE": "/t"}, tmp_path) == (url, Path("/t"))

    def _write(self, home: Path, **more: Any) -> None:
        found = {"url": "http://127.0.0.1:5", "token_file": "/t", **more}
        (home / "central.json").write_text(json.dumps(found))
