"""Following event logs: found when they appear, read once, never trusted to be there."""

from __future__ import annotations

from pathlib import Path

import pytest

from harvester.clock import FakeClock
from harvester.model import Tag
from harvester.spool.intake import POLL_MAX_S, EventLogs, read_until, writer_of
from payload_runner.files import RealFiles
from payload_runner.logfile import Batch, LogWriter
from payload_runner.protocol import IncarnationPaths, SpoolPaths

TAG = Tag("habcde-abcdef")


class Bench:
    """A spool with one allocation."""

    def __init__(self, root: Path, filesystem: str = "local") -> None:
        self.clock = FakeClock()
        self.spool = SpoolPaths(root)
        self.files = RealFiles()
        self.files.make_dir(self.spool.allocation(TAG).root)
        self.filesystem = filesystem
        self.logs = self.open({})

    def open(self, offsets: dict[str, int]) -> EventLogs:
        return EventLogs(
            self.files, self.spool, self.clock, filesystem=self.filesystem, offsets=offsets
        )

    def incarnation(self, restart: int = 0) -> IncarnationPaths:
        found = self.spool.allocation(TAG).incarnation("77", restart)
        self.files.make_dir(found.root)
        return found

    def writer(self, path: Path) -> LogWriter:
        return LogWriter(self.files, path, self.clock.now, self.clock.monotonic)

    def polled(self) -> list[tuple[str, list[int]]]:
        found = self.logs.poll([TAG])
        return [(item.log, [record.seq for record in item.batch.records]) for item in found]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def tell(log: LogWriter, *kinds: str) -> None:
    for kind in kinds:
        log.append(kind, {})
    log.commit()


def test_a_log_is_followed_from_when_it_appears(bench: Bench) -> None:
    assert bench.polled() == []
    log = bench.writer(bench.incarnation().events("0-a"))
    tell(log, "open", "x")
    name = "allocations/habcde-abcdef/77.0/events.0-a.log"
    assert bench.polled() == [(name, [1, 2])]
    assert bench.polled() == []
    tell(log, "y")
    assert bench.polled() == [(name, [3])]
    assert writer_of(name) == "0-a"


def test_a_second_incarnation_is_found_while_the_first_is_followed(bench: Bench) -> None:
    tell(bench.writer(bench.incarnation(0).events("0-a")), "open")
    bench.polled()
    tell(bench.writer(bench.incarnation(1).events("0-b")), "open")
    bench.clock.advance(60)
    assert [name.split("/")[2:] for name, _ in bench.polled()] == [["77.1", "events.0-b.log"]]


def test_an_expected_successor_is_found_at_the_next_poll(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "shared")
    tell(bench.writer(bench.incarnation(0).events("0-a")), "open")
    bench.polled()
    tell(bench.writer(bench.incarnation(1).events("0-b")), "open")
    bench.clock.advance(2)
    assert bench.logs.poll([TAG]) == []
    bench.clock.advance(2)
    (found,) = bench.logs.poll([TAG], {TAG})
    assert writer_of(found.log) == "0-b"


def test_after_a_restart_reading_goes_on_where_the_index_stands(bench: Bench) -> None:
    log = bench.writer(bench.incarnation().events("0-a"))
    tell(log, "open", "x")
    (item,) = bench.logs.poll([TAG])
    tell(log, "y")
    bench.logs = bench.open({item.log: item.batch.offset})
    assert bench.polled() == [(item.log, [3])]


def test_what_could_not_be_applied_is_read_again(bench: Bench) -> None:
    tell(bench.writer(bench.incarnation().events("0-a")), "open", "x")
    ((name, first),) = bench.polled()
    bench.logs.go_back(name, 0)
    assert bench.polled() == [(name, first)]


def test_other_files_of_the_allocation_are_left_alone(bench: Bench) -> None:
    home = bench.incarnation()
    for path in (home.secret, home.inbox(0, "a"), home.root / "events.log"):
        path.touch()
    assert bench.polled() == []


def test_polling_a_quiet_shared_file_system_slows_down(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "shared")
    log = bench.writer(bench.incarnation().events("0-a"))
    tell(log, "open")
    assert len(bench.polled()) == 1
    for _ in range(20):
        bench.clock.advance(POLL_MAX_S)
        bench.polled()
    assert bench.logs.due_in() == POLL_MAX_S
    tell(log, "x")
    bench.clock.advance(POLL_MAX_S - 1)
    assert bench.polled() == []
    bench.clock.advance(1)
    assert len(bench.polled()) == 1
    assert bench.logs.due_in() == 1.0


def test_the_kernel_tells_of_a_record_on_a_local_file_system(bench: Bench) -> None:
    import select

    log = bench.writer(bench.incarnation().events("0-a"))
    bench.polled()
    fileno = bench.logs.fileno()
    if fileno is None:
        pytest.skip("this kernel has no inotify")
    bench.logs.clear_changes()
    tell(log, "open")
    assert select.select([fileno], [], [], 5.0)[0] == [fileno]
    bench.logs.close()


def test_a_rebuild_reads_exactly_up_to_the_marker(bench: Bench) -> None:
    path = bench.incarnation().events("0-a")
    log = bench.writer(path)
    tell(log, "one", "two")
    end = log.size
    tell(log, "three")
    found: list[str] = []

    def apply(batch: Batch) -> None:
        found.extend(record.kind for record in batch.records)

    assert read_until(bench.files, path, offset=0, to=end, apply=apply) == end
    assert found == ["one", "two"]
    assert read_until(bench.files, path, offset=end, to=None, apply=apply) == log.size
    assert found == ["one", "two", "three"]


def test_a_rebuild_does_not_wait_for_rubbish(bench: Bench) -> None:
    path = bench.incarnation().events("0-a")
    tell(bench.writer(path), "one")
    path.write_bytes(b"\0" * 40 + b"\n" + path.read_bytes())
    found: list[Batch] = []
    read_until(bench.files, path, offset=0, to=None, apply=found.append)
    assert [record.kind for batch in found for record in batch.records] == ["one"]
    assert sum(len(batch.gaps) for batch in found) == 1
