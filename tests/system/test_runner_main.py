"""The runner as one zipapp: commands, refusals, and an interpreter that has nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harvester.spool.runner_archive import build_runner_archive
from payload_runner import __version__
from payload_runner.launched import runner_command

OLD = Path.home() / ".pyenv/versions/3.9.18/bin/python"


@pytest.fixture
def pyz(tmp_path: Path) -> Path:
    path = tmp_path / "runner.pyz"
    path.write_bytes(build_runner_archive())
    return path


def run(
    pyz: Path, *words: str, python: str = sys.executable, flags: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    return subprocess.run(
        [python, *flags, str(pyz), *words],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_version_and_help_name_the_program(pyz: Path) -> None:
    assert run(pyz, "--version").stdout.strip() == f"payload-runner {__version__}"
    assert "lead" in run(pyz, "--help").stdout


def test_probe_tells_what_the_node_looks_like(pyz: Path) -> None:
    found = json.loads(run(pyz, "probe").stdout)
    assert found["version"] == __version__
    assert found["cores"] >= 1
    assert found["memory_mb"] > 0


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ((), 64, "COMMAND"),
        (("dance",), 64, "dance"),
        (("lead", "/nowhere"), 64, "tag"),
        (("lead", "/nowhere", "haaaaa-bbbbbb"), 78, "--job-id"),
        (("lead", "/nowhere", "../../etc", "--job-id", "1"), 65, "not an allocation tag"),
        (("lead", "/nowhere", "haaaaa-bbbbbb", "--job-id", "1"), 74, "/nowhere"),
    ],
)
def test_a_wrong_command_line_is_refused_with_a_sentence(
    pyz: Path, words: tuple[str, ...], code: int, says: str
) -> None:
    done = run(pyz, *words)
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bare_old_interpreter_is_enough(pyz: Path) -> None:
    if not OLD.exists():
        pytest.skip(f"no Python 3.9 at {OLD}")
    done = run(pyz, "probe", python=str(OLD), flags=("-S", "-E", "-I"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["python"].startswith("3.9.")


def test_the_runner_starts_its_agents_from_its_own_archive(tmp_path: Path, pyz: Path) -> None:
    inside = str(pyz / "payload_runner" / "__main__.py")
    assert runner_command(inside, "/usr/bin/python3") == ("/usr/bin/python3", str(pyz))
    package = str(tmp_path / "payload_runner" / "__main__.py")
    assert runner_command(package, "py") == ("py", "-m", "payload_runner")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--job-id", "7", "--walltime", "30m"), "join.json is not there"),
        (("--walltime", "30m"), "no batch job"),
        (("--job-id", "7", "--nodes", "0"), "expected a number from 1"),
    ],
)
def test_join_says_in_a_sentence_what_is_missing(
    pyz: Path, tmp_path: Path, words: tuple[str, ...], sentence: str
) -> None:
    done = run(pyz, "join", str(tmp_path), *words)
    assert done.returncode in (64, 78)
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
