"""``harvester site probe`` with the local batch system: real jobs, real measurements."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from harvester.batch.local import LocalBatch
from harvester.config import load_site
from harvester.spool.runner_archive import build_runner_archive
from harvester.wiring import make_batch


@pytest.fixture
def environ(tmp_path: Path) -> Iterator[Mapping[str, str]]:
    found = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "LC_ALL": "C.UTF-8",
    }
    yield found
    for path in tmp_path.glob("*.yaml"):
        batch = make_batch(load_site(str(path), found))
        assert isinstance(batch, LocalBatch)
        batch.shut_down()


def site_file(tmp_path: Path, text: str = "") -> str:
    path = tmp_path / "small.yaml"
    path.write_text(f"extends: local\nname: small\n{text}")
    return str(path)


def probe(environ: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "harvester", "site", "probe", *arguments)
    return subprocess.run(
        command, env=environ, capture_output=True, text=True, timeout=100, check=False
    )


def probes(tmp_path: Path) -> list[Path]:
    return list((tmp_path / ".local/state/harvester/sites/small/spool/probes").glob("*"))


def test_sound_site_is_measured_and_nothing_is_left_behind(
    environ: Mapping[str, str], tmp_path: Path
) -> None:
    done = probe(environ, site_file(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["good"] is True
    assert sorted(node["host"] for node in found["nodes"]) == ["vnode1", "vnode2"]
    assert probes(tmp_path) == []


def test_wrong_claim_is_corrected_with_exit_code_1(
    environ: Mapping[str, str], tmp_path: Path
) -> None:
    done = probe(environ, site_file(tmp_path, "containers: {runtime: shifter}\n"))
    assert done.returncode == 1, done.stderr
    assert "wrong  containers.runtime" in done.stdout
    assert "\ncontainers:\n  runtime: " in done.stdout


def test_dry_run_shows_the_job_and_writes_nothing(
    environ: Mapping[str, str], tmp_path: Path
) -> None:
    done = probe(environ, site_file(tmp_path), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert " probe /" in done.stdout
    assert not (tmp_path / ".local/state/harvester/sites/small/spool").exists()


def test_shipped_site_without_an_account_is_not_probed(
    environ: Mapping[str, str], tmp_path: Path
) -> None:
    done = probe({**environ, "SCRATCH": str(tmp_path / "scratch")}, "frontier")
    assert done.returncode == 78
    assert "site frontier: account: expected your project's account" in done.stderr
    assert not (tmp_path / "scratch").exists()


def test_probe_is_no_larger_than_allocations_may_be(
    environ: Mapping[str, str], tmp_path: Path
) -> None:
    small = site_file(tmp_path, "planning: {nodes_max: 1}\n")
    found = json.loads(probe(environ, small, "--json").stdout)
    assert len(found["nodes"]) == 1
    done = probe(environ, small, "--nodes", "2")
    assert done.returncode == 64
    assert "--nodes: got '2'; expected at most planning.nodes_max, 1" in done.stderr


def test_interpreter_that_does_not_run_is_told_in_the_jobs_own_words(
    environ: Mapping[str, str], tmp_path: Path
) -> None:
    old = tmp_path / "python-old"
    old.write_text("#!/bin/sh\necho 'this is too old'\nexit 1\n")
    old.chmod(0o755)
    done = probe(environ, site_file(tmp_path, f"runner: {{python: {old}}}\n"))
    assert done.returncode == 75
    assert "ended without a report: this is too old" in done.stderr
    (kept,) = probes(tmp_path)
    assert str(kept) in done.stderr


def test_old_interpreter_gets_a_sentence_instead_of_a_syntax_error(tmp_path: Path) -> None:
    archive = tmp_path / "runner.pyz"
    archive.write_bytes(build_runner_archive())
    pretend = (
        "import runpy, sys; sys.version_info = (3, 6, 8, 'final', 0); sys.argv = sys.argv[1:];"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    done = subprocess.run(
        (sys.executable, "-c", pretend, str(archive), "probe"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 78
    assert done.stderr.endswith(
        "is Python 3.6; 3.9 or newer is needed, name one in runner.python\n"
    )


def test_site_that_is_stopped_is_not_probed(environ: Mapping[str, str], tmp_path: Path) -> None:
    stop = tmp_path / ".local/state/harvester/sites/small/spool/STOP"
    stop.parent.mkdir(mode=0o700, parents=True)
    stop.touch()
    done = probe(environ, site_file(tmp_path))
    assert done.returncode == 75
    assert str(stop) in done.stderr
    assert probes(tmp_path) == []


def test_probe_counts_in_the_hourly_budget(environ: Mapping[str, str], tmp_path: Path) -> None:
    named = site_file(tmp_path, "budgets: {submissions_per_hour: 1}\n")
    assert probe(environ, named).returncode in (0, 1)

    done = probe(environ, named)

    assert done.returncode == 75
    assert "1 jobs were submitted at site small within the last hour" in done.stderr
