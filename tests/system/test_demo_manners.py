"""``scripts/demo`` refuses what cannot work before it starts, and stops all that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harvester.batch.local_processes import children
from tests.support import wait_until

TOP = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "HARVESTER_VENV": sys.prefix}
PATIENCE_S = 90.0

pytestmark = pytest.mark.skipif(
    not list(Path(sys.prefix).glob(".harvester-*views*")),
    reason="the tests do not run in an environment that scripts/venv made",
)


@contextmanager
def demo(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The demo in a process group of its own, as a terminal starts it."""
    process = subprocess.Popen(
        # Whoever runs the tests in the background may have the signals of a terminal ignored.
        ("env", "--default-signal=HUP,INT,TERM", str(TOP / "scripts/demo"), *arguments),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=PATIENCE_S)


def processes_of(root: Path) -> list[int]:
    """Processes whose command line or environment names the directory."""
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if _names(entry, root)]


def _names(process: Path, root: Path) -> bool:
    try:
        told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
    except OSError:  # it has ended, or is somebody else's
        return False
    return os.fsencode(root) in told


def python_runs(root: Path) -> bool:
    return any(_command(pid).startswith(sys.prefix) for pid in processes_of(root))


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def glob(pattern: str) -> Callable[[Path], bool]:
    return lambda root: any(root.glob(pattern))


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "at once": lambda _: True,
    "python starts": python_runs,
    "directory made": lambda root: root.exists(),
    "central starts": glob("logs/central.log"),
    "central listens": glob("state/harvester/central.json"),
    "daemon starts": glob("logs/daemon.log"),
    "allocation made": glob("state/**/allocations/*"),
    "payload runs": glob("state/**/events.*.log"),
}
SLOW = ("central listens", "daemon starts", "payload runs")


@pytest.mark.parametrize(
    "moment", [pytest.param(m, marks=pytest.mark.slow) if m in SLOW else m for m in MOMENTS]
)
def test_ctrl_c_ends_quietly_and_leaves_no_process(moment: str, tmp_path: Path) -> None:
    root = tmp_path / "kept"
    with demo("--keep", str(root)) as process:
        wait_until(lambda: MOMENTS[moment](root), PATIENCE_S)
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=PATIENCE_S)
    # The shell itself, before it has read its first line, dies of the signal: the same to others.
    assert process.returncode in (130, -signal.SIGINT), told
    assert "Traceback" not in told
    wait_until(lambda: not processes_of(root), PATIENCE_S)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_end_it_in_the_same_way(number: signal.Signals, tmp_path: Path) -> None:
    root = tmp_path / "kept"
    with demo("--keep", str(root)) as process:
        wait_until(lambda: (root / "logs/central.log").exists(), PATIENCE_S)
        process.send_signal(number)
        _, told = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, told
    assert "Traceback" not in told
    wait_until(lambda: not processes_of(root), PATIENCE_S)


@pytest.mark.parametrize(
    "moment", ["central starts", pytest.param("payload runs", marks=pytest.mark.slow)]
)
def test_nothing_outlives_a_demo_that_is_killed(moment: str, tmp_path: Path) -> None:
    root = tmp_path / "kept"
    with demo("--keep", str(root)) as process:
        wait_until(lambda: MOMENTS[moment](root), PATIENCE_S)
        (python,) = children(process.pid)
        os.kill(python.pid, signal.SIGKILL)
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + signal.SIGKILL
    wait_until(lambda: not processes_of(root), PATIENCE_S)


def refusal(*arguments: str) -> str:
    """The one line with which the demo refuses, before any process is started."""
    with demo(*arguments) as process:
        printed, told = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 64, told
    assert printed == ""
    (line,) = told.splitlines()
    return line


def test_directory_that_is_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    line = refusal("--keep", str(tmp_path))
    assert f"--keep: {tmp_path} is not empty" in line
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert f"--keep: {file}: File exists" in refusal("--keep", str(file))


def test_outcome_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "absent" / "outcome.json"
    assert f"--json: {file} cannot be written" in refusal("--json", str(file))
    assert f"--json: {tmp_path} cannot be written" in refusal("--json", str(tmp_path))


def test_number_of_points_is_checked() -> None:
    assert "--points: expected at least 1" in refusal("--points", "0")
    assert "invalid int value: 'many'" in refusal("--points", "many")
