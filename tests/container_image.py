"""A small root file system made of this machine's own programs, and the runtimes to run it with."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

PROGRAMS = ("sh", "cat", "env", "head", "id", "ls", "pwd", "setsid", "sleep", "tail", "touch")
NAME = "harvester/tiny:1"  # as a task names it, after docker://
FILE = "harvester_tiny_1"
SEARCHED = {"bwrap": "bwrap", "charliecloud": "ch-run", "podman": "podman"}


def make_root(root: Path, *more: str) -> Path:
    """Fill ``root``: a shell and a few programs (and ``more``) with their libraries, 4 MB."""
    for name in ("bin", "lib", "lib64", "sbin"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for name in (
        "dev",
        "etc",
        "home",
        "proc",
        "root",
        "run",
        "srv/workDir",
        "sys",
        "tmp",
        "var/tmp",
    ):
        (root / name).mkdir(parents=True)
    for name in ("passwd", "group", "hosts", "resolv.conf"):
        (root / "etc" / name).touch()
    found = [shutil.which(program) for program in (*PROGRAMS, *more)]
    for path in {path for path in found if path} | _libraries([path for path in found if path]):
        merged = path if path.startswith("/usr/") else f"/usr{path}"
        target = root / merged.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return root


def _libraries(programs: list[str]) -> set[str]:
    told = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"(/\S+) \(0x", told))


class Podman:
    """Podman with images of its own, as ``containers.conf`` has to say it on this machine.

    Without CAP_SYS_RESOURCE its own limits are refused, and crun knows no mixed control groups.
    Its files lie in a directory of a short name until ``close``: below one of some 30 characters,
    Podman 4.3 misses the end of its containers (their sockets' names grow too long).
    """

    def __init__(self) -> None:
        self._directory = directory = Path(tempfile.mkdtemp(prefix="pm", dir="/tmp"))
        storage, engine = directory / "storage.conf", directory / "containers.conf"
        storage.write_text(
            f'[storage]\ndriver = "vfs"\ngraphroot = "{directory}/images"\n'
            f'runroot = "{directory}/run"\n'
        )
        engine.write_text(
            '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]\n'
            '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "none"\n'
        )
        self.environment: Mapping[str, str] = {
            "CONTAINERS_STORAGE_CONF": str(storage),
            "CONTAINERS_CONF": str(engine),
        }

    def run(self, *words: str) -> str:
        """A podman command's standard output."""
        environ = {**os.environ, **self.environment}
        done = subprocess.run(["podman", *words], capture_output=True, text=True, env=environ)
        assert done.returncode == 0, f"podman {words}: {done.stderr}"
        return done.stdout

    def close(self) -> None:
        """Remove all of it, what is left of its containers included."""
        mounted = Path("/proc/self/mounts").read_text().split()
        for place in (word for word in mounted if word.startswith(f"{self._directory}/")):
            subprocess.run(["umount", place], check=False)
        shutil.rmtree(self._directory, ignore_errors=True)

    def add(self, root: Path, name: str) -> None:
        """Make an image of a root file system."""
        packed = root.parent / f"{root.name}.tar"
        subprocess.run(["tar", "-C", root, "-cf", packed, "."], check=True)
        self.run("import", "--quiet", str(packed), name)
        packed.unlink()


def require(runtime: str, root: Path, podman: Podman | None = None) -> None:
    """Skip, saying why, where a runtime is missing or may not make namespaces."""
    program = SEARCHED[runtime]
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed; run scripts/testbed/install")
    words = {
        "bwrap": ("bwrap", "--ro-bind", str(root), "/", "--unshare-pid", "/bin/sh", "-c", ":"),
        "charliecloud": ("ch-run", str(root), "--", "/bin/sh", "-c", ":"),
        "podman": ("podman", "run", "--rm", "--network", "host", NAME, "/bin/sh", "-c", ":"),
    }[runtime]
    environ = {"USER": "root", **os.environ, **(podman.environment if podman else {})}
    tried = subprocess.run(words, capture_output=True, text=True, env=environ)
    if tried.returncode != 0:
        pytest.skip(f"{program} runs no container here: {tried.stderr.strip()}")
