"""File transport on a disk that is full: nobody dies of saying goodbye."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from harvester.clock import FakeClock
from harvester.simulation.memory_files import SharedDisk
from payload_runner.filelink import FileLink, FilePort
from payload_runner.protocol import IncarnationPaths

SECRET = b"s"


@pytest.mark.fault("disk full on a node")
def test_leader_and_agent_part_although_nothing_can_be_written() -> None:
    clock = FakeClock()
    disk = SharedDisk(clock.monotonic)
    paths = IncarnationPaths(Path("/spool/a/1.0"))
    leader, node = disk.host("leader"), disk.host("node")
    leader.make_dir(paths.root)
    port = FilePort(paths, SECRET, 1, clock.monotonic, local=False, files=leader)
    link = FileLink(paths, SECRET, 0, "ab", clock.monotonic, local=False, files=node)
    link.send("hello", {})
    link.flush()
    clock.advance(3.0)
    assert [kind for _, (kind, _) in port.receive()] == ["hello"]

    def full(operation: str, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    disk.fault = full
    port.send(0, "leave", {})

    port.close()
    link.close()
