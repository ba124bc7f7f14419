"""An sshd of our own on loopback: the login node of a site that is driven from another host.

It has its own host key, port and list of keys, and touches nothing of the machine's.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.support import wait_until

SSHD = "/usr/sbin/sshd"

_SERVER = """
Port {port}
ListenAddress 127.0.0.1
HostKey {home}/host_key
PidFile {home}/sshd.pid
AuthorizedKeysFile {home}/authorized_keys
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
{settings}
"""
_CLIENT = """
Host far
    HostName 127.0.0.1
    Port {port}
    User {user}
    IdentityFile {home}/key
    IdentitiesOnly yes
    UserKnownHostsFile {home}/known_hosts
    GlobalKnownHostsFile /dev/null
"""


def why_no_ssh() -> str | None:
    """Why there can be no login node on loopback here; None if there can."""
    missing = [name for name in (SSHD, "ssh", "rsync", "ssh-keygen") if not shutil.which(name)]
    return f"{', '.join(missing)} missing; run scripts/testbed/install" if missing else None


@dataclass
class LoginNode:
    """The running server. ``far`` is its name in ``ssh_config``."""

    home: Path
    port: int
    ssh_config: Path
    host: str = "far"
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Listen again."""
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        command = (SSHD, "-D", "-f", str(self.home / "sshd_config"), "-E", str(self.home / "log"))
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        wait_until(self._listens, 30)

    def stop(self) -> None:
        """Take no more connections; those that are open stay. Calling twice is safe."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            process.wait(30)

    def end(self) -> None:
        """End everything, connections that are open included."""
        process = self._process
        sessions = [] if process is None else psutil.Process(process.pid).children(recursive=True)
        self.stop()
        for session in sessions:
            with contextlib.suppress(psutil.NoSuchProcess):
                session.kill()

    def refuse_keys(self) -> None:
        """Let nobody log in any more; connections that are open stay."""
        (self.home / "authorized_keys").rename(self.home / "authorized_keys.refused")

    def accept_keys(self) -> None:
        """Take back ``refuse_keys``."""
        (self.home / "authorized_keys.refused").rename(self.home / "authorized_keys")

    def kill_connection(self, control_socket: Path) -> None:
        """Kill the process that holds a connection, as a crash or an administrator would."""
        done = subprocess.run(
            ["ssh", "-F", self.ssh_config, "-S", control_socket, "-O", "check", self.host],
            capture_output=True,
            text=True,
            check=True,
        )
        pid = int(done.stderr.partition("pid=")[2].rstrip(")\r\n"))
        os.kill(pid, signal.SIGKILL)

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.home / "log").read_text()
        with socket.socket() as attempt:
            return attempt.connect_ex(("127.0.0.1", self.port)) == 0


@contextmanager
def login_node(settings: Mapping[str, str] | None = None) -> Iterator[LoginNode]:
    """A login node for this user; ``settings`` are further ones of sshd."""
    home = Path(tempfile.mkdtemp(prefix="login-node-"))
    port = _free_port()
    for name in ("host_key", "key"):
        command = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / name))
        subprocess.run(command, check=True)
    shutil.copy(home / "key.pub", home / "authorized_keys")
    public = (home / "host_key.pub").read_text()
    (home / "known_hosts").write_text(f"[127.0.0.1]:{port} {public}")
    lines = "\n".join(f"{name} {value}" for name, value in (settings or {}).items())
    (home / "sshd_config").write_text(_SERVER.format(home=home, port=port, settings=lines))
    config = home / "ssh_config"
    config.write_text(_CLIENT.format(home=home, port=port, user=getpass.getuser()))
    node = LoginNode(home, port, config)
    try:
        node.start()
        yield node
    finally:
        node.end()
        shutil.rmtree(home, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
