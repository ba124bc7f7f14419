"""Tells systemd that a service is ready and alive: sd_notify(3) in a few lines.

Does nothing where no service manager asks for it (NOTIFY_SOCKET is not set).
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping

MANAGERS_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class ServiceManager:
    """The service manager's socket; a message that cannot be sent is dropped.

    ``monotonic`` gives seconds for spacing the watchdog's messages.
    """

    def __init__(
        self, environ: Mapping[str, str], pid: int, monotonic: Callable[[], float]
    ) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._monotonic = monotonic
        self._every_s = _watchdog_every_s(environ, pid)
        self._fed_at: float | None = None

    def ready(self, status: str) -> None:
        """The service does its work now."""
        self._send(f"READY=1\nSTATUS={status}")

    def reloading(self) -> None:
        """The service reads its configuration anew; ``ready`` follows."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={int(self._monotonic() * 1e6)}")

    def stopping(self) -> None:
        """The service is on its way out."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Feed the watchdog; call it whenever a decision was made, it spaces the messages."""
        now = self._monotonic()
        if self._every_s is None:
            return
        if self._fed_at is None or now - self._fed_at >= self._every_s:
            self._fed_at = now
            self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        # "@" stands for the NUL of Linux's abstract addresses.
        address = f"\0{self._address[1:]}" if self._address[0] == "@" else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as link:
                link.connect(address)
                link.send(message.encode())
        except OSError:
            return  # a lost message must not end the work that it reports


def _watchdog_every_s(environ: Mapping[str, str], pid: int) -> float | None:
    limit_us, meant_for = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not limit_us.isdigit() or (meant_for and meant_for != str(pid)):
        return None
    return int(limit_us) / 1e6 / 3
