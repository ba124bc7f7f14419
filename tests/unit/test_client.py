"""The one file that training scripts import."""

from __future__ import annotations

import ast
import json
import math
import os
import signal
from pathlib import Path

import pytest

from payload_runner import client


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARVESTER_ATTEMPT", "1.1.1.1")
    monkeypatch.setenv("HARVESTER_WORKDIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HARVESTER_ATTEMPT", "HARVESTER_WORKDIR", "HARVESTER_DEADLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_outside_the_harvester_nothing_happens(outside: Path) -> None:
    client.report(1, 0.5)
    client.checkpoint("model.pt")
    assert not client.inside()
    assert not client.should_stop()
    assert client.time_left() == math.inf
    assert list(outside.iterdir()) == []


def test_reports_are_lines_of_finite_numbers(workdir: Path) -> None:
    client.report(1, 0.5, accuracy=1)
    client.report(2, float("nan"), accuracy=0.5)
    client.report(3, float("inf"))
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"loss": 0.5, "accuracy": 1.0, "step": 1},
        {"accuracy": 0.5, "step": 2},
    ]


def test_stop_file_and_signal_both_say_stop(workdir: Path) -> None:
    before = signal.getsignal(signal.SIGUSR2)
    try:
        assert not client.should_stop()
        (workdir / ".harvester-stop").touch()
        assert client.should_stop()
        (workdir / ".harvester-stop").unlink()
        assert not client.should_stop()
        os.kill(os.getpid(), signal.SIGUSR2)
        assert client.should_stop()
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_time_left_counts_down_to_zero(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARVESTER_DEADLINE", "5000000000")
    assert client.time_left() > 1e9
    monkeypatch.setenv("HARVESTER_DEADLINE", "1000")
    assert client.time_left() == 0.0


def test_hint_names_the_checkpoint(workdir: Path) -> None:
    client.checkpoint("model.pt")
    hint = json.loads((workdir / ".harvester-checkpoint").read_text())
    assert hint["path"] == "model.pt"


def test_file_stands_alone_on_old_pythons() -> None:
    """A container may hold any Python 3: only the standard library, and no newer syntax."""
    source = Path(client.__file__).read_text()
    tree = ast.parse(source, feature_version=(3, 6))
    imported = {
        name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names
    }
    assert imported == {"json", "math", "os", "signal", "threading", "time"}
    assert not any(isinstance(node, ast.ImportFrom) for node in ast.walk(tree))
