"""The ssh command lines that reach a site's login node. Pure.

Every one of them goes through the control socket of one connection that is open already. Without
it ssh would log in anew, which a second factor turns into a prompt that nobody answers, or into a
locked account: ``ProxyCommand`` makes that way a dead end.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from harvester.site import Remote

# A dead network is noticed after a minute, and NAT tables do not forget us.
_ALIVE = ("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4")
_CLOSED = ("-a", "-x", "-T", "-o", "ClearAllForwardings=yes", "-o", "PermitLocalCommand=no")
_QUIET = ("-o", "BatchMode=yes", "-n")
CONNECT_TIMEOUT_S = 20
# A socket's address has 108 bytes, of which ssh wants 17 while it binds one.
SOCKET_PATH_BYTES = 90
# What stands before the exit code of a command that came to its end on the other side.
_END = "harvester-remote-exit"
# timeout(1) kills with SIGKILL what SIGTERM did not end for so long.
_KILL_AFTER_S = 5


def connection_name(remote: Remote) -> str:
    """Names the connection: sites with the same login share it."""
    known = f"{remote.host}\0{remote.ssh_config or ''}"
    return hashlib.sha256(known.encode()).hexdigest()[:16]


def open_command(remote: Remote, socket: Path, log: Path, *, batch: bool) -> tuple[str, ...]:
    """Opens the connection, and leaves a process in the background that holds it."""
    quiet = _QUIET if batch else ()
    connect = ("-o", f"ConnectTimeout={CONNECT_TIMEOUT_S}", "-E", str(log))
    master = ("-f", "-N", "-o", "ControlMaster=yes", "-o", "ControlPersist=no")
    return (*_ssh(remote, socket), *_CLOSED, *_ALIVE, *connect, *quiet, *master, "--", remote.host)


def control_command(remote: Remote, socket: Path, word: str) -> tuple[str, ...]:
    """Asks the process that holds the connection: ``check``, ``stop`` (after use) or ``exit``."""
    return (*_ssh(remote, socket), "-O", word, "--", remote.host)


def session_words(remote: Remote, socket: Path) -> tuple[str, ...]:
    """``ssh`` for one session over the open connection, without host and command."""
    only = ("-o", "ControlMaster=no", "-o", "ProxyCommand=false", "-o", "BatchMode=yes")
    return (*_ssh(remote, socket), *_CLOSED, *only)


def session_command(remote: Remote, socket: Path, line: str) -> tuple[str, ...]:
    """One session that has the login shell run ``line``."""
    return (*session_words(remote, socket), "--", remote.host, line)


def posix_line(script: str) -> str:
    """A line that any login shell understands, csh included, and that runs a POSIX script."""
    return f"exec /bin/sh -c {shlex.quote(script)}"


def command_script(
    argv: Sequence[str], environment: Mapping[str, str], prologue: Sequence[str], limit_s: float
) -> str:
    """A script that runs ``argv`` and then says on stderr how it ended; see ``split_end``.

    What the prologue prints is none of the command's answer. The limit ends the command there
    should nobody be left here to do it.
    """
    settings = [f"{name}={shlex.quote(value)}" for name, value in sorted(environment.items())]
    limit = ("timeout", "-k", str(_KILL_AFTER_S), f"{limit_s:g}")
    command = " ".join(["env", *settings, *limit, shlex.join(argv), "</dev/null"])
    before = f"{{ {'; '.join(prologue)}; }} >&2; " if prologue else ""
    return f"{before}{command}; printf '\\n{_END} %d\\n' $? >&2"


def split_end(stderr: str) -> tuple[str, int] | None:
    """The command's own stderr and exit code; None if it never came to its end."""
    text, found, code = stderr.rpartition(f"\n{_END} ")
    if not found or not code.strip().isdigit():
        return None
    return text, int(code)


def serve_script(remote: Remote, runner: Path, spool: Path) -> str:
    """A script that serves the spool's files on its standard input and output."""
    words = (remote.python, str(runner), "files", str(spool))
    before = f"{{ {'; '.join(remote.prologue)}; }} >&2; " if remote.prologue else ""
    return f"{before}exec {shlex.join(words)}"


def install_script(runner: Path) -> str:
    """A script that puts its standard input at ``runner``, whole or not at all."""
    part = shlex.quote(f"{runner}.part")
    directory = shlex.quote(str(runner.parent))
    target = shlex.quote(str(runner))
    return f"umask 077 && mkdir -p {directory} && cat >{part} && mv -f {part} {target}"


def _ssh(remote: Remote, socket: Path) -> tuple[str, ...]:
    config = () if remote.ssh_config is None else ("-F", str(remote.ssh_config))
    # ssh expands what follows a percent sign.
    return ("ssh", *config, "-S", str(socket).replace("%", "%%"))
