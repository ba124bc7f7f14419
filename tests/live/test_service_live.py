"""The installed unit under a real systemd, which is pid 1 of a box of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import wait_to_see, wait_until

TOP = Path(__file__).parents[2]
BOX = TOP / "scripts" / "testbed" / "systemd-in-a-box"
UNIT = "harvester@boxed.service"
USER = "nobody"

pytestmark = [pytest.mark.live, pytest.mark.timeout(180)]

SITE = """\
name: boxed
batch_system: slurm
spool: {{path: {top}/spool, filesystem: local}}
state: {{dir: {top}/state}}
node: {{gpus: 4, cores: 64, memory: 512GB}}
queues:
  - name: {queue}
    bins: [{{nodes: 1, walltime: "02:00:00"}}]
"""
# What a test cannot wait for, and where the box has no journal.
DROP_IN = """\
[Service]
WatchdogSec=3
RestartSec=1
TimeoutStopSec=20
Environment=HOME={top}/home
StandardError=append:{top}/daemon.log
"""


@dataclass(frozen=True)
class Box:
    """A running systemd with the daemon's unit; ``top`` is the one place that both sides see."""

    top: Path
    process: subprocess.Popen[bytes]

    def call(self, *words: str | Path, say: str = "", **environ: str) -> str:
        """Run a command in the box, as root."""
        pid = (self.top / "pid").read_text().strip()
        enter = ("nsenter", "--all", "--root", "--wd", "--target", pid, "--")
        done = subprocess.run(
            (*enter, *words), input=say, env=environ, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{words}: {done.stderr}{self.log()}"
        return done.stdout.strip()

    def systemctl(self, *words: str) -> str:
        return self.call("/usr/bin/systemctl", *words)

    def is_up(self) -> bool:
        """Whether systemd answers."""
        try:
            return bool(self.systemctl("show", "--property=Version"))
        except AssertionError:
            return False

    def shows(self, name: str) -> str:
        return self.systemctl("show", "--value", f"--property={name}", UNIT)

    def is_active(self, restarts: int) -> bool:
        return (self.shows("ActiveState"), self.shows("NRestarts")) == ("active", str(restarts))

    def daemon(self) -> int:
        """The daemon's process id, as this machine counts."""
        inner = self.shows("MainPID")
        box = (self.top / "pid").read_text().strip()
        namespace = os.readlink(f"/proc/{box}/ns/pid")
        for process in Path("/proc").glob("[0-9]*"):
            try:
                lines = dict(
                    line.split(":", 1) for line in (process / "status").read_text().splitlines()
                )
                inside = os.readlink(process / "ns" / "pid") == namespace
            except OSError:
                continue  # it ended while we looked
            if inside and lines["NSpid"].split()[-1] == inner:
                return int(process.name)
        raise AssertionError(f"no process {inner} in the box; {self.log()}")

    def log(self) -> str:
        path = self.top / "daemon.log"
        return path.read_text() if path.exists() else ""


def why_not() -> str | None:
    if os.getuid() != 0:
        return "a systemd of its own needs root"
    if not Path("/lib/systemd/systemd").exists() or shutil.which("nsenter") is None:
        return "systemd or nsenter is missing"
    if not any(Path("/sys/fs/cgroup").glob("**/cgroup.procs")):
        return "no control groups are mounted"
    return None


def prepare(top: Path) -> None:
    (top / "home").mkdir()
    for name in ("spool", "state"):
        (top / name).mkdir(mode=0o700)
    for path in (top, *top.iterdir()):
        shutil.chown(path, USER)
    (top / "site.yaml").write_text(SITE.format(top=top, queue="gpu"))
    command = ("service", "install", "--system", "--print", "--run-as", USER)
    done = subprocess.run(
        (sys.executable, "-m", "harvester", *command, "--site", str(top / "site.yaml")),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    units = top / "units"
    (units / f"{UNIT}.d").mkdir(parents=True)
    (units / UNIT).write_text(done.stdout)
    (units / f"{UNIT}.d" / "box.conf").write_text(DROP_IN.format(top=top))
    wanted = units / "multi-user.target.wants"
    wanted.mkdir()
    (wanted / UNIT).symlink_to(f"../{UNIT}")


@contextmanager
def running_box(top: Path, *seen: str) -> Iterator[Box]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    ours = {str(TOP), sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"), *seen}
    own = [path for path in sorted(ours) if not path.startswith("/usr")]
    with (top / "systemd.log").open("wb") as log:
        process = subprocess.Popen((BOX, top, *own), stdout=log, stderr=log)
    try:
        wait_until(lambda: (top / "pid").exists() or process.poll() is not None, 30)
        assert process.poll() is None, (top / "systemd.log").read_text()
        box = Box(top, process)
        wait_until(box.is_up, 30)
        yield box
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    top = tmp_path / "box"
    top.mkdir()
    prepare(top)
    with running_box(top) as running:
        yield running


def settled(box: Box, restarts: int) -> None:
    def shown() -> str:
        return f"{box.shows('ActiveState')} {box.shows('NRestarts')} {box.shows('Result')}"

    wait_until(lambda: box.is_active(restarts), 60, lambda: f"{shown()}\n{box.log()}")


def test_unit_lives_its_whole_life_under_systemd(box: Box) -> None:
    settled(box, restarts=0)
    first = box.daemon()
    status = Path(f"/proc/{first}/status").read_text()
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status
    assert Path(f"/proc/{first}").stat().st_uid == (box.top / "home").stat().st_uid

    # A daemon that decides no more is killed and started again, and takes over at once.
    os.kill(first, signal.SIGSTOP)
    settled(box, restarts=1)
    second = box.daemon()
    assert second != first
    assert "Take over from a dead process" in box.log()

    # SIGHUP: a new site file, the same process.
    (box.top / "site.yaml").write_text(SITE.format(top=box.top, queue="debug"))
    box.systemctl("reload", UNIT)
    wait_until(lambda: "Reloads the site file" in box.log(), 60, box.log)
    assert box.daemon() == second

    # SIGTERM: the step in hand, the lease released, exit code 0.
    box.systemctl("stop", UNIT)
    assert (box.shows("Result"), box.shows("ExecMainStatus")) == ("success", "0")
    assert json.loads((box.top / "spool" / "lease.json").read_text())["released"] is True
    assert "Traceback" not in box.log()


def test_a_site_file_that_is_wrong_is_not_tried_again(box: Box) -> None:
    settled(box, restarts=0)
    (box.top / "site.yaml").write_text("name: boxed\nbatch_system: slurn\n")
    box.systemctl("stop", UNIT)
    box.systemctl("start", "--no-block", UNIT)
    wait_to_see(lambda: box.shows("ActiveState"), lambda state: state == "failed", 60)
    assert box.shows("ExecMainStatus") == "78"
    assert "batch_system" in box.log()


CRON_UNIT = """\
[Service]
ExecStartPre=/bin/mkdir -p /var/spool/cron/crontabs
ExecStart={cron} -f
"""


@pytest.mark.slow
def test_entry_in_a_real_crontab_runs_a_round(tmp_path: Path) -> None:
    cron, crontab = shutil.which("cron"), shutil.which("crontab")
    if cron is None or crontab is None:
        pytest.skip("cron is missing (package cron)")
    top = tmp_path / "box"
    (top / "units" / "multi-user.target.wants").mkdir(parents=True)
    (top / "units" / "cron.service").write_text(CRON_UNIT.format(cron=cron))
    (top / "units" / "multi-user.target.wants" / "cron.service").symlink_to("../cron.service")
    (top / "site.yaml").write_text(SITE.format(top=top, queue="gpu"))
    tools = {str(Path(cron).parent), str(Path(crontab).parent)}
    with running_box(top, *tools) as boxed:
        here = {"HOME": str(top), "PATH": os.pathsep.join([*tools, "/usr/bin:/bin"])}
        wait_until(lambda: boxed.systemctl("show", "-P", "ActiveState", "cron") == "active", 30)
        install = ("-m", "harvester", "service", "install", "--cron")
        boxed.call(sys.executable, *install, "--site", top / "site.yaml", **here)
        table = boxed.call(crontab, "-l", **here)
        assert "-59/5 * * * * " in table
        # Not every fifth minute, for a test.
        every = re.sub(r"^\d-59/5 ", "* ", table, flags=re.MULTILINE)
        boxed.call(crontab, "-", say=f"{every}\n", **here)

        lease = top / "spool" / "lease.json"
        wait_until(lambda: lease.exists() and json.loads(lease.read_text()).get("released"), 100)

    assert "Hold the lease" in (top / "state" / "crontab.log").read_text()
    assert json.loads((top / "spool" / "status.json").read_text())["mode"] == "once"
