"""The real servers that live tests use, brought up once a session and taken down after it."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import wait_until

TESTBED = Path(__file__).parents[2] / "scripts" / "testbed"
STATE = Path("/var/lib/tb-slurm")


@dataclass(frozen=True)
class SlurmCluster:
    """A real Slurm: ``nodes`` nodes of ``gpus`` GPUs; the login node is this machine."""

    nodes: int
    gpus: int
    user: str  # an ordinary one, besides root
    shared: Path  # seen by all nodes, writable by everybody; /tmp is shared as well

    def directory(self, user: str = "root") -> Path:
        """A fresh private directory of ``user`` on the shared file system."""
        path = Path(tempfile.mkdtemp(dir=self.shared))
        owner = pwd.getpwnam(user)
        os.chown(path, owner.pw_uid, owner.pw_gid)
        return path

    def kill(self, name: str) -> None:
        """Kill a node with all its processes: node1, node2, ..."""
        os.kill(_recorded(name), signal.SIGKILL)

    def stop(self, name: str) -> None:
        """Have a daemon leave in good order: slurmctld or slurmdbd.

        Not killed: a controller that is loses the jobs of its last seconds for good.
        """
        pid = _recorded(name)
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not _runs(pid), 20)

    def heal(self) -> None:
        """Start whatever is not there any more and wait until all nodes answer."""
        run_testbed("slurm-up", str(self.nodes))

    def control(self, *words: str) -> str:
        """``scontrol`` as the administrator."""
        done = subprocess.run(["scontrol", *words], capture_output=True, text=True, check=True)
        return done.stdout


def _recorded(name: str) -> int:
    return int((STATE / "run" / f"{name}.pid").read_text())


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def run_testbed(script: str, *arguments: str) -> None:
    done = subprocess.run([TESTBED / script, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"{script}: {done.stdout}{done.stderr}"


def why_no_slurm() -> str | None:
    """Why the cluster cannot be brought up here; None if it can."""
    if os.getuid() != 0:
        return "a Slurm cluster in namespaces needs root"
    needed: Sequence[str] = (
        "slurmctld",
        "slurmd",
        "slurmdbd",
        "sbatch",
        "munged",
        "mariadbd",
        "ip",
    )
    missing = [name for name in needed if shutil.which(name) is None]
    return f"{', '.join(missing)} missing; run scripts/testbed/install" if missing else None


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[SlurmCluster]:
    reason = why_no_slurm()
    if reason:
        pytest.skip(reason)
    was_up = (STATE / "run" / "slurmctld.pid").exists()
    run_testbed("slurm-up", "3")
    yield SlurmCluster(nodes=3, gpus=4, user="hpcuser", shared=Path("/srv/shared"))
    if not was_up:  # somebody's own cluster is left as it was
        run_testbed("slurm-down", "--purge")
