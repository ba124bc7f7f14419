"""Logs that we write: durable first, true second, and nothing lost between the two."""

from __future__ import annotations

from pathlib import Path

import pytest

from harvester.clock import FakeClock
from harvester.errors import StorageUnavailable
from harvester.spool.durable import DurableLog
from harvester.spool.ledger import Ledger, ledger_number, ledger_path, ledgers
from harvester.store.positions import Position
from payload_runner.files import AppendFile, RealFiles
from payload_runner.logfile import LogReader


class _StubbornFile:
    def __init__(self, inner: AppendFile, files: _StubbornFiles) -> None:
        self._inner = inner
        self._files = files

    def write(self, data: bytes) -> int:
        return self._inner.write(data)

    def sync(self) -> None:
        if self._files.full:
            raise OSError(122, "Disk quota exceeded")
        self._inner.sync()

    def close(self) -> None:
        self._inner.close()


class _StubbornFiles(RealFiles):
    full = False

    def create_log(self, path: Path) -> AppendFile:
        return _StubbornFile(super().create_log(path), self)


def test_a_commit_answers_what_has_become_durable(tmp_path: Path) -> None:
    log = DurableLog(RealFiles(), tmp_path / "log", FakeClock(10.0))
    log.append("a", {"x": 1})
    log.append("b", {})
    done = log.commit()
    assert [(r.seq, r.kind, r.at, r.fields) for r in done] == [
        (1, "a", 10.0, {"x": 1}),
        (2, "b", 10.0, {}),
    ]
    assert log.size == (tmp_path / "log").stat().st_size
    assert log.commit() == ()


@pytest.mark.fault("disk full at the login node")
def test_what_a_full_disk_refused_is_answered_by_the_next_commit(tmp_path: Path) -> None:
    files = _StubbornFiles()
    log = DurableLog(files, tmp_path / "log", FakeClock())
    log.append("a", {})
    files.full = True
    with pytest.raises(StorageUnavailable, match="quota"):
        log.commit()
    log.append("b", {})
    files.full = False
    assert [record.kind for record in log.commit()] == ["a", "b"]


def test_the_record_in_memory_is_the_record_on_disk(tmp_path: Path) -> None:
    log = DurableLog(RealFiles(), tmp_path / "log", FakeClock(1234.56789012))
    log.append("a", {"x": [1, {"y": None}]})
    (kept,) = log.commit()
    (read,) = LogReader(RealFiles(), tmp_path / "log", FakeClock().monotonic).poll().records
    assert (kept.seq, kept.kind, kept.at, kept.fields) == (
        read.seq,
        read.kind,
        read.at,
        read.fields,
    )


def test_an_epochs_ledger_is_continued_and_its_numbers_go_on(tmp_path: Path) -> None:
    for run in range(2):
        path = ledger_path(tmp_path, 3)
        size = path.stat().st_size if path.exists() else 0
        position = Position(offset=size, max_seq=2 * run)
        ledger = make_ledger(RealFiles(), tmp_path, position)
        ledger.append("run", {"run": run})
        if run:
            ledger.append("run", {"run": run})
        ledger.commit()
        ledger.close()
    reader = LogReader(RealFiles(), ledger_path(tmp_path, 3), FakeClock().monotonic)
    kinds = [(record.seq, record.kind) for record in reader.poll().records]
    assert kinds == [(1, "open"), (2, "run"), (3, "run"), (4, "run")]


def make_ledger(
    files: RealFiles,
    state_dir: Path,
    position: Position | None = None,
    *,
    roll_bytes: int = 1 << 20,
) -> Ledger:
    return Ledger(
        files,
        state_dir,
        FakeClock(),
        epoch=3,
        spool_id="abc",
        by="me",
        position_of=lambda name: position or Position(),
        roll_bytes=roll_bytes,
    )


def records_of(path: Path) -> list[tuple[int, str, dict[str, object]]]:
    reader = LogReader(RealFiles(), path, FakeClock().monotonic)
    return [(record.seq, record.kind, record.fields) for record in reader.poll().records]


def test_ledgers_are_found_in_the_order_in_which_they_were_written(tmp_path: Path) -> None:
    names = ("ledger.10.log", "ledger.9.10.log", "ledger.9.2.log", "ledger.9.log")
    for name in (*names, "ledger.x.log", "state.json", "ledger.9.2.log.part"):
        (tmp_path / name).touch()
    found = ledgers(RealFiles(), tmp_path)
    assert [path.name for path in found] == [*reversed(names)]
    assert [ledger_number(path) for path in found] == [(9, 1), (9, 2), (9, 10), (10, 1)]


def test_a_large_ledger_goes_on_in_another_file_that_its_last_record_names(tmp_path: Path) -> None:
    ledger = make_ledger(RealFiles(), tmp_path, roll_bytes=200)
    assert ledger.roll() is None
    ledger.append("fill", {"with": "x" * 200})
    assert ledger.roll() is None  # first what is buffered
    ledger.commit()
    rolled = ledger.roll()
    assert rolled is not None
    name, last, size = rolled
    assert name == "ledger.3.log"
    assert [record.kind for record in last] == ["continued"]
    assert size == (tmp_path / name).stat().st_size
    assert ledger.name == "ledger.3.2.log"
    ledger.append("run", {})
    ledger.close()
    first, second = (records_of(path) for path in ledgers(RealFiles(), tmp_path))
    assert first[-1] == (3, "continued", {"next": "ledger.3.2.log"})
    assert [(seq, kind) for seq, kind, _ in second] == [(1, "open"), (2, "run")]


def test_a_disk_that_refuses_the_last_record_of_a_ledger_only_delays_the_next(
    tmp_path: Path,
) -> None:
    files = _StubbornFiles()
    ledger = make_ledger(files, tmp_path, roll_bytes=100)
    ledger.append("fill", {"with": "x" * 200})
    ledger.commit()
    files.full = True
    with pytest.raises(StorageUnavailable):
        ledger.roll()
    assert ledger.name == "ledger.3.log"
    ledger.append("more", {})
    files.full = False
    assert [record.kind for record in ledger.commit()] == ["continued", "more"]
    rolled = ledger.roll()
    assert rolled is not None
    assert rolled[1] == ()
    assert ledger.name == "ledger.3.2.log"


def test_a_ledger_that_was_made_and_not_begun_is_begun_by_the_next_run(tmp_path: Path) -> None:
    for part in (1, 2):
        ledger_path(tmp_path, 3, part).touch()
    ledger = make_ledger(RealFiles(), tmp_path)
    ledger.append("run", {})
    ledger.close()
    kinds = [kind for _, kind, _ in records_of(tmp_path / "ledger.3.2.log")]
    assert kinds == ["open", "run"]
