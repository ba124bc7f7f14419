"""The clusters that live tests use: how they are brought up, broken and healed."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support import wait_until

TESTBED = Path(__file__).parents[2] / "scripts" / "testbed"
SHARED = Path("/srv/shared")  # seen by all nodes, writable by everybody
SLURM_STATE = Path("/var/lib/tb-slurm")
GRID_STATE = Path("/var/lib/tb-sge")
CELL = {
    "SGE_ROOT": "/var/lib/gridengine",
    "SGE_CELL": "testbed",
    "SGE_QMASTER_PORT": "6544",
    "SGE_EXECD_PORT": "6545",
}
_GRID_NODES = "3"


@dataclass(frozen=True)
class SlurmCluster:
    """A real Slurm: ``nodes`` nodes of ``gpus`` GPUs; the login node is this machine."""

    nodes: int
    gpus: int
    user: str  # an ordinary one, besides root
    shared: Path  # seen by all nodes, writable by everybody; /tmp is shared as well

    def directory(self, user: str = "root") -> Path:
        """A fresh private directory of ``user`` on the shared file system."""
        return private_directory(self.shared, user)

    def kill(self, name: str) -> None:
        """Kill a node with all its processes: node1, node2, ..."""
        os.kill(recorded(SLURM_STATE, name), signal.SIGKILL)

    def stop(self, name: str) -> None:
        """Have a daemon leave in good order: slurmctld or slurmdbd.

        Not killed: a controller that is loses the jobs of its last seconds for good.
        """
        end_recorded(SLURM_STATE, name)

    def heal(self) -> None:
        """Start whatever is not there any more and wait until all nodes answer."""
        run_testbed("slurm-up", str(self.nodes))

    def control(self, *words: str) -> str:
        """``scontrol`` as the administrator."""
        done = subprocess.run(["scontrol", *words], capture_output=True, text=True, check=True)
        return done.stdout


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


@dataclass(frozen=True)
class GridCluster:
    """A real Grid Engine: nodes sge1 to sge3, each with 8 slots and 4 GPUs."""

    user: str = "hpcuser"  # an ordinary one, besides root

    @property
    def enter(self) -> tuple[str, ...]:
        """In front of a command: on the login node alone qmaster takes commands."""
        return ("nsenter", f"--uts=/proc/{recorded(GRID_STATE, 'login')}/ns/uts")

    def directory(self, user: str) -> Path:
        """A fresh private directory of ``user`` on the shared file system."""
        return private_directory(SHARED, user)

    def control(self, *words: str) -> str:
        """A command as the administrator; its output."""
        done = subprocess.run(
            [*self.enter, *words],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, **CELL},
        )
        return done.stdout

    def kill(self, node: str) -> None:
        """Kill a node with all its processes: sge1, sge2, sge3."""
        os.kill(recorded(GRID_STATE, node), signal.SIGKILL)

    def stop_qmaster(self) -> None:
        """Have qmaster leave, and wait until it has."""
        end_recorded(GRID_STATE, "qmaster")

    def heal(self) -> None:
        """Start whatever is not there any more and wait until all nodes answer."""
        run_testbed("sge-up", _GRID_NODES)


def why_no_gridengine() -> str | None:
    """Why the cluster cannot be brought up here; None if it can."""
    if os.getuid() != 0:
        return "a Grid Engine in namespaces needs root"
    needed = ("sge_qmaster", "sge_execd", "qsub", "ip")
    missing = [name for name in needed if shutil.which(name) is None]
    return f"{', '.join(missing)} missing; run scripts/testbed/install" if missing else None


def recorded(state: Path, name: str) -> int:
    """The process id of a testbed's node or daemon."""
    return int((state / "run" / f"{name}.pid").read_text())


def end_recorded(state: Path, name: str) -> None:
    """Have a testbed's daemon leave in good order, and wait until it has."""
    pid = recorded(state, name)
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not _runs(pid))


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def run_testbed(script: str, *arguments: str) -> None:
    done = subprocess.run([TESTBED / script, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"{script}: {done.stdout}{done.stderr}"


def private_directory(parent: Path, user: str) -> Path:
    """A fresh directory of this user alone."""
    path = Path(tempfile.mkdtemp(dir=parent))
    owner = pwd.getpwnam(user)
    os.chown(path, owner.pw_uid, owner.pw_gid)
    return path
