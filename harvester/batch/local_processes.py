"""Processes as /proc shows them: who they are, who descends from whom, who carries a mark.

A pid alone is no identity: it is used again. Signals go through a pidfd that was checked to be
the process meant. Linux 5.3 or newer (pidfd_open).
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_STARTTIME = 19  # field 22 of proc(5) stat, counted behind the command's closing parenthesis
_PPID = 1


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process for ever: pid, start in clock ticks since boot, and which boot."""

    pid: int = 0
    started_ticks: int = 0
    boot_id: str = ""


def identify(pid: int) -> ProcessIdentity | None:
    """Who has this pid now; None if nobody."""
    fields = _stat(pid)
    return None if fields is None else ProcessIdentity(pid, int(fields[_STARTTIME]), _boot_id())


def open_process(identity: ProcessIdentity) -> int | None:
    """A pidfd of exactly this process, which the caller closes; None if it is gone."""
    if identity.pid <= 0:
        return None
    try:
        fd = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return None
    if identify(identity.pid) != identity:
        os.close(fd)
        return None
    return fd


def send_signal(identity: ProcessIdentity, number: signal.Signals) -> bool:
    """Signal exactly this process; False if it is gone."""
    fd = open_process(identity)
    if fd is None:
        return False
    try:
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


def children(pid: int) -> tuple[ProcessIdentity, ...]:
    """The direct children of ``pid`` at this moment."""
    return tuple(_by_parent().get(pid, ()))


def descendants(roots: Iterable[int]) -> tuple[ProcessIdentity, ...]:
    """All processes below ``roots`` at this moment, the roots themselves left out."""
    by_parent = _by_parent()
    found: list[ProcessIdentity] = []
    waiting = list(roots)
    while waiting:
        below = by_parent.pop(waiting.pop(), [])
        found += below
        waiting += [child.pid for child in below]
    return tuple(found)


def marked(entry: str) -> tuple[ProcessIdentity, ...]:
    """This user's processes whose initial environment holds ``entry`` ("NAME=value")."""
    wanted = b"\0" + os.fsencode(entry) + b"\0"
    found = []
    for pid in _pids():
        with contextlib.suppress(OSError):  # another user's, or gone
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            identity = identify(pid) if wanted in b"\0" + environment else None
            if identity is not None and pid != os.getpid():
                found.append(identity)
    return tuple(found)


def _by_parent() -> dict[int, list[ProcessIdentity]]:
    found: dict[int, list[ProcessIdentity]] = {}
    for pid in _pids():
        fields = _stat(pid)
        if fields is not None:
            identity = ProcessIdentity(pid, int(fields[_STARTTIME]), _boot_id())
            found.setdefault(int(fields[_PPID]), []).append(identity)
    return found


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:  # gone, or another user's under hidepid
        return None
    # The command's name stands in parentheses and may hold blanks and parentheses itself.
    return text[text.rindex(b")") + 2 :].decode("ascii").split()


@functools.cache
def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
