"""``scripts/faults`` counts what was tried and shows what failed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from scripts.stack import TOP

SELECTION = """\
import pytest
from hypothesis import given, settings, strategies


@pytest.mark.fault("agent killed")
@pytest.mark.parametrize("n", [1, 2, 3])
def test_parameters(n):
    pass


@pytest.mark.fault("agent killed")
def test_more_tries_than_one(record_property):
    record_property("tries", 4)


@pytest.mark.fault("hostile")
@settings(max_examples=20, database=None)
@given(strategies.integers())
def test_examples(n):
    pass


@pytest.mark.fault("node lost")
def test_sound():
    pass


@pytest.mark.fault("node lost")
def test_wrong():
    assert False


@pytest.mark.fault("two daemons")
def test_absent():
    pytest.skip("no second host")


@pytest.mark.fault("two daemons")
@pytest.mark.live
def test_real():
    pass


def test_unmarked():
    assert False
"""


def faults(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "scripts.faults_run", "-c", "pyproject.toml", "--rootdir", "."]
    quiet = ("-p", "no:cacheprovider")
    return subprocess.run([*argv, *quiet, *arguments], cwd=TOP, capture_output=True, text=True)


def cells(table: str) -> dict[str, list[str]]:
    found = {}
    for line in table.splitlines():
        name, *rest = [cell.strip() for cell in line.strip("|").split("|")]
        found[name] = rest
    return found


def test_table_counts_tries_and_names_what_failed_or_was_absent(tmp_path: Path) -> None:
    (tmp_path / "test_selection.py").write_text(SELECTION)

    done = faults("--markdown", str(tmp_path))

    found = cells(done.stdout)
    assert found["agent killed"] == ["4", "7", "passed"]
    assert found["hostile"] == ["1", "20", "passed"]
    failed = "FAILED 1 of 2: test_selection.py::test_wrong"
    assert found["node lost"] == ["2", "2", failed]
    absent = "not here (1): needs --live; not here (1): no second host"
    assert found["two daemons"] == ["0", "0", absent]
    assert found["daemon killed"] == ["0", "0", "no test was selected"]
    assert "unmarked" not in done.stdout
    assert done.returncode == 1


def test_interrupted_run_says_what_it_did_not_reach(tmp_path: Path) -> None:
    stopped = SELECTION.replace("    pass\n", "    raise KeyboardInterrupt\n", 1)
    (tmp_path / "test_selection.py").write_text(stopped)

    done = faults("--markdown", str(tmp_path))

    assert cells(done.stdout)["agent killed"] == ["0", "0", "not reached (4)"]
    assert done.returncode == 2


def test_selection_of_our_own_passes() -> None:
    done = faults("tests/unit/test_lease.py")

    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "daemon paused" in line]
    assert line.split()[2:] == ["2", "2", "passed"]
