"""One ssh connection: opened by a person or by us, looked at, closed; and how long it lasts.

The process that holds it is OpenSSH's own (``ControlMaster``); it outlives whoever started it.
Beside its socket lies a small record of when it was opened.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from harvester import paths
from harvester.alone import held_alone
from harvester.batch.commands import run_command
from harvester.errors import BatchUnavailable, Unavailable
from harvester.quantities import format_duration, format_instant
from harvester.remote import login
from harvester.site import Remote
from payload_runner.files import RealFiles, require_private_dir

_CHECK_S = 10.0
# Names, keys, a slow login node: longer than ssh's own limit for the connection alone.
_OPEN_S = 3 * login.CONNECT_TIMEOUT_S
_LOG_BYTES = 500
_NAME_LENGTH, _FRESH_BYTES = 16, 4


class NoConnection(Unavailable):
    """The site cannot be reached now; says what a person can do."""


@dataclass(frozen=True, slots=True)
class Opened:
    """When the connection was opened, in seconds since the epoch, and when it is to end."""

    at: float
    until: float | None

    def warning(self, now: float, warn_before_s: float) -> str | None:
        """What is to be announced of its end at ``now``; None if there is time."""
        if self.until is None or now < self.until - warn_before_s:
            return None
        if now >= self.until:
            return f"was to end at {format_instant(self.until)}"
        return f"ends at {format_instant(self.until)}, in {format_duration(self.until - now)}"


class Link:
    """The connection of one login. Safe to use from several threads and processes."""

    def __init__(self, remote: Remote, directory: Path, now: Callable[[], float]) -> None:
        """``directory``: a private one (0700) for the socket and what belongs to it."""
        self.remote = remote
        name = login.connection_name(remote)
        self.socket = directory / name
        self._record = directory / f"{name}.json"
        self._log = directory / f"{name}.log"
        self._lock = directory / f"{name}.lock"
        self._now = now

    def is_open(self) -> bool:
        """Whether the process that holds the connection answers."""
        if not self.socket.exists():
            return False
        command = login.control_command(self.remote, self.socket, "check")
        with contextlib.suppress(BatchUnavailable):
            return run_command(command, timeout_s=_CHECK_S, environment=os.environ).returncode == 0
        return False

    def opened(self) -> Opened | None:
        """When the connection was opened; None if nobody knows."""
        try:
            found = json.loads(self._record.read_text())
            at, until = float(found["at"]), found["until"]
            return Opened(at, None if until is None else float(until))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def ensure(self) -> None:
        """Have the connection open, if that needs no person.

        Raises:
            NoConnection: it is not, with the reason.
        """
        if self.is_open():
            return
        if self.remote.second_factor:
            raise NoConnection(
                f"the connection to {self.remote.host} is not open, and only a person can open "
                "it; run: harvester site connect SITE"
            )
        self.open(by_person=False)

    def open(self, *, by_person: bool) -> None:
        """Open the connection anew; one that is open gives way when its last session has ended.

        ``by_person``: passwords, codes and host keys may be asked for on the terminal.

        Raises:
            NoConnection: with what ssh says.
        """
        with held_alone(self._lock):
            if not by_person and self.is_open():
                return  # somebody else was first
            # Never a name again: the process removes the one it was given when it leaves.
            fresh = self.socket.with_name(f"{self.socket.name}.{secrets.token_hex(_FRESH_BYTES)}")
            self._log.unlink(missing_ok=True)
            self._start(fresh, by_person=by_person)
            if self.is_open():
                self._control("stop")
            # The process goes on listening under the name that its socket has now.
            fresh.replace(self.socket)
            self._write_record()

    def close(self) -> bool:
        """Close the connection and everything that goes over it; whether there was one."""
        with held_alone(self._lock):
            was_open = self.is_open()
            if was_open:
                self._control("exit")
            for path in (self.socket, self._record):
                path.unlink(missing_ok=True)
        return was_open

    def _start(self, socket: Path, *, by_person: bool) -> None:
        command = login.open_command(self.remote, socket, self._log, batch=not by_person)
        try:
            if by_person:
                # No time limit: the person types.
                code = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
            else:
                done = run_command(command, timeout_s=_OPEN_S, environment=os.environ)
                code = done.returncode
        except (BatchUnavailable, OSError) as error:
            raise NoConnection(f"cannot connect to {self.remote.host}: {error}") from error
        if code != 0 or not socket.exists():
            raise NoConnection(f"cannot connect to {self.remote.host}: {self._last_words()}")

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            words = " ".join(self._log.read_text(errors="replace").split())
            if words:
                return f"ssh says: {words[-_LOG_BYTES:]}"
        return "ssh did not say why"

    def _control(self, word: str) -> None:
        command = login.control_command(self.remote, self.socket, word)
        with contextlib.suppress(BatchUnavailable):
            run_command(command, timeout_s=_CHECK_S, environment=os.environ)

    def _write_record(self) -> None:
        at, session_s = self._now(), self.remote.session_s
        opened = Opened(at, None if session_s is None else at + session_s)
        text = json.dumps({**_fields(opened), "host": self.remote.host})
        RealFiles().replace(self._record, f"{text}\n".encode())


def link_directory(environ: paths.Environment) -> Path:
    """The private directory for control sockets, made if it is missing.

    Below the state directory, unless a socket's path would get too long there.

    Raises:
        UnsafePath: it is there and open to others.
    """
    directory = paths.state_home(environ) / "links"
    if (
        len(os.fsencode(directory)) + 1 + _NAME_LENGTH + 1 + 2 * _FRESH_BYTES
        > login.SOCKET_PATH_BYTES
    ):
        directory = Path(f"/var/tmp/{paths.APPLICATION}-{os.getuid()}") / "links"  # checked below  # nosec B108
    RealFiles().make_dir(directory)
    require_private_dir(directory)
    return directory


def _fields(opened: Opened) -> dict[str, object]:
    return asdict(opened)
