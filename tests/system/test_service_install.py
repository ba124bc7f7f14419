"""``harvester service install`` as a process, and its units under systemd's own eyes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
SITE = """\
name: odd
batch_system: {batch_system}
spool: {{path: "$SCRATCH/harvester"}}
state: {{dir: "~/state %h"}}
node: {{gpus: 4, cores: 64, memory: 512GB}}
queues:
  - name: gpu
    bins: [{{nodes: 1, walltime: "02:00:00"}}]
"""

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing (package systemd)"
)


@pytest.fixture
def environ(tmp_path: Path) -> Mapping[str, str]:
    scratch = tmp_path / "scratch with blank"
    scratch.mkdir()
    (tmp_path / "run").mkdir(mode=0o700)
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "SCRATCH": str(scratch),
        "XDG_RUNTIME_DIR": str(tmp_path / "run"),
        "LC_ALL": "C.UTF-8",
    }


def site_file(tmp_path: Path, batch_system: str) -> str:
    path = tmp_path / "my sites" / "odd.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(SITE.format(batch_system=batch_system))
    return str(path)


def install(
    environ: Mapping[str, str], *arguments: str, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "harvester", "service", "install", *arguments)
    return subprocess.run(
        command, env=environ, cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )


def verify(environ: Mapping[str, str], unit: Path, *options: str) -> str:
    command = ("systemd-analyze", *options, "verify", str(unit))
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


@needs_systemd
@pytest.mark.parametrize("batch_system", ["slurm", "pbs", "lsf", "local"])
def test_users_unit_has_nothing_for_systemd_to_remark(
    environ: Mapping[str, str], tmp_path: Path, batch_system: str
) -> None:
    done = install(environ, "--user", "--site", site_file(tmp_path, batch_system))
    assert done.returncode == 0, done.stderr
    unit = tmp_path / ".config/systemd/user/harvester@odd.service"
    assert done.stdout == f"Wrote {unit}.\n"
    assert "enable --now harvester@odd.service" in done.stderr
    assert verify(environ, unit, "--user") == ""


@needs_systemd
@pytest.mark.parametrize("batch_system", ["slurm", "pbs", "lsf", "local"])
def test_systems_unit_has_nothing_for_systemd_to_remark(
    environ: Mapping[str, str], tmp_path: Path, batch_system: str
) -> None:
    done = install(environ, "--system", "--print", "--site", site_file(tmp_path, batch_system))
    assert done.returncode == 0, done.stderr
    unit = tmp_path / "harvester@odd.service"
    unit.write_text(done.stdout)
    assert verify(environ, unit) == ""


@needs_systemd
@pytest.mark.parametrize("kind", ["--user", "--system"])
def test_unit_of_a_site_on_another_host_has_nothing_for_systemd_to_remark(
    environ: Mapping[str, str], tmp_path: Path, kind: str
) -> None:
    path = Path(site_file(tmp_path, "pbs"))
    text = path.read_text().replace("$SCRATCH/harvester", "/there/on the/login node")
    path.write_text(f"{text}remote: {{host: me@login, second_factor: true, session: 12h}}\n")
    done = install(environ, kind, "--print", "--site", str(path))
    assert done.returncode == 0, done.stderr
    unit = tmp_path / "harvester@odd.service"
    unit.write_text(done.stdout)
    assert "/there/" not in done.stdout
    assert verify(environ, unit, *(["--user"] if kind == "--user" else [])) == ""


@needs_systemd
@pytest.mark.parametrize(
    ("path", "options"), [("harvester@.service", ()), ("user/harvester@.service", ("--user",))]
)
def test_shipped_unit_has_nothing_for_systemd_to_remark(
    environ: Mapping[str, str], tmp_path: Path, path: str, options: tuple[str, ...]
) -> None:
    shutil.copy(TOP / "scripts/systemd" / path, tmp_path)
    assert verify(environ, tmp_path / "harvester@.service", *options) == ""


@needs_systemd
def test_the_verification_does_remark_on_what_is_wrong(
    environ: Mapping[str, str], tmp_path: Path
) -> None:
    unit = tmp_path / "wrong.service"
    unit.write_text("[Service]\nExecStart=/bin/true\nRestrat=always\n")
    assert "Restrat" in verify(environ, unit)


def test_printing_writes_nothing(environ: Mapping[str, str], tmp_path: Path) -> None:
    for kind in ("--user", "--system", "--cron", "--scrontab"):
        done = install(environ, kind, "--print", "--site", site_file(tmp_path, "slurm"))
        assert done.returncode == 0, done.stderr
        assert "run --site" in done.stdout
    assert not (tmp_path / ".config").exists()
    assert not (tmp_path / "state %h").exists()


def test_site_of_the_working_directory_is_named_by_its_path(
    environ: Mapping[str, str], tmp_path: Path
) -> None:
    path = site_file(tmp_path, "slurm")
    done = install(environ, "--cron", "--print", "--site", "odd", cwd=Path(path).parent)
    assert done.returncode == 0, done.stderr
    assert f"run --site '{path}' --once" in done.stdout


def test_base_that_only_the_working_directory_has_is_refused(
    environ: Mapping[str, str], tmp_path: Path
) -> None:
    base = Path(site_file(tmp_path, "slurm"))
    (base.parent / "mine.yaml").write_text("extends: odd\nname: mine\n")
    done = install(environ, "--cron", "--print", "--site", "mine", cwd=base.parent)
    assert done.returncode == 78
    assert "mine.yaml:1: extends: got 'odd'; no site file of this name" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "expected one of --user, --system, --cron, --scrontab"),
        (("--cron", "--user"), "got '--cron --user'; expected one of --user,"),
        (("--user", "--run-as", "root"), "only together with --system"),
        (("--system", "--run-as", "no-such-user"), "a user of this machine"),
    ],
)
def test_wrong_arguments_are_one_sentence(
    environ: Mapping[str, str], arguments: tuple[str, ...], words: str
) -> None:
    done = install(environ, *arguments)
    assert done.returncode == 64
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_user_whose_services_end_at_logout_is_told_the_cure(
    environ: Mapping[str, str], tmp_path: Path
) -> None:
    if any(Path("/var/lib/systemd/linger").glob("*")):
        pytest.skip("somebody lingers on this machine")
    done = install(environ, "--user", "--print", "--site", site_file(tmp_path, "slurm"))
    assert "loginctl enable-linger" in done.stderr


def test_missing_crontab_is_named(environ: Mapping[str, str], tmp_path: Path) -> None:
    empty = tmp_path / "bin"
    empty.mkdir()
    site = site_file(tmp_path, "slurm")
    done = install({**environ, "PATH": str(empty)}, "--cron", "--site", site)
    assert done.returncode == 66
    assert "no crontab command here" in done.stderr
