"""The leader's event log: memory, resends, cutting, rolling, a file system that refuses."""

from __future__ import annotations

import errno
import time
from pathlib import Path

import pytest

from harvester.clock import FakeClock
from payload_runner.files import AppendFile, RealFiles
from payload_runner.journal import RETRY_S, Journal
from payload_runner.logfile import MAX_RECORD_BYTES, LogReader, Record
from payload_runner.protocol import IncarnationPaths, Opened


class FullDisk(RealFiles):
    """Files whose appends fail while ``full``."""

    def __init__(self) -> None:
        self.full = False
        self.full_of_names = False

    def create_log(self, path: Path) -> AppendFile:
        if self.full_of_names:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        real = super().create_log(path)
        outer = self

        class Log:
            def write(self, data: bytes) -> int:
                if outer.full:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return real.write(data)

            def sync(self) -> None:
                real.sync()

            def close(self) -> None:
                real.close()

        return Log()


class Desk:
    """A journal on a directory of its own."""

    def __init__(self, root: Path, roll_bytes: int = 2**26) -> None:
        self.clock = FakeClock()
        self.files = FullDisk()
        self.paths = IncarnationPaths(root)
        self.count = 0
        self.journal = Journal(
            self.files,
            self.paths,
            lambda writer: Opened(1, "t", "1.0", writer, "h", "0", "3"),
            self.name,
            self.clock.now,
            self.clock.monotonic,
            roll_bytes=roll_bytes,
        )

    def name(self) -> str:
        self.count += 1
        return f"0-{self.count}"

    def records(self, writer: str = "0-1") -> list[Record]:
        reader = LogReader(self.files, self.paths.events(writer), time.monotonic)
        return list(reader.poll().records)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_events_wait_for_company_but_a_commit_record_does_not(desk: Desk) -> None:
    desk.journal.emit("reports", {"n": 1})
    desk.journal.commit_if_due()
    assert desk.records() == []
    desk.journal.emit("checkpoint", {"n": 2}, urgent=True)
    desk.journal.commit_if_due()
    assert [record.kind for record in desk.records()] == ["open", "reports", "checkpoint"]


def test_a_resend_repeats_records_under_their_numbers(desk: Desk) -> None:
    for number in range(3):
        desk.journal.emit("reports", {"n": number})
    desk.journal.resend("0-1", 2, 3)
    desk.journal.commit()
    assert [record.seq for record in desk.records()] == [1, 2, 3, 4, 2, 3]
    assert desk.records()[1].fields == desk.records()[4].fields


def test_a_resend_of_what_was_acknowledged_says_that_it_is_gone(desk: Desk) -> None:
    for number in range(3):
        desk.journal.emit("reports", {"n": number})
    desk.journal.forget("0-1", 3)
    desk.journal.resend("0-1", 3, 4)
    desk.journal.commit()
    last = desk.records()[-2:]
    assert [(record.seq, record.kind) for record in last] == [(4, "reports"), (5, "resend_gone")]
    assert last[1].fields == {"writer": "0-1", "from": 3, "to": 4}


@pytest.mark.fault("disk full on a node")
def test_a_full_disk_loses_nothing_and_is_tried_again_in_a_second(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    desk.files.full = True
    desk.journal.emit("attempt_ended", {"n": 1}, urgent=True)
    desk.journal.commit_if_due()
    assert desk.journal.due_in() == RETRY_S
    assert "No space left" in capsys.readouterr().err
    desk.files.full = False
    desk.clock.advance(RETRY_S)
    desk.journal.commit_if_due()
    assert [record.kind for record in desk.records()] == ["open", "attempt_ended"]


def test_texts_too_long_for_a_record_are_cut_in_the_middle(desk: Desk) -> None:
    text = "head" + "\u00e9" * MAX_RECORD_BYTES + "tail"
    desk.journal.emit("attempt_ended", {"stdout": text, "reason": "exit code 1"})
    desk.journal.commit()
    fields = desk.records()[-1].fields
    assert fields["reason"] == "exit code 1"
    assert fields["stdout"].startswith("head")
    assert fields["stdout"].endswith("tail")
    assert "[... cut ...]" in fields["stdout"]


def test_a_value_too_large_for_a_record_is_left_out_and_named(desk: Desk) -> None:
    many = {str(number): number for number in range(20_000)}
    desk.journal.emit("attempt_ended", {"attempt": "1.1.1.1", "metadata": many, "loss": 0.5})
    desk.journal.commit()
    assert desk.records()[-1].fields == {"attempt": "1.1.1.1", "loss": 0.5, "cut": "metadata"}


def test_a_log_that_grew_large_names_its_successor(tmp_path: Path) -> None:
    desk = Desk(tmp_path, roll_bytes=1000)
    for number in range(20):
        desk.journal.emit("reports", {"n": number, "pad": "x" * 60})
        desk.journal.commit()
        desk.journal.commit_if_due()
    first = desk.records("0-1")
    assert (first[-1].kind, first[-1].fields) == ("continued", {"next": "0-2"})
    assert desk.records("0-2")[0].fields["writer"] == "0-2"
    told = [
        r.fields["n"]
        for w in range(1, desk.count + 1)
        for r in desk.records(f"0-{w}")
        if r.kind == "reports"
    ]
    assert told == list(range(20))


@pytest.mark.fault("disk full on a node")
@pytest.mark.parametrize("what", ["full", "full_of_names"])
def test_a_disk_that_has_no_room_for_a_successor_ends_nothing(tmp_path: Path, what: str) -> None:
    desk = Desk(tmp_path, roll_bytes=1000)
    for number in range(10):
        desk.journal.emit("reports", {"n": number, "pad": "x" * 100})
    desk.journal.commit()
    setattr(desk.files, what, True)
    for number in range(10, 13):
        desk.journal.commit_if_due()  # would roll
        desk.journal.emit("reports", {"n": number})
        desk.journal.commit()
        desk.clock.advance(RETRY_S + 0.1)
    setattr(desk.files, what, False)
    desk.journal.commit_if_due()
    desk.journal.emit("reports", {"n": 13})
    desk.journal.close()

    old, new = desk.records("0-1"), desk.records(desk.journal.writer)
    assert [r.fields["n"] for r in old if r.kind == "reports"] == list(range(13))
    assert [r.fields["n"] for r in new if r.kind == "reports"] == [13]
    assert [r.fields for r in old if r.kind == "continued"] == [{"next": desk.journal.writer}]
    assert [record.seq for record in old] == list(range(1, len(old) + 1))
