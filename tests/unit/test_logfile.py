"""Append-only logs: what survives tears, rubbish, staleness and short writes."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payload_runner.files import AppendFile, RealFiles
from payload_runner.logfile import (
    CORRUPT_AFTER_S,
    LogReader,
    LogWriter,
    RecordTooLarge,
    decode_line,
    encode_record,
)


class Time:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def writer(path: Path, time: Time | None = None) -> LogWriter:
    return LogWriter(RealFiles(), path, lambda: 5.0, time or Time())


def write(path: Path, *values: int) -> None:
    log = writer(path)
    for value in values:
        log.append("number", {"value": value})
    log.close()


def values(reader: LogReader) -> list[int]:
    return [record.fields["value"] for record in reader.poll().records]


def test_a_line_is_the_crc_a_space_and_the_json_as_rule_1_says() -> None:
    line = encode_record(7, "ping", 1.5, {"a": "ü"})
    crc, body = line[:8], line[9:-1]
    assert (line[8:9], line[-1:]) == (b" ", b"\n")
    assert crc == b"%08x" % zlib.crc32(body)
    assert json.loads(body) == {"seq": 7, "kind": "ping", "at": 1.5, "a": "ü"}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_json_lacks_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        encode_record(1, "bad", 0.0, {"loss": value})


@pytest.mark.parametrize("name", ["seq", "kind", "at"])
def test_a_field_cannot_pass_for_the_records_own(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        encode_record(1, "bad", 0.0, {name: 3})


def test_a_record_over_64_kib_is_refused_and_leaves_the_log_as_it_was(tmp_path: Path) -> None:
    log = writer(tmp_path / "log")
    with pytest.raises(RecordTooLarge, match="65536"):
        log.append("big", {"text": "x" * 65536})
    log.append("number", {"value": 1})
    log.close()
    assert values(LogReader(RealFiles(), tmp_path / "log", Time())) == [1]


@given(st.dictionaries(st.text().filter(lambda k: k not in ("seq", "kind", "at")), st.text()))
def test_any_text_comes_back_as_it_went_in(fields: dict[str, str]) -> None:
    found = decode_line(encode_record(1, "k", 2.0, fields)[:-1])
    assert found == {"seq": 1, "kind": "k", "at": 2.0, **fields}


@pytest.mark.fault("log torn, zeroed or stale")
@given(st.binary(max_size=200))
def test_no_bytes_make_the_decoder_raise(line: bytes) -> None:
    decode_line(line)


def test_a_log_has_one_writer_for_life(tmp_path: Path) -> None:
    write(tmp_path / "log", 1)
    with pytest.raises(FileExistsError):
        writer(tmp_path / "log")


def test_a_missing_log_is_nothing_yet(tmp_path: Path) -> None:
    batch = LogReader(RealFiles(), tmp_path / "absent", Time()).poll()
    assert (batch.records, batch.offset) == ((), 0)


@pytest.mark.fault("log torn, zeroed or stale")
def test_an_incomplete_last_line_waits_for_its_rest(tmp_path: Path) -> None:
    path = tmp_path / "log"
    line = encode_record(1, "number", 0.0, {"value": 1})
    path.write_bytes(line[:20])
    reader = LogReader(RealFiles(), path, Time())
    assert values(reader) == []
    path.write_bytes(line)
    assert values(reader) == [1]


@pytest.mark.fault("log torn, zeroed or stale")
def test_a_log_that_became_shorter_is_stale_not_truncated(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write(path, 1, 2)
    whole = path.read_bytes()
    reader = LogReader(RealFiles(), path, Time())
    assert values(reader) == [1, 2]
    path.write_bytes(whole[:10])
    assert values(reader) == []
    path.write_bytes(whole + encode_record(3, "number", 0.0, {"value": 3}))
    assert values(reader) == [3]


@pytest.mark.fault("log torn, zeroed or stale")
def test_zeroed_bytes_cost_only_what_they_held_and_only_after_60_s(tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines = [encode_record(n, "number", 0.0, {"value": n}) for n in (1, 2, 3)]
    path.write_bytes(lines[0] + b"\0" * len(lines[1]) + b"\n" + lines[2])
    time = Time()
    reader = LogReader(RealFiles(), path, time)
    assert values(reader) == [1]
    time.now += CORRUPT_AFTER_S - 1
    assert reader.poll().waiting
    time.now += 2
    batch = reader.poll()
    assert [record.seq for record in batch.records] == [3]
    assert [(gap.start, gap.end) for gap in batch.gaps] == [
        (len(lines[0]), len(lines[0]) + len(lines[1]) + 1)
    ]


@pytest.mark.fault("log torn, zeroed or stale")
def test_bytes_that_arrive_late_but_whole_cost_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines = [encode_record(n, "number", 0.0, {"value": n}) for n in (1, 2)]
    path.write_bytes(b"\0" * (len(lines[0]) - 1) + b"\n" + lines[1])
    time = Time()
    reader = LogReader(RealFiles(), path, time)
    assert values(reader) == []
    time.now += 30
    path.write_bytes(b"".join(lines))
    assert values(reader) == [1, 2]


class _ShortFile:
    """Writes half of what it is given once, then fails."""

    def __init__(self, inner: AppendFile) -> None:
        self._inner = inner
        self.fails = True

    def write(self, data: bytes) -> int:
        if self.fails:
            self._inner.write(data[: len(data) // 2])
            raise OSError(28, "No space left on device")
        return self._inner.write(data)

    def sync(self) -> None:
        self._inner.sync()

    def close(self) -> None:
        self._inner.close()


class _ShortFiles(RealFiles):
    def create_log(self, path: Path) -> AppendFile:
        self.file = _ShortFile(super().create_log(path))
        return self.file


@pytest.mark.fault("log torn, zeroed or stale")
def test_a_failed_commit_loses_nothing_and_tears_only_itself(tmp_path: Path) -> None:
    files = _ShortFiles()
    log = LogWriter(files, tmp_path / "log", lambda: 0.0, Time())
    log.append("number", {"value": 1})
    with pytest.raises(OSError, match="No space"):
        log.commit()
    files.file.fails = False
    log.append("number", {"value": 2})
    log.commit()
    time = Time()
    reader = LogReader(RealFiles(), tmp_path / "log", time)
    found = values(reader)
    time.now += CORRUPT_AFTER_S + 1
    found += values(reader)
    time.now += CORRUPT_AFTER_S + 1
    assert found + values(reader) == [1, 2]


def test_records_are_committed_in_groups_of_20_ms(tmp_path: Path) -> None:
    time = Time()
    log = writer(tmp_path / "log", time)
    log.append("number", {"value": 1})
    assert not log.commit_if_due()
    assert log.due_in() == pytest.approx(0.020)
    time.now += 0.021
    assert log.commit_if_due()
    assert log.due_in() is None


def test_a_released_log_goes_on_under_the_next_run(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write(path, 1, 2)
    log = LogWriter(
        RealFiles(), path, lambda: 0.0, Time(), first_seq=3, continue_at=path.stat().st_size
    )
    log.append("number", {"value": 3})
    log.close()
    reader = LogReader(RealFiles(), path, Time())
    assert [(r.seq, r.fields["value"]) for r in reader.poll().records] == [(1, 1), (2, 2), (3, 3)]
    assert reader.position == path.stat().st_size == log.size
