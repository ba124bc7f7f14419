"""What a node looks like from a process on it: interpreter, cores, memory, GPUs, disks, network.

Sends nothing to anybody: whether there is a way out is read from the routing table.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import subprocess
from dataclasses import dataclass, field
from typing import Dict, List, Mapping, Optional, Tuple

from payload_runner import __version__, gpus

GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")
# Container runtimes as site files name them, and the program of each.
RUNTIMES = {
    "apptainer": "apptainer",
    "singularity": "singularity",
    "podman-hpc": "podman-hpc",
    "shifter": "shifter",
    "podman": "podman",
    "charliecloud": "ch-run",
    "bwrap": "bwrap",
}
_PODMAN_ANSWERS_S = 30.0  # it makes its storage when it has none yet
# Where centres mount a node's own disk; the variables are set by prologues of batch systems.
_DISK_VARIABLES = ("TMPDIR", "SLURM_TMPDIR", "PBS_JOBFS", "JOBFS", "LOCAL_SCRATCH", "LOCALSCRATCH")
_DISKS = (
    *("/local_scratch", "/local/scratch", "/mnt/bb/$USER", "/scratch/local"),
    *("/tmp", "/dev/shm"),  # looked at only  # nosec B108
)
_SHARED = re.compile(
    "afs|autofs|beegfs|ceph|cifs|cvmfs|fuse.sshfs|gpfs|lustre|nfs4?|orangefs|panfs|pvfs2|wekafs"
)
_PROXIES = ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")
_UNLIMITED = 1 << 60


@dataclass(frozen=True)
class Disk:
    """A directory in which a payload could work."""

    path: str
    filesystem: str  # as the kernel calls it; "" where it does not say
    writable: bool
    free_mb: int = 0

    @property
    def is_shared(self) -> bool:
        """Whether other hosts see it too."""
        return _SHARED.fullmatch(self.filesystem) is not None

    @property
    def is_memory(self) -> bool:
        """Whether files there are in the node's memory."""
        return self.filesystem in ("tmpfs", "ramfs")


@dataclass(frozen=True)
class NodeFound:
    """One node as a process on it sees it."""

    version: str  # of the runner
    python: str
    host: str
    cores: int
    memory_mb: int
    gpus: Tuple[str, ...] = ()  # device files
    gpu_variables: Mapping[str, str] = field(default_factory=dict)  # as the batch system set them
    gpu_cores: Tuple[Tuple[int, ...], ...] = ()  # near each GPU, in the order of the bus
    disks: Tuple[Disk, ...] = ()
    runtimes: Tuple[str, ...] = ()  # container runtimes on PATH
    podman_runroot: str = ""  # where Podman keeps what runs; "" where it does not say
    has_route: bool = False  # out of the networks that the node is part of
    has_proxy: bool = False


def look(environ: Mapping[str, str], claimed_dir: Optional[str] = None) -> NodeFound:
    """This node. ``claimed_dir``: a directory to look at besides the usual ones."""
    runtimes = _runtimes(environ)
    return NodeFound(
        version=__version__,
        python=platform.python_version(),
        host=socket.gethostname(),
        cores=len(os.sched_getaffinity(0)),
        memory_mb=_memory_mb(),
        gpus=gpu_devices(),
        gpu_variables={name: environ[name] for name in GPU_VARIABLES if name in environ},
        gpu_cores=tuple(tuple(sorted(near)) for near in gpus.cores_near_gpus()),
        disks=tuple(_disk(path) for path in _candidates(environ, claimed_dir)),
        runtimes=runtimes,
        podman_runroot=_podman_runroot(environ) if "podman" in runtimes else "",
        has_route=_has_route(),
        has_proxy=any(environ.get(name) for name in _PROXIES),
    )


def gpu_devices() -> Tuple[str, ...]:
    """The device files of this machine's GPUs, by number."""
    nvidia = [name for name in os.listdir("/dev") if re.fullmatch(r"nvidia\d+", name)]
    try:
        render = [name for name in os.listdir("/dev/dri") if name.startswith("renderD")]
    except OSError:
        render = []
    return tuple(sorted(nvidia or render, key=lambda name: (len(name), name)))


def _runtimes(environ: Mapping[str, str]) -> Tuple[str, ...]:
    path = environ.get("PATH")
    return tuple(name for name, program in RUNTIMES.items() if shutil.which(program, path=path))


def _podman_runroot(environ: Mapping[str, str]) -> str:
    try:
        told = subprocess.run(
            ("podman", "info", "--format", "{{.Store.RunRoot}}"),
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_PODMAN_ANSWERS_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return told.stdout.decode("utf-8", "replace").strip() if told.returncode == 0 else ""


# --- memory: of the machine, or what the control group leaves of it ---


def _memory_mb() -> int:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_memory_limits()]) // 1_000_000


def _memory_limits() -> List[int]:
    found = []
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            found += _limits_above("/sys/fs/cgroup", path, "memory.max")
        elif "memory" in controllers.split(","):
            found += _limits_above("/sys/fs/cgroup/memory", path, "memory.limit_in_bytes")
    return [limit for limit in found if limit < _UNLIMITED]


def _limits_above(root: str, path: str, name: str) -> List[int]:
    found = []
    parts = [part for part in path.split("/") if part]
    for depth in range(len(parts) + 1):
        text = _read("/".join([root, *parts[:depth], name])).strip()
        if text.isdigit():
            found.append(int(text))
    return found


# --- disks ---


def _candidates(environ: Mapping[str, str], claimed: Optional[str]) -> List[str]:
    named = [environ[name] for name in _DISK_VARIABLES if environ.get(name)]
    usual = [os.path.expandvars(path) for path in _DISKS]
    found = [path for path in [*named, *usual] if os.path.isdir(path)]
    asked = [os.path.expandvars(claimed)] if claimed else []
    return list(dict.fromkeys([*asked, *found]))


def _disk(path: str) -> Disk:
    try:
        space = os.statvfs(path)
    except OSError:
        return Disk(path, "", writable=False)
    free_mb = space.f_bavail * space.f_frsize // 1_000_000
    return Disk(path, _filesystem(path), os.access(path, os.W_OK | os.X_OK), free_mb)


def _filesystem(path: str) -> str:
    real = os.path.realpath(path)
    mounts: Dict[str, str] = {}
    for line in _read("/proc/self/mounts").splitlines():
        words = line.split(" ")
        if len(words) > 2:
            mounts[words[1].replace("\\040", " ")] = words[2]
    while real not in mounts and real != "/":
        real = os.path.dirname(real)
    return mounts.get(real, "")


# --- network ---


def _has_route() -> bool:
    for line in _read("/proc/net/route").splitlines()[1:]:
        words = line.split()
        if len(words) > 7 and words[1] == words[7] == "00000000" and words[0] != "lo":
            return True
    for line in _read("/proc/net/ipv6_route").splitlines():
        words = line.split()
        if len(words) > 9 and words[0] == "0" * 32 and words[1] == "00" and words[9] != "lo":
            return True
    return False


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""
