"""What the benchmarks share: the stack, a trivial search, and the CPU time of a process tree."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

PR_SET_CHILD_SUBREAPER = 36
PAYLOAD = "printf '{\"loss\": 1}' > output.json"


class TreeCpu:
    """User and system seconds of every process started in the block, orphans included."""

    seconds = 0.0


@contextmanager
def tree_cpu() -> Iterator[TreeCpu]:
    """Count the CPU of all descendants that end within the block.

    Orphans come to this process (it becomes their reaper) and are waited for at the end, so the
    figure needs no cgroup and misses nobody who is gone when the block ends.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    found = TreeCpu()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    yield found
    reap_all(timeout=90)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found.seconds = (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)


def reap_all(timeout: float) -> None:
    """Wait for every child, adopted ones included."""
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            time.sleep(0.05)


def write_search(directory: Path, points: int, command: str, **payload: object) -> Path:
    """A search of ``points`` random points whose evaluation is ``command``."""
    directory.mkdir(parents=True, exist_ok=True)
    space = {"x": {"method": "uniform", "dimension": {"low": 0.0, "high": 1.0}}}
    config = {
        "outDS": "user.bench.trivial",
        "evaluationExec": command,
        "searchSpaceFile": "space.json",
        "maxPoints": points,
        "nParallelEvaluation": points,
        "payload": {"gpus_per_node": 1, "expected_minutes": 0.001, **payload},
        "sampler": "random",
        "seed": 1,
    }
    (directory / "space.json").write_text(json.dumps(space))
    path = directory / "config.json"
    path.write_text(json.dumps(config))
    return path


def site_text(width: int, *, keep: Path | None = None) -> str:
    """A site of one virtual node with ``width`` GPUs and one allocation at a time."""
    kept = "" if keep is None else f"  node_local_dir: {keep}\n  keep_workdirs: true\n"
    return (
        "extends: local\nname: bench\n"
        f"node: {{gpus: {width}, cores: 2, memory: 8GB}}\n"
        "local: {nodes: 1}\n"
        "budgets: {jobs_in_flight: 1}\n"
        # On a loaded machine an allocation for such short payloads would end before it is up.
        "planning: {walltime_min: 30m}\n"
        f"runner:\n  idle_exit: 2s\n{kept}"
    )


def floor(points: int, width: int) -> dict[str, float] | None:
    """Wall and CPU seconds of the C loop over the same payloads; None without a C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        print("no C compiler: the floor is left out", file=sys.stderr)
        return None
    with tempfile.TemporaryDirectory(prefix="harvester-floor-") as temporary:
        program = Path(temporary) / "floor"
        source = Path(__file__).with_name("floor.c")
        subprocess.run((compiler, "-O2", "-o", program, source), check=True)
        work = Path(temporary) / "work"
        work.mkdir()
        with tree_cpu() as cpu:
            command = (str(program), str(points), str(width), str(work), PAYLOAD)
            done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {"wall_s": round(float(done.stdout), 2), "cpu_s": round(cpu.seconds, 2)}
