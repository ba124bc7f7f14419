"""What ends the processes of somebody who was killed, an agent or a leader for instance."""

from __future__ import annotations

import contextlib
import os
from typing import Sequence

from payload_runner.processes import AGENT_MARKER, RESET_SIGNALS

# A word on the pipe means a proper leave; without one its other end was closed by a sudden death.
_AWAIT = "read -r word && exit 0\n"
_KILL_MARKED = r"""
for round in 1 2 3 4 5; do
  for file in /proc/[0-9]*/environ; do
    if grep -qaF "$0" "$file" 2>/dev/null; then
      pid=${file#/proc/}; kill -9 "${pid%/environ}" 2>/dev/null
    fi
  done
done
"""
_END = """kill -TERM "$@" 2>/dev/null\n"""


class Guardian:
    """A small shell that outlives its killed maker just long enough to do one thing."""

    def __init__(self, script: str, *arguments: str) -> None:
        """``script`` is run when the maker dies, with ``arguments`` from ``$0`` on.

        Raises:
            OSError: it cannot be started.
        """
        read_end, self._write_end = os.pipe()
        try:
            self.pid = os.posix_spawn(
                "/bin/sh",
                ("/bin/sh", "-c", _AWAIT + script, *arguments),
                {"PATH": "/usr/bin:/bin"},
                file_actions=(
                    (os.POSIX_SPAWN_DUP2, read_end, 0),
                    (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0),
                ),
                setpgroup=0,
                setsigdef=RESET_SIGNALS,
            )
        finally:
            os.close(read_end)

    def dismiss(self) -> None:
        """Send it away; all is the caller's business again. Calling twice is safe."""
        end, self._write_end = self._write_end, -1
        if end >= 0:
            with contextlib.suppress(OSError):
                os.write(end, b"leave\n")
            os.close(end)


def of_payloads(agent: str) -> Guardian:
    """Kills the payloads of an agent, which it knows by ``HARVESTER_AGENT=<nonce>``.

    Nothing else would: a payload is in a session of its own, and the death signal of Linux is
    cleared when a child forks. Raises OSError.
    """
    return of_marked(f"{AGENT_MARKER}={agent}")


def of_marked(entry: str) -> Guardian:
    """Kills what has ``entry`` (``NAME=value``) in its initial environment. Raises OSError."""
    return Guardian(_KILL_MARKED, entry)


def of_agents(pids: Sequence[int]) -> Guardian:
    """Asks agents, or the launcher that passes it on to them, to end when their leader was killed.

    Over file logs they would notice only when the silence has lasted longer than a shared file
    system stalls. Raises OSError.
    """
    return Guardian(_END, "guardian", *map(str, pids))
