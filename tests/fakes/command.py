"""Entry of every fake command: plays the fault that is set for it, else asks its dialect.

``python -m tests.fakes.command CLUSTER_DIRECTORY NAME ARGUMENT...``
"""

from __future__ import annotations

import contextlib
import io
import json
import signal
import sys
from pathlib import Path

from tests.fakes import slurm_dialect
from tests.fakes.engine import opened

_DOWN = "Unable to contact slurm controller (connect failure)"
_WORDS = {
    "sbatch": f"sbatch: error: Batch job submission failed: {_DOWN}",
    "squeue": f"slurm_load_jobs error: {_DOWN}",
    "sacct": "sacct: error: Problem talking to the database: Connection refused",
    "scancel": f"scancel: error: Kill job error on job id 1: {_DOWN}",
}


def main(directory: Path, name: str, argv: list[str]) -> int:
    fault = _fault(directory, name)
    if fault == "down":
        print(_WORDS[name], file=sys.stderr)
        return 1
    if fault == "hang":
        signal.pause()
    if fault == "empty":
        return 0
    answer = io.StringIO()
    with opened(directory) as cluster, contextlib.redirect_stdout(answer):
        code = slurm_dialect.COMMANDS[name](cluster, argv)
    text = answer.getvalue()
    if fault == "garbage":
        text = "Welcome to the cluster!\n* maintenance on Tuesday *\n" + text
    if fault == "partial":
        text = text[: -len(text) // 3]
    sys.stdout.write(text)
    # "lost": the deed is done, but the caller is told that nobody answered.
    if fault == "lost":
        print(f"{name}: error: Socket timed out on send/recv operation", file=sys.stderr)
    return 1 if fault == "lost" else code


def _fault(directory: Path, name: str) -> str:
    with contextlib.suppress(FileNotFoundError):
        return str(json.loads((directory / "faults.json").read_text()).get(name, ""))
    return ""


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
