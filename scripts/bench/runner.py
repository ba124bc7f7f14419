"""Trivial payloads through the payload runner alone, beside the floor of starting them.

  scripts/bench/runner --points N --width W [--transport auto|tcp|files] [--filesystem local|shared]
                       [--directory DIR] [--rounds N]

One allocation of one virtual node: leader and agent with real files, orders given beforehand.
Prints one JSON line: CPU milliseconds a payload (leader, agent and payload; the slope between a
short and a long run, so that their start does not count), the same for a C loop of posix_spawn
over the same payloads in the same run, their ratio, the CPU seconds that start and end take, and
the peak memory of the agent and the leader in MB. Rounds take turns, and the best of each counts:
what else runs on the machine only ever adds.

All of it lies in DIR. On ext4 an inode that was removed within the last minutes slows the making of
others down, so figures from there depend on what was removed before; a DIR in memory tells more.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from common import PAYLOAD, floor, tree_cpu

from harvester.spool.runner_archive import build_runner_archive
from payload_runner.files import RealFiles
from payload_runner.logfile import LogReader, LogWriter
from payload_runner.protocol import (
    AllocationPlan,
    NodeShape,
    PayloadSpec,
    Shape,
    SpoolPaths,
    dump_json,
    to_fields,
)

TAG = "hbench-aaaaaa"
SHORT = 100  # payloads of the run that start and end are taken from


@dataclass(frozen=True)
class Case:
    width: int
    transport: str
    filesystem: str


@dataclass(frozen=True)
class Measured:
    cpu_s: float
    wall_s: float
    agent_mb: float
    leader_mb: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=2000)
    parser.add_argument("--width", type=int, default=4, help="payloads at the same time")
    parser.add_argument("--transport", default="files", choices=("auto", "tcp", "files"))
    parser.add_argument("--filesystem", default="local", choices=("local", "shared"))
    parser.add_argument("--directory", default=tempfile.gettempdir(), help="where all of it lies")
    parser.add_argument("--rounds", type=int, default=3, help="of which the best counts")
    options = parser.parse_args()
    tempfile.tempdir = options.directory
    case = Case(options.width, options.transport, options.filesystem)
    rounds = [_round(case, options.points) for _ in range(options.rounds)]
    short, long, _ = min(rounds, key=lambda found: found[1].cpu_s - found[0].cpu_s)
    each_ms = (long.cpu_s - short.cpu_s) / options.points * 1e3
    floors = [found[2] for found in rounds if found[2] is not None]
    floor_ms = min(floors) / options.points * 1e3 if floors else None
    line = {
        **vars(options),
        "cpu_ms_per_payload": round(each_ms, 3),
        "floor_ms_per_payload": floor_ms and round(floor_ms, 3),
        "cpu_ratio": floor_ms and round(each_ms / floor_ms, 2),
        "start_and_end_cpu_s": round(short.cpu_s - SHORT * each_ms / 1e3, 2),
        "payloads_per_s": round((SHORT + options.points) / long.wall_s, 1),
        "agent_mb": long.agent_mb,
        "leader_mb": long.leader_mb,
    }
    print(json.dumps(line))
    return 0


def _round(case: Case, points: int) -> tuple[Measured, Measured, float | None]:
    """A short run, a long one, and the CPU seconds of the floor."""
    short, long = measure(case, SHORT), measure(case, SHORT + points)
    lowest = floor(points, case.width)
    return short, long, lowest and lowest["cpu_s"]


def measure(case: Case, points: int) -> Measured:
    """Run ``points`` payloads in an allocation of their own."""
    with tempfile.TemporaryDirectory(prefix="harvester-runner-") as directory, tree_cpu() as cpu:
        began = time.monotonic()
        root = Path(directory)
        leader = _start(root, case, points)
        memory = _watch(leader)
        if leader.returncode != 0:
            raise SystemExit(f"the leader ended with exit code {leader.returncode}")
        wall_s = time.monotonic() - began
        _check(SpoolPaths(root), points)
    return Measured(cpu.seconds, wall_s, memory["agent"], memory["lead"])


def _start(root: Path, case: Case, points: int) -> subprocess.Popen[bytes]:
    spool, files = SpoolPaths(root), RealFiles()
    paths = spool.allocation(TAG)
    for directory in (paths.root, spool.leases, spool.work):
        files.make_dir(directory)
    plan = AllocationPlan(
        tag=TAG,
        spool_id="bench",
        nodes=1,
        node=NodeShape(gpus=case.width, cores=2),
        walltime_s=3600.0,
        batch_system="local",
        transport=case.transport,
        filesystem=case.filesystem,
    )
    files.replace(paths.plan, dump_json(plan))
    log = LogWriter(files, paths.orders(1), time.time, time.monotonic)
    log.append("open", {"version": 1, "epoch": 1, "spool_id": "bench", "by": "bench"})
    spec = PayloadSpec("p", PAYLOAD, shape=Shape(gpus_per_node=1))
    log.append("define", to_fields(spec))
    for number in range(points):
        order = {"attempt": f"1.{number}.1.1", "task": "1", "point": str(number)}
        log.append("order", {**order, "payload_id": "p", "parameters": {"x": number}})
    log.append("close", {})
    log.close()
    archive = root / "runner.pyz"
    archive.write_bytes(build_runner_archive())
    environ = {**os.environ, "HARVESTER_LOCAL_JOB_ID": "1", "HARVESTER_LOCAL_RESTART": "0"}
    return subprocess.Popen([sys.executable, str(archive), "lead", str(root), TAG], env=environ)


def _watch(leader: subprocess.Popen[bytes]) -> dict[str, float]:
    """The peak memory of leader and agent, looked at until the leader ends."""
    peaks = {"lead": 0.0, "agent": 0.0}
    while leader.poll() is None:
        for pid in (leader.pid, *_children(leader.pid)):
            role, peak_mb = _role_and_peak(pid)
            if role in peaks:
                peaks[role] = max(peaks[role], peak_mb)
        time.sleep(0.2)
    return peaks


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _role_and_peak(pid: int) -> tuple[str, float]:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "", 0.0
    peak = next((line for line in status.splitlines() if line.startswith("VmHWM:")), "VmHWM: 0")
    role = next((word for word in words if word in ("lead", "agent")), "")
    return role, round(int(peak.split()[1]) / 1024, 1)


def _check(spool: SpoolPaths, points: int) -> None:
    files, mine = RealFiles(), spool.allocation(TAG).incarnation("1", 0)
    good = 0
    for path in mine.event_logs(files.listdir(mine.root)):
        reader = LogReader(files, path, time.monotonic)
        while records := reader.poll().records:
            good += sum(record.fields.get("state") == "succeeded" for record in records)
    if good != points:
        raise SystemExit(f"{good} of {points} payloads succeeded")


if __name__ == "__main__":
    sys.exit(main())
