"""File transport: how soon it looks after what, and what a stalled file system does to it."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path

import pytest

from harvester.clock import FakeClock
from harvester.simulation.memory_files import SharedDisk
from payload_runner.filelink import FileLink, FilePort
from payload_runner.protocol import IncarnationPaths
from payload_runner.transport import LinkLost

SECRET = b"s"


@dataclass
class Pair:
    """A leader and an agent on two hosts of one shared disk."""

    clock: FakeClock
    disk: SharedDisk
    port: FilePort
    link: FileLink

    def passes(self, seconds: float) -> None:
        """Both do what is due, for so long."""
        until = self.clock.monotonic() + seconds
        while self.clock.monotonic() < until:
            self.clock.advance(0.25)
            self.port.receive()
            self.port.flush()
            self.link.receive()
            self.link.flush()


@pytest.fixture
def pair() -> Pair:
    clock = FakeClock()
    disk = SharedDisk(clock.monotonic)
    paths = IncarnationPaths(Path("/spool/a/1.0"))
    leader, node = disk.host("leader"), disk.host("node")
    leader.make_dir(paths.root)
    port = FilePort(paths, SECRET, 1, clock.monotonic, local=False, files=leader)
    link = FileLink(paths, SECRET, 0, "ab", clock.monotonic, local=False, files=node)
    made = Pair(clock, disk, port, link)
    link.send("hello", {})
    made.passes(5.0)
    return made


def test_an_agent_looks_soon_after_it_told_an_end(pair: Pair) -> None:
    pair.passes(9.0)  # no sign of life is due yet
    waits = []
    for _ in range(20):
        pair.passes(0.25)
        waits.append(pair.link.wait_s() or 0.0)
    assert max(waits) > 1.0
    pair.link.send("attempt_ended", {"attempt": "1.1.1.1"})
    assert (pair.link.wait_s() or 0.0) <= 0.25


@pytest.mark.fault("shared file system stalled")
def test_nobody_is_lost_while_the_file_system_stalls_for_a_minute(pair: Pair) -> None:
    def stalled(operation: str, path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    sound, pair.disk.fault = pair.disk.fault, stalled
    pair.passes(60.0)
    pair.link.send("attempt_ended", {"attempt": "1.1.1.1"})
    pair.passes(10.0)
    assert pair.port.lost() == []
    pair.disk.fault = sound
    until = pair.clock.monotonic() + 10.0
    got: list[str] = []
    while not got and pair.clock.monotonic() < until:
        pair.clock.advance(0.25)
        pair.link.flush()
        got = [kind for _, (kind, _) in pair.port.receive()]
    assert got == ["attempt_ended"]


@pytest.mark.fault("leader killed")
def test_an_agent_whose_leader_stays_silent_gives_up_after_three_minutes(pair: Pair) -> None:
    pair.clock.advance(170.0)
    assert pair.link.receive() == []
    pair.clock.advance(20.0)
    with pytest.raises(LinkLost, match="no word from the leader"):
        pair.link.receive()
