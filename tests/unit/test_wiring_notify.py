"""What the service manager is told, and when."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from harvester.clock import FakeClock
from harvester.notify import ServiceManager


@pytest.fixture
def link(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.setblocking(False)
        yield listening


def received(link: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(link.recv(4096).decode())
        except BlockingIOError:
            return found


def manager(link: socket.socket, clock: FakeClock, **environ: str) -> ServiceManager:
    address = str(link.getsockname())
    return ServiceManager({"NOTIFY_SOCKET": address, **environ}, 42, clock.monotonic)


def test_life_of_a_service_is_told(link: socket.socket) -> None:
    service = manager(link, FakeClock())
    service.ready("Drives local")
    service.reloading()
    service.stopping()
    ready, reloading, stopping = received(link)
    assert ready == "READY=1\nSTATUS=Drives local"
    assert reloading.startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert stopping == "STOPPING=1"


def test_watchdog_is_fed_three_times_per_limit_however_often_asked(link: socket.socket) -> None:
    clock = FakeClock()
    service = manager(link, clock, WATCHDOG_USEC="30000000", WATCHDOG_PID="42")
    for _ in range(100):
        service.alive()
        clock.advance(0.5)
    assert received(link) == ["WATCHDOG=1"] * 5


@pytest.mark.parametrize("environ", [{}, {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}])
def test_watchdog_of_nobody_or_of_another_process_is_not_fed(
    link: socket.socket, environ: dict[str, str]
) -> None:
    manager(link, FakeClock(), **environ).alive()
    assert received(link) == []


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": "/nonexistent/socket"}])
def test_missing_service_manager_is_no_error(environ: dict[str, str]) -> None:
    ServiceManager(environ, 42, FakeClock().monotonic).ready("x")


def test_abstract_address_is_understood() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0harvester-test-notify")
        environ = {"NOTIFY_SOCKET": "@harvester-test-notify"}
        ServiceManager(environ, 42, FakeClock().monotonic).stopping()
        assert listening.recv(100) == b"STOPPING=1"
