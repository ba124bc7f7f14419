"""A private PostgreSQL cluster on a Unix socket, for tests. Nothing listens on the network."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

_OWNER = "postgres"  # PostgreSQL refuses to run as root


def _programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


def why_not() -> str:
    """Why no cluster can be started here; empty if one can."""
    if _programs() is None:
        return "PostgreSQL's server is not installed (Debian: apt-get install postgresql)"
    if os.getuid() == 0 and shutil.which("setpriv") is None:
        return "running as root without setpriv: PostgreSQL refuses to run as root"
    return ""


class Cluster:
    """A cluster that lives as long as the ``with`` block."""

    def __init__(self, directory: Path) -> None:
        del directory  # a socket's path is at most 107 bytes, and must be open to the owner
        self._programs = _programs()
        self._home = Path(tempfile.mkdtemp(prefix="hpg", dir="/var/tmp"))
        self._made = 0

    def __enter__(self) -> Cluster:
        if os.getuid() == 0:
            owner = pwd.getpwnam(_OWNER)
            os.chown(self._home, owner.pw_uid, owner.pw_gid)
        self._run("initdb", "-D", str(self._data), "-U", "harvester", "--auth=trust", "-N")
        options = f"-c listen_addresses= -c unix_socket_directories={self._home} -c fsync=off"
        self._run(
            "pg_ctl", "-D", str(self._data), "-w", "-l", str(self._log), "-o", options, "start"
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._run("pg_ctl", "-D", str(self._data), "-w", "-m", "immediate", "stop")
        shutil.rmtree(self._home)

    def new_database(self) -> str:
        """The URL of a new, empty database."""
        self._made += 1
        name = f"test{self._made}"
        self._run("createdb", "-h", str(self._home), "-U", "harvester", name)
        return f"postgresql://harvester@/{name}?host={quote(str(self._home), safe='')}"

    @property
    def _data(self) -> Path:
        return self._home / "data"

    @property
    def _log(self) -> Path:
        return self._home / "log"

    def _run(self, program: str, *arguments: str) -> None:
        assert self._programs is not None
        command: Sequence[str] = (str(self._programs / program), *arguments)
        if os.getuid() == 0:
            command = (
                "setpriv",
                f"--reuid={_OWNER}",
                f"--regid={_OWNER}",
                "--init-groups",
                *command,
            )
        done = subprocess.run(
            command,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if program != "pg_ctl" else subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, f"{program} failed: {done.stdout!r}"
