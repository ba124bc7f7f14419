"""The service as a process: what it writes, whom it refuses, how it ends."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from harvester.central.tasks import TaskClient, discover
from harvester.errors import ConfigurationError, CredentialsRefused, Refused
from harvester.steering.database import parse_database_url
from harvester.steering.serve import serve
from tests.central_service import document
from tests.support import wait_until

# Half of what a client waits for changes; on a machine with nothing else to do it is under 1 s.
ENDED_WITHIN_S = 15.0
_SERVE = """
import sys
from pathlib import Path
from harvester.steering.serve import serve
home, *tls = map(Path, sys.argv[1:])
serve(state_home=home, tls_cert=tls[0] if tls else None, tls_key=tls[1] if tls else None)
"""


@contextmanager
def _process(home: Path, *tls: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVE, str(home), *map(str, tls)],
        preexec_fn=lambda: os.umask(0),
    )
    try:
        wait_until((home / "central.json").exists, timeout=60)
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_service_says_where_it_is_and_ends_when_told(tmp_path: Path) -> None:
    home = tmp_path / "state"
    with _process(home) as process:
        found = json.loads((home / "central.json").read_text())
        url, token_file = discover(None, {}, home)
        client = TaskClient(url, token_file)
        assert client.ping()["service"] == "edge-harvester"
        task = client.submit(document(sampler={"name": "auto", "options": {}}), {}).task
        assert found["pid"] == process.pid
        modes = {path.name: path.stat().st_mode & 0o777 for path in home.iterdir()}
        assert modes.pop("central.db.files") == 0o700
        assert set(modes.values()) == {0o600}
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert process.wait(timeout=60) == 0
        assert time.monotonic() - began < ENDED_WITHIN_S
        assert not (home / "central.json").exists()
    with _process(home):
        url, token_file = discover(None, {}, home)
        assert TaskClient(url, token_file).show(task)["state"] == "running"


def test_a_client_that_waits_for_changes_does_not_hold_up_the_end(tmp_path: Path) -> None:
    home = tmp_path / "state"
    with _process(home) as process:
        url, token_file = discover(None, {}, home)
        parts = urlsplit(url)
        waiting = http.client.HTTPConnection(parts.hostname or "", parts.port or 0, timeout=60)
        headers = {"Authorization": f"Bearer {token_file.read_text().strip()}"}
        waiting.request("GET", "/api/v1/changes?wait_s=30", headers=headers)
        # The service takes connections in turn: when this is answered, the other one waits.
        TaskClient(url, token_file).ping()
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        assert process.wait(timeout=60) == 0
        assert time.monotonic() - began < ENDED_WITHIN_S
        assert json.load(waiting.getresponse()) == {"changes": [], "next": 0}
        waiting.close()


def test_tls_is_checked_against_the_authority_that_is_named(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: no certificate can be made")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1")
    made = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject)
    subprocess.run(
        [*made, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True
    )
    home = tmp_path / "state"
    with _process(home, certificate, key):
        url, token_file = discover(None, {}, home)
        assert url.startswith("https://127.0.0.1:")
        assert TaskClient(url, token_file, ca_file=certificate).ping()["protocol"] == 1
        with pytest.raises(CredentialsRefused, match=r"certificate .* is not trusted"):
            TaskClient(url, token_file).ping()


def test_a_second_service_is_refused_with_the_name_of_the_first(tmp_path: Path) -> None:
    home = tmp_path / "state"
    with _process(home) as process, pytest.raises(Refused, match=f"process {process.pid}, http"):
        serve(state_home=home)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1"])
def test_plain_http_is_for_the_loopback_only(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigurationError, match="tokens would travel in the clear"):
        serve(host=host, state_home=tmp_path)


def test_a_certificate_needs_its_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--tls-key"):
        serve(tls_cert=tmp_path / "cert.pem", state_home=tmp_path)
    with pytest.raises(ConfigurationError, match="expected a readable PEM file"):
        serve(tls_cert=tmp_path / "c", tls_key=tmp_path / "k", state_home=tmp_path)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("mysql://user:secret@host/db", "expected sqlite:///PATH or postgresql"),
        ("sqlite://", "expected a file"),
        ("sqlite:///:memory:", "expected a file"),
        ("sqlite:////tmp/a\0b", "expected a file"),
        ("://", "is not a database URL"),
        ("postgresql://u:secret@host:port/db", "is not a database URL"),
        ("postgresql://u:secret@[::1/db", "is not a database URL"),
    ],
)
def test_a_database_that_cannot_be_used_is_refused(
    tmp_path: Path, value: str, sentence: str
) -> None:
    with pytest.raises(ConfigurationError, match=sentence) as raised:
        parse_database_url(value, tmp_path / "central.db")
    assert "secret" not in str(raised.value)


def _foreign(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE tasks (chapter)")
        database.commit()


def _damaged(path: Path) -> None:
    _foreign(path)
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"rubbish " * 50)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: path.write_text("My thesis"), "is no SQLite database"),
        (lambda path: path.write_text("SQLite format 3\0 and nothing else"), "is damaged"),
        (_damaged, "is damaged"),
        (_foreign, "is the database of another program"),
        (os.mkfifo, "is no regular file"),
    ],
)
def test_a_file_that_is_no_sound_database_is_refused(
    tmp_path: Path, make: Callable[[Path], object], sentence: str
) -> None:
    file = tmp_path / "x.db"
    make(file)
    file.chmod(0o644)
    with pytest.raises(ConfigurationError, match=sentence) as raised:
        serve(f"sqlite:///{file}", state_home=tmp_path / "state")
    assert str(file) in str(raised.value)
    if sentence in ("is no SQLite database", "is no regular file"):
        assert file.stat().st_mode & 0o777 == 0o644
