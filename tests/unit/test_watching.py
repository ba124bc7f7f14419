"""Lines of metrics.jsonl become reports."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from payload_runner.watching import (
    EVENT_BYTES,
    MAX_LINE_BYTES,
    READ_BYTES,
    MetricsTail,
    NoWake,
    WatchdogWake,
    open_wake,
    parse_report,
)
from tests.support import wait_until


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_complete_lines_are_reported_once(lines: Path) -> None:
    tail = MetricsTail(lines.parent)
    assert not tail.look()
    append(lines, '{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    assert tail.look()
    assert tail.reports() == ({"step": 1, "loss": 0.5},)
    append(lines, 'ss": 0.25}\n')
    assert tail.look()
    assert not tail.look()
    assert tail.reports() == ({"step": 2, "loss": 0.25},)
    assert tail.reports() == ()


def test_newest_report_of_a_step_wins(lines: Path) -> None:
    tail = MetricsTail(lines.parent)
    append(lines, '{"step": 1, "loss": 3}\n{"step": 2, "loss": 2}\n{"step": 1, "loss": 1}\n')
    tail.look()
    assert tail.reports() == ({"step": 2, "loss": 2}, {"step": 1, "loss": 1})


@pytest.mark.parametrize(
    ("line", "report"),
    [
        ('{"step": 3, "loss": 1e-7}', {"step": 3, "loss": 1e-7}),
        ('{"step": -1, "a": 2}', {"step": -1, "a": 2}),
        ('{"step": 1, "loss": 0.5, "phase": "train", "ok": true}', {"step": 1, "loss": 0.5}),
        ('{"step": 1.0, "loss": 0.5}', None),
        ('{"step": true, "loss": 0.5}', None),
        ('{"step": "1"}', None),
        ('{"loss": 0.5}', None),
        ('{"step": 1, "loss": NaN}', None),
        ('{"step": 1, "loss": -Infinity}', None),
        ('{"step": 1, "loss": 1e999}', None),
        ('{"step": 1, "n": 99999999999999999999}', None),
        ("[1]", None),
        ("epoch 1: loss 0.5", None),
        ("[" * 7000, None),
        ('{"step": 1, "x": "' + "x" * MAX_LINE_BYTES + '"}', None),
    ],
)
def test_line_is_a_report_or_nothing(line: str, report: dict[str, object] | None) -> None:
    assert parse_report(line.encode()) == report


@pytest.mark.fault("metrics torn or flooded")
def test_bad_lines_are_counted_and_good_ones_kept(lines: Path) -> None:
    tail = MetricsTail(lines.parent)
    lines.write_bytes(b'rubbish\n\xff\xfe\n\n{"step": 1, "loss": 1}\n' + b"\0" * 20 + b"\n")
    tail.look()
    assert tail.reports() == ({"step": 1, "loss": 1},)
    assert tail.bad_lines == 3


@pytest.mark.fault("metrics torn or flooded")
def test_endless_line_costs_one_line_and_no_memory(lines: Path) -> None:
    tail = MetricsTail(lines.parent)
    append(lines, "x" * (READ_BYTES + 5))
    tail.look()
    append(lines, "y" * MAX_LINE_BYTES * 2 + '\n{"step": 1, "loss": 1}\n')
    while tail.look():
        pass
    assert tail.reports() == ({"step": 1, "loss": 1},)
    assert tail.bad_lines == 1


@pytest.mark.fault("metrics torn or flooded")
def test_unfinished_last_line_counts_at_the_end(lines: Path) -> None:
    tail = MetricsTail(lines.parent)
    append(lines, '{"step": 1, "loss": 1}')
    tail.look()
    assert tail.reports() == ()
    tail.end()
    assert tail.reports() == ({"step": 1, "loss": 1},)


def test_file_that_was_begun_anew_is_read_from_its_start(lines: Path) -> None:
    tail = MetricsTail(lines.parent)
    append(lines, '{"step": 1, "loss": 1}\n{"step": 2, "loss": 1}\n')
    tail.look()
    tail.reports()
    lines.write_text('{"step": 1, "loss": 9}\n')
    tail.look()
    assert tail.reports() == ({"step": 1, "loss": 9},)


@pytest.mark.fault("metrics torn or flooded")
def test_flood_of_reports_keeps_the_newest_and_fits_an_event(lines: Path) -> None:
    tail = MetricsTail(lines.parent)
    append(lines, "".join(f'{{"step": {step}, "loss": 0.123456789}}\n' for step in range(5000)))
    tail.look()
    reports = tail.reports()
    assert reports[-1]["step"] == 4999
    assert [report["step"] for report in reports] == list(range(5000 - len(reports), 5000))
    assert len(json.dumps(reports)) <= EVENT_BYTES + 2 * len(reports)
    assert tail.thinned == 5000 - len(reports)


@pytest.mark.fault("links out, FIFOs, sockets, sparse files")
def test_fifo_in_its_place_does_not_block(lines: Path) -> None:
    os.mkfifo(lines)
    tail = MetricsTail(lines.parent)
    tail.end()
    assert tail.reports() == ()


def test_watchdog_says_that_lines_were_added(lines: Path) -> None:
    pytest.importorskip("watchdog")
    wake = WatchdogWake()
    try:
        wake.add(lines.parent)
        (lines.parent / "other.log").write_text("not of interest")
        append(lines, "{}\n")
        assert wait_until(wake.touched) == {str(lines.parent)}
        wake.remove(lines.parent)
        wake.remove(lines.parent)
    finally:
        wake.close()


@pytest.mark.fault("inotify missing or full")
def test_without_watchdog_looks_must_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "watchdog", None)
    wake = open_wake()
    assert isinstance(wake, NoWake)
    assert wake.fileno() is None
