"""``harvester run`` as a process: signals, a second instance, one round, recovery. No service."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from harvester.config import load_site
from harvester.errors import StorageUnavailable
from harvester.wiring import make_daemon
from tests.published import validate
from tests.support import wait_until


@pytest.fixture
def environ(tmp_path: Path) -> Mapping[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    places = {
        f"XDG_{name}_HOME": str(tmp_path / name.lower()) for name in ("STATE", "CONFIG", "CACHE")
    }
    return {**kept, **places, "LC_ALL": "C.UTF-8"}


def call(environ: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "harvester", *arguments)
    return subprocess.run(
        command, env=environ, capture_output=True, text=True, timeout=60, check=False
    )


def state(environ: Mapping[str, str]) -> dict[str, Any]:
    printed = json.loads(call(environ, "status", "--json").stdout)
    validate(printed, "sites.schema.json")
    found = printed["sites"]
    return dict(found[0]) if found else {"health": "none", "status": None}


Running = Callable[..., AbstractContextManager[subprocess.Popen[str]]]


@pytest.fixture
def running(environ: Mapping[str, str], tmp_path: Path) -> Running:
    """Starts ``harvester run`` and waits until it drives; kills what is left at the end."""

    @contextmanager
    def start(*arguments: str, **more: str) -> Iterator[subprocess.Popen[str]]:
        status = tmp_path / "state/harvester/sites/local/spool/status.json"
        status.unlink(missing_ok=True)
        command = (sys.executable, "-m", "harvester", "run", *arguments)
        process = subprocess.Popen(
            command, env={**environ, **more}, stderr=subprocess.PIPE, text=True
        )
        try:
            wait_until(lambda: status.exists() or process.poll() is not None, 60)
            assert process.poll() is None
            yield process
        finally:
            process.kill()
            process.communicate()

    return start


def leave(process: subprocess.Popen[str], how: signal.Signals) -> str:
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return errors


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_daemon_asked_to_end_leaves_in_order(
    environ: Mapping[str, str], running: Running, how: signal.Signals
) -> None:
    with running() as process:
        assert state(environ)["health"] == "alive"
        errors = leave(process, how)
    assert "Traceback" not in errors
    found = state(environ)
    assert found["health"] == "stopped"
    assert found["status"]["state"] == "stopped"


@pytest.mark.fault("two daemons")
def test_second_instance_is_refused_at_once_with_the_first_ones_name(
    environ: Mapping[str, str], running: Running
) -> None:
    with running() as process:
        for arguments in (["run"], ["run", "--once"]):
            done = call(environ, *arguments)
            assert done.returncode == 75
            assert f"process {process.pid} on {os.uname().nodename} drives" in done.stderr


@pytest.mark.fault("daemon killed")
def test_killed_daemon_is_reported_dead_and_the_next_takes_over(
    environ: Mapping[str, str], running: Running
) -> None:
    with running() as process:
        process.kill()
        process.wait()
        assert state(environ)["health"] == "died"
        assert "DIED" in call(environ, "status").stdout
    assert call(environ, "run", "--once").returncode == 0
    assert state(environ)["health"] == "stopped"


def test_hangup_reads_the_site_file_anew_and_keeps_the_old_one_if_it_is_wrong(
    environ: Mapping[str, str], running: Running
) -> None:
    mine = Path(environ["XDG_CONFIG_HOME"]) / "harvester/sites/local.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("extends: local\n")

    def allowed() -> float:
        status = state(environ)["status"] or {"budgets": {"queries_allowed": 0}}
        return float(status["budgets"]["queries_allowed"])

    with running() as process:
        mine.write_text("extends: local\nbudgets: {queries_per_minute: 77}\n")
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: allowed() == 77, 60)
        mine.write_text("extends: local\nbudgets: {queries_per_minute: none}\n")
        process.send_signal(signal.SIGHUP)
        assert process.stderr is not None
        line = wait_until(lambda: next((x for x in process.stderr or () if "Keeps" in x), ""), 60)
        assert "local.yaml:2: budgets.queries_per_minute" in line
        leave(process, signal.SIGTERM)
    assert allowed() == 77


@pytest.mark.fault("token wrong, expired or unsafe")
def test_hangup_while_the_token_is_replaced_ends_nothing(
    environ: Mapping[str, str], running: Running, tmp_path: Path
) -> None:
    token, mine = tmp_path / "token", tmp_path / "config/harvester/sites/local.yaml"
    token.write_text("secret\n")
    token.chmod(0o600)
    mine.parent.mkdir(parents=True)
    central = f'central: {{url: "http://127.0.0.1:9", token_file: {token}}}'
    mine.write_text(f"extends: local\n{central}\n")

    def said(process: subprocess.Popen[str], word: str) -> str:
        assert process.stderr is not None
        return wait_until(lambda: next((x for x in process.stderr or () if word in x), ""), 60)

    with running() as process:
        token.unlink()
        process.send_signal(signal.SIGHUP)
        assert f"token file: got {token}" in said(process, "Keeps the old settings")
        assert "cannot read the token file" in said(process, "Trouble begins")
        mine.write_text('extends: local\ncentral: {url: "http://127.0.0.1:9"}\n')
        process.send_signal(signal.SIGHUP)
        assert "HARVESTER_TOKEN_FILE" in said(process, "Keeps the old settings")
        leave(process, signal.SIGTERM)


def test_service_manager_is_told_of_the_whole_life(running: Running, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
        address = str(tmp_path / "notify")
        link.bind(address)
        link.settimeout(20)
        with running(NOTIFY_SOCKET=address, WATCHDOG_USEC="600000") as process:
            heard = [link.recv(4096).decode() for _ in range(3)]
            assert heard[0].startswith("READY=1")
            assert heard[1:] == ["WATCHDOG=1"] * 2
            leave(process, signal.SIGTERM)
            link.setblocking(False)
            rest: list[str] = []
            while not rest or rest[-1] != "STOPPING=1":
                rest.append(link.recv(4096).decode())


@pytest.mark.fault("service away")
def test_single_round_without_a_service_is_no_failure(environ: Mapping[str, str]) -> None:
    done = call(environ, "run", "--once")
    assert done.returncode == 0
    assert "harvester central serve" in done.stderr
    assert "last round ended" in call(environ, "status").stdout


@pytest.mark.parametrize("text", ["[]", ""])
def test_damaged_name_of_the_state_directory_is_told_at_once(
    environ: Mapping[str, str], tmp_path: Path, text: str
) -> None:
    file = tmp_path / "state/harvester/sites/local/state.json"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    done = call(environ, "run", "--once")
    assert done.returncode == 78
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("harvester: ")]
    assert f"{file}: state_id: is damaged; remove it" in line
    file.unlink()
    assert call(environ, "run", "--once").returncode == 0


def test_single_round_without_a_spool_is_a_failure(
    environ: Mapping[str, str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"extends: local\nname: mine\nspool: {{path: {tmp_path}/file/spool}}\n")
    with pytest.raises(StorageUnavailable, match="Not a directory"):
        make_daemon(load_site(str(mine), environ)).run_once(0.2)


@pytest.mark.fault("index lost or damaged")
def test_recover_rebuilds_a_lost_index(environ: Mapping[str, str], tmp_path: Path) -> None:
    assert call(environ, "recover").returncode == 66
    assert call(environ, "run", "--once").returncode == 0
    index = tmp_path / "state/harvester/sites/local/index.sqlite"
    index.write_bytes(b"rubbish")
    done = call(environ, "recover", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"site": "local", "index": str(index), "attempts": {}}
    assert index.read_bytes().startswith(b"SQLite format 3")


def test_an_audit_of_a_task_that_was_never_here_says_so(environ: Mapping[str, str]) -> None:
    for _ in ("before the first run", "after it"):
        done = call(environ, "audit", "7", "--offline")
        assert done.returncode == 66, done.stderr
        assert "has no task 7" in done.stderr
        assert call(environ, "run", "--once").returncode == 0


def test_recover_is_refused_while_a_daemon_drives(
    environ: Mapping[str, str], running: Running
) -> None:
    with running() as process:
        done = call(environ, "recover")
        assert done.returncode == 75
        assert str(process.pid) in done.stderr
