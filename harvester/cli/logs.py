"""Log lines of long-running commands: standard error, as the place that keeps them likes them.

What payloads, services and batch systems say comes into lines as it is; none of it reaches a
terminal as a command.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping

from harvester.views.text import clean_lines

_PRIORITIES = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}


def set_up_logs(verbose: int, environ: Mapping[str, str]) -> None:
    """Log to standard error: INFO and above, with -v everything. Call once per process."""
    handler = logging.StreamHandler(sys.stderr)
    # journald sets the time itself, and reads the level from a prefix (sd-daemon(3)).
    handler.setFormatter(_Journal() if "JOURNAL_STREAM" in environ else _Plain())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.getLogger("urllib3").setLevel(logging.INFO)


class _Plain(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return clean_lines(super().format(record))


class _Journal(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        priority = _PRIORITIES.get(record.levelname, 6)
        # Each line of a traceback needs the prefix.
        lines = clean_lines(super().format(record)).splitlines()
        return "\n".join(f"<{priority}>{line}" for line in lines)
