"""Trivial external payloads through everything that is real, beside the floor of starting them.

  scripts/bench/throughput --points N --width W --dir DIR

Prints one JSON line: points, wall and CPU seconds of the whole process tree (central service,
daemon, batch system, runner, payloads; from their start to their end), the same for a C loop of
posix_spawn over the same payloads, and the ratio of CPU per payload. Each payload's working
directory, with its input.json and output.json, stays under DIR.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from common import PAYLOAD, floor, site_text, tree_cpu, write_search
from stack import Stack


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--width", type=int, default=4, help="payloads at the same time")
    parser.add_argument("--dir", type=Path, help="where the working directories stay")
    options = parser.parse_args()
    kept = options.dir or Path(tempfile.mkdtemp(prefix="harvester-throughput-"))
    kept.mkdir(parents=True, exist_ok=True)
    try:
        lowest = floor(options.points, options.width)
        ours = _ours(options.points, options.width, kept.resolve())
    finally:
        if options.dir is None:
            shutil.rmtree(kept, ignore_errors=True)
    ratio = ours["cpu_s"] / lowest["cpu_s"] if lowest else None
    line = {"points": options.points, "width": options.width, **ours, "floor": lowest}
    print(json.dumps({**line, "cpu_ratio": ratio and round(ratio, 2)}))
    return 0


def _ours(points: int, width: int, kept: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="harvester-bench-") as temporary, tree_cpu() as cpu:
        root = Path(temporary)
        with Stack(root, site_text(width, keep=kept)) as stack:
            stack.start_central()
            began = time.monotonic()
            task = stack.submit(write_search(root / "search", points, PAYLOAD))
            stack.start_daemon()
            client = stack.client()

            def finished() -> bool:
                time.sleep(0.5)  # each look costs the service as much as ten points
                return bool(client.show(task)["state"] == "finished")

            stack.wait(finished, 600, "the points did not finish")
            wall = time.monotonic() - began
    return {"wall_s": round(wall, 2), "cpu_s": round(cpu.seconds, 2)}


if __name__ == "__main__":
    sys.exit(main())
