"""From output.json closed on the node to the loss durable in the central service, local disk.

  scripts/bench/latency --points N

Prints one latency in milliseconds a line, then on stderr the median and the 99th percentile. The
payload writes the time into its message just before it closes output.json; the service keeps the
instant at which it settled the point.
"""

from __future__ import annotations

import argparse
import sqlite3
import statistics
import sys
import tempfile
from pathlib import Path

from common import site_text, write_search
from stack import Stack

# Sleeping a little spreads the payloads, so that single results are timed, not batches.
COMMAND = 'sleep 0.3; printf \'{"loss": 1, "message": "%s"}\' $(date +%s.%N) > output.json'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--width", type=int, default=2, help="payloads at the same time")
    options = parser.parse_args()
    latencies = sorted(_latencies(options.points, options.width))
    for latency in latencies:
        print(f"{latency:.1f}")
    median = statistics.median(latencies)
    high = latencies[min(len(latencies) - 1, int(0.99 * len(latencies)))]
    print(f"median {median:.1f} ms, 99th percentile {high:.1f} ms", file=sys.stderr)
    return 0


def _latencies(points: int, width: int) -> list[float]:
    with tempfile.TemporaryDirectory(prefix="harvester-bench-") as temporary:
        root = Path(temporary)
        with Stack(root, site_text(width)) as stack:
            stack.start_central()
            task = stack.submit(write_search(root / "search", points, COMMAND))
            stack.start_daemon()
            client = stack.client()
            stack.wait(
                lambda: client.show(task)["state"] == "finished", 600, "the points did not finish"
            )
            database = sqlite3.connect(stack.state_home / "harvester" / "central.db")
            rows = database.execute("SELECT message, settled_at FROM points").fetchall()
            database.close()
    return [1000 * (settled - float(written)) for written, settled in rows]


if __name__ == "__main__":
    sys.exit(main())
