"""Processes of this host as /proc shows them: who has a pid, and whether it still does anything.

A process that was killed keeps its pid until its parent reaps it, for ever where the first process
of a container reaps nobody: such a zombie is dead.
"""

from __future__ import annotations

import os
from pathlib import Path

_STATE, _STARTTIME = 0, 19  # fields 3 and 22 of proc(5) stat, counted behind the command
_DEAD = frozenset("ZXx")


def boot_id() -> str:
    """Names the boot of this host; empty where the kernel does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def process_identity(pid: int) -> str | None:
    """Boot id and start time of a living process of this host; None if none has that pid."""
    fields = _stat(pid)
    if not fields or fields[_STATE] in _DEAD:
        return None
    return f"{boot_id()}:{fields[_STARTTIME]}"


def is_running(pid: int) -> bool:
    """Whether a process of this pid lives. True for another user's that cannot be looked at."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True  # somebody's; our own would answer
    fields = _stat(pid)
    return not fields or fields[_STATE] not in _DEAD


def _stat(pid: int) -> list[str]:
    """The fields behind the command, which may hold blanks and parentheses; none if not shown."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()
