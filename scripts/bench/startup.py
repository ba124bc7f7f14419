"""Start-up time of the command line: what a person waits for before anything is done.

  scripts/bench/startup [--runs 21]

Prints one JSON line: for `--help`, `--version` and `status` the wall and CPU milliseconds of a
process (minimum and median), beside those of an interpreter that does nothing and of one that only
imports click (the floors). On a busy machine only the minimum of the CPU time means something.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

COMMANDS = (("--help",), ("--version",), ("status",))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=21, help="processes per command (default 21)")
    runs = parser.parse_args().runs
    harvester = str(Path(sys.executable).parent / "harvester")
    with tempfile.TemporaryDirectory(prefix="harvester-bench-") as temporary:
        environment = {**os.environ, "XDG_STATE_HOME": temporary}
        commands = {
            "python": (sys.executable, "-c", ""),
            "click": (sys.executable, "-c", "import click"),
            **{" ".join(arguments): (harvester, *arguments) for arguments in COMMANDS},
        }
        found = _measure(commands, environment, runs)
    print(json.dumps({"runs": runs, "startup_ms": found}))
    return 0


def _measure(
    commands: Mapping[str, Sequence[str]], environment: dict[str, str], runs: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Each command in turn, ``runs`` times over, so that all see the same machine."""
    wall: dict[str, list[float]] = {name: [] for name in commands}
    cpu: dict[str, list[float]] = {name: [] for name in commands}
    for command in commands.values():
        _run(command, environment)  # compiles and warms the file cache
    for _ in range(runs):
        for name, command in commands.items():
            before, began = _children_cpu_s(), time.monotonic()
            _run(command, environment)
            wall[name].append(time.monotonic() - began)
            cpu[name].append(_children_cpu_s() - before)
    return {name: {"wall": _ms(wall[name]), "cpu": _ms(cpu[name])} for name in commands}


def _ms(seconds: Sequence[float]) -> dict[str, float]:
    return {
        "min": round(1000 * min(seconds), 1),
        "median": round(1000 * statistics.median(seconds), 1),
    }


def _run(command: Sequence[str], environment: dict[str, str]) -> None:
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    sys.exit(main())
