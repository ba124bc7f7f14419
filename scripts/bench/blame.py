"""Whom failures are blamed on: our attribution beside the plain rule of three tries.

  scripts/bench/blame [--nodes 100] [--points 1000] [--seed 1]

A simulated fleet with 2 % bad nodes and a search with 1 % bad points; the production daemon runs it
under a fake clock. Prints one JSON line: precision and recall of the points given the penalty, of
single charges and of the nodes left alone, good points lost and runs needed, for both rules.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from harvester.simulation.fleet import Fleet, with_attribution, with_retries


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--nodes-per-job", type=int, default=1)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    fleet = Fleet(
        nodes=options.nodes,
        nodes_per_job=options.nodes_per_job,
        points=options.points,
        seed=options.seed,
    )
    with tempfile.TemporaryDirectory(prefix="harvester-bench-") as temporary:
        ours = with_attribution(fleet, Path(temporary) / "index.sqlite")
    answer = {
        "fleet": asdict(fleet),
        "ours": asdict(ours),
        "three_tries": asdict(with_retries(fleet)),
    }
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
