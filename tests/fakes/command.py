"""Entry of every fake command: plays the fault that is set for it, else asks its dialect.

``python -m tests.fakes.command DIALECT CLUSTER_DIRECTORY NAME ARGUMENT...``

A dialect module has PROGRAMS (the names on PATH), COMMANDS (each name, or subcommand of a program
with subcommands, to a function of cluster and arguments that returns the exit code), and what they
say on stderr when nobody answers: DOWN, and LOST when the answer alone is missing.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import signal
import sys
import time
from pathlib import Path

from tests.fakes.engine import opened

_SLOW_S = 0.5


def main(dialect_name: str, directory: Path, name: str, argv: list[str]) -> int:
    dialect = importlib.import_module(f"tests.fakes.{dialect_name}_dialect")
    if name not in dialect.COMMANDS:
        name, *argv = argv
    fault = _fault(directory, name)
    if fault == "down":
        text, code = dialect.DOWN[name]
        print(text, file=sys.stderr)
        return int(code)
    if fault == "hang":
        signal.pause()
    if fault == "slow":
        time.sleep(_SLOW_S)
    if fault == "empty":
        return 0
    last = directory / f"{name}.last"
    if fault == "stale":
        sys.stdout.write(last.read_text())
        return 0
    answer = io.StringIO()
    with opened(directory) as cluster, contextlib.redirect_stdout(answer):
        code = dialect.COMMANDS[name](cluster, argv)
    text = answer.getvalue()
    last.write_text(text)
    if fault == "garbage":
        text = "Welcome to the cluster!\n* maintenance on Tuesday *\n" + text
    if fault == "partial":
        text = text[: -len(text) // 3]
    sys.stdout.write(text)
    if fault == "lost":
        print(dialect.LOST[name], file=sys.stderr)
    return 1 if fault == "lost" else int(code)


def _fault(directory: Path, name: str) -> str:
    with contextlib.suppress(FileNotFoundError):
        return str(json.loads((directory / "faults.json").read_text()).get(name, ""))
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4:]))
