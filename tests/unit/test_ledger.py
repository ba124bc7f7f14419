"""Logs that we write: durable first, true second, and nothing lost between the two."""

from __future__ import annotations

from pathlib import Path

import pytest

from harvester.clock import FakeClock
from harvester.errors import StorageUnavailable
from harvester.spool.durable import DurableLog
from harvester.spool.ledger import ledger_epochs, ledger_path, open_ledger
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
        ledger = open_ledger(
            RealFiles(),
            tmp_path,
            FakeClock(),
            epoch=3,
            spool_id="abc",
            by="me",
            position=Position(offset=size, max_seq=2 * run),
        )
        ledger.append("run", {"run": run})
        if run:
            ledger.append("run", {"run": run})
        ledger.commit()
        ledger.close()
    reader = LogReader(RealFiles(), ledger_path(tmp_path, 3), FakeClock().monotonic)
    kinds = [(record.seq, record.kind) for record in reader.poll().records]
    assert kinds == [(1, "open"), (2, "run"), (3, "run"), (4, "run")]


def test_ledgers_are_found_in_the_order_of_their_epochs(tmp_path: Path) -> None:
    for name in ("ledger.10.log", "ledger.9.log", "ledger.x.log", "state.json"):
        (tmp_path / name).touch()
    assert ledger_epochs(RealFiles(), tmp_path) == (9, 10)
