"""A process that was killed and never reaped (a zombie) is dead to whoever asks."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harvester.central.tasks import discover
from harvester.clock import iso
from harvester.errors import NotFound
from harvester.lease import Holder, is_provably_dead
from harvester.processes import is_running, process_identity
from harvester.views.site_states import Health, read_state
from tests.support import wait_until


@pytest.fixture
def child() -> Iterator[tuple[int, str]]:
    """Pid and identity of a process that dies of our signal and is reaped only afterwards."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        os.read(reader, 1)  # to the end of the test, or of us
        os._exit(0)
    os.close(reader)
    try:
        yield pid, process_identity(pid) or ""
    finally:
        os.close(writer)
        os.waitpid(pid, 0)


def end_unreaped(pid: int) -> None:
    os.kill(pid, 9)
    stat = Path(f"/proc/{pid}/stat")
    wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z")


def test_a_zombie_is_not_running_and_has_no_identity(child: tuple[int, str]) -> None:
    pid, identity = child
    assert is_running(pid)
    assert identity
    end_unreaped(pid)
    assert not is_running(pid)
    assert process_identity(pid) is None


def test_the_lease_of_a_zombie_is_free(child: tuple[int, str]) -> None:
    pid, identity = child
    holder = Holder(1, 0, 1, "s", socket.gethostname(), pid, identity, "2026-01-01T00:00:00Z")
    assert not is_provably_dead(holder)
    end_unreaped(pid)
    assert is_provably_dead(holder)


def test_a_site_whose_daemon_is_a_zombie_has_died(child: tuple[int, str], tmp_path: Path) -> None:
    pid, _ = child
    status = {"state": "running", "host": os.uname().nodename, "pid": pid}
    (tmp_path / "status.json").write_text(json.dumps({**status, "updated": iso(time.time())}))
    assert read_state("here", tmp_path).health is Health.ALIVE
    end_unreaped(pid)
    assert read_state("here", tmp_path).health is Health.DIED


def test_a_service_that_is_a_zombie_is_not_offered(child: tuple[int, str], tmp_path: Path) -> None:
    pid, _ = child
    found = {"url": "http://127.0.0.1:5", "token_file": "/t", "pid": pid}
    known = {**found, "host": socket.gethostname()}
    (tmp_path / "central.json").write_text(json.dumps(known))
    assert discover(None, {}, tmp_path)[0] == "http://127.0.0.1:5"
    end_unreaped(pid)
    with pytest.raises(NotFound, match="does not run any more"):
        discover(None, {}, tmp_path)
