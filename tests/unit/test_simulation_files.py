"""The simulated shared disk: late names, late tails, lost tails; exact exclusive creation."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from harvester.clock import FakeClock
from harvester.simulation.memory_files import SharedDisk
from payload_runner.logfile import LogReader, LogWriter

HOME = Path("/spool")
LOG = HOME / "events.log"


def disk_with_home(clock: FakeClock, delay_s: float = 0.0) -> SharedDisk:
    disk = SharedDisk(clock.monotonic, delay_s)
    disk.host("login").make_dir(HOME)
    clock.advance(delay_s)
    return disk


def test_a_host_sees_its_own_changes_at_once_and_those_of_others_late() -> None:
    clock = FakeClock()
    disk = disk_with_home(clock, delay_s=30.0)
    login, node = disk.host("login"), disk.host("node")
    login.replace(HOME / "lease.json", b"one")
    assert login.read(HOME / "lease.json", 0, 10) == b"one"
    assert not node.exists(HOME / "lease.json")
    with pytest.raises(FileNotFoundError):
        node.read(HOME / "lease.json", 0, 10)
    clock.advance(30)
    login.replace(HOME / "lease.json", b"two")
    assert node.read(HOME / "lease.json", 0, 10) == b"one"
    assert node.listdir(HOME) == ("lease.json",)
    clock.advance(30)
    assert node.read(HOME / "lease.json", 0, 10) == b"two"


def test_a_log_grows_late_for_others() -> None:
    clock = FakeClock()
    disk = disk_with_home(clock, delay_s=10.0)
    writer = LogWriter(disk.host("node"), LOG, clock.now, clock.monotonic)
    reader = LogReader(disk.host("login"), LOG, clock.monotonic)
    for kind in ("first", "second"):
        writer.append(kind, {})
        writer.commit()
        clock.advance(6)
    assert [record.kind for record in reader.poll().records] == ["first"]
    clock.advance(6)
    assert [record.kind for record in reader.poll().records] == ["second"]


def test_a_dead_host_loses_what_it_had_not_synced() -> None:
    clock = FakeClock()
    disk = disk_with_home(clock)
    log = disk.host("node").create_log(LOG)
    log.write(b"kept")
    log.sync()
    log.write(b"lost")
    disk.lose_unsynced("node")
    assert disk.host("login").read(LOG, 0, 100) == b"kept"


def test_exclusive_creation_is_exact_however_late_names_show() -> None:
    disk = disk_with_home(FakeClock(), delay_s=1.0)
    disk.host("login").create_exclusive(HOME / "1", b"")
    with pytest.raises(FileExistsError):
        disk.host("node").create_exclusive(HOME / "1", b"")


def test_a_removed_name_can_be_created_again() -> None:
    disk = disk_with_home(FakeClock())
    login = disk.host("login")
    login.create_exclusive(HOME / "turn", b"")
    login.remove(HOME / "turn")
    assert login.listdir(HOME) == ()
    login.create_exclusive(HOME / "turn", b"")


def test_a_rename_moves_the_content_whole() -> None:
    disk = disk_with_home(FakeClock())
    login = disk.host("login")
    login.replace(HOME / "a.part", b"data")
    login.rename(HOME / "a.part", HOME / "a")
    assert (login.listdir(HOME), login.read(HOME / "a", 1, 2)) == (("a",), b"at")


def test_a_closed_log_is_gone_on_with_by_the_next_run() -> None:
    disk = disk_with_home(FakeClock())
    login = disk.host("login")
    login.create_log(LOG).write(b"one ")
    login.continue_log(LOG).write(b"two")
    assert login.read(LOG, 0, 100) == b"one two"


def test_faults_strike_changes_and_leave_reads_alone() -> None:
    disk = disk_with_home(FakeClock())
    login = disk.host("login")
    login.replace(HOME / "a", b"old")

    def full(operation: str, path: Path) -> None:
        raise OSError(errno.ENOSPC, operation, str(path))

    disk.fault = full
    with pytest.raises(OSError, match="replace"):
        login.replace(HOME / "a", b"new")
    assert login.read(HOME / "a", 0, 10) == b"old"


def test_nothing_is_created_in_a_directory_that_is_missing() -> None:
    disk = disk_with_home(FakeClock())
    with pytest.raises(FileNotFoundError):
        disk.host("login").create_log(Path("/elsewhere/log"))
