"""Start-up time of the command line: what a person waits for before anything is done.

  scripts/bench/startup [--runs 21]

Prints one JSON line: for `--help`, `--version` and `status` the median wall and CPU milliseconds of
a process, beside those of an interpreter that does nothing (the floor).
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
from collections.abc import Sequence
from pathlib import Path

COMMANDS = (("--help",), ("--version",), ("status",))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=21, help="processes per command (default 21)")
    runs = parser.parse_args().runs
    harvester = str(Path(sys.executable).parent / "harvester")
    with tempfile.TemporaryDirectory(prefix="harvester-bench-") as temporary:
        environment = {**os.environ, "XDG_STATE_HOME": temporary}
        found = {"python": _measure((sys.executable, "-c", ""), environment, runs)}
        for arguments in COMMANDS:
            found[" ".join(arguments)] = _measure((harvester, *arguments), environment, runs)
    print(json.dumps({"runs": runs, "startup_ms": found}))
    return 0


def _measure(command: Sequence[str], environment: dict[str, str], runs: int) -> dict[str, float]:
    wall, cpu = [], []
    _run(command, environment)  # compiles and warms the file cache
    for _ in range(runs):
        before, began = _children_cpu_s(), time.monotonic()
        _run(command, environment)
        wall.append(time.monotonic() - began)
        cpu.append(_children_cpu_s() - before)
    return {
        "wall": round(1000 * statistics.median(wall), 1),
        "cpu": round(1000 * statistics.median(cpu), 1),
    }


def _run(command: Sequence[str], environment: dict[str, str]) -> None:
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    sys.exit(main())
