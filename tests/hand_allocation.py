"""A whole allocation by hand: the real leader and agents on this machine, orders from a test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from harvester.spool.runner_archive import build_runner_archive
from payload_runner.files import RealFiles
from payload_runner.logfile import LogReader, LogWriter, Record
from payload_runner.protocol import (
    AllocationPlan,
    NodeShape,
    PayloadSpec,
    SpoolPaths,
    dump_json,
    to_fields,
)

TAG = "haaaaa-bbbbbb"
FILES = RealFiles()
OK = """printf '{"loss": 0.5}' > output.json"""
PLAN = AllocationPlan(
    tag=TAG,
    spool_id="aaaaa",
    nodes=2,
    node=NodeShape(gpus=2, cores=2),
    walltime_s=300.0,
    batch_system="local",
    filesystem="local",
    drain_margin_s=2.0,
    idle_exit_s=60.0,
    heartbeat_s=5.0,
)


class Allocation:
    """A spool made by hand, its order log, and the jobs that run in it."""

    def __init__(self, root: Path, plan: AllocationPlan = PLAN) -> None:
        self.spool = SpoolPaths(root)
        self.paths = self.spool.allocation(TAG)
        FILES.make_dir(self.paths.root)
        FILES.make_dir(self.spool.leases)
        FILES.make_dir(self.spool.work)
        self.pyz = root / "runner.pyz"
        self.pyz.write_bytes(build_runner_archive())
        FILES.replace(self.paths.plan, dump_json(plan))
        self.log = LogWriter(FILES, self.paths.orders(1), time.time, time.monotonic)
        self.tell("open", version=1, epoch=1, spool_id="aaaaa", by="test")
        self.jobs: list[subprocess.Popen[bytes]] = []
        self.python: tuple[str, ...] = (sys.executable,)

    def tell(self, kind: str, **fields: Any) -> None:
        self.log.append(kind, fields)
        self.log.commit()

    def define(self, command: str, **more: Any) -> None:
        self.tell("define", **to_fields(PayloadSpec("p1", command, **more)))

    def order(self, *numbers: int, **more: Any) -> None:
        for number in numbers:
            fields = {"task": "1", "point": str(number), "payload_id": "p1", **more}
            self.log.append("order", {"attempt": f"1.{number}.1.1", "parameters": {}, **fields})
        self.log.commit()

    def start(self, job: str = "1", restart: str = "0", **environ: str) -> subprocess.Popen[bytes]:
        local = {
            "HARVESTER_LOCAL_JOB_ID": job,
            "HARVESTER_LOCAL_RESTART": restart,
            "HARVESTER_LOCAL_NODES": "vnode1,vnode2",
        }
        process = subprocess.Popen(
            [*self.python, str(self.pyz), "lead", str(self.spool.root), TAG],
            env={**os.environ, **local, **environ},
            start_new_session=True,
        )
        self.jobs.append(process)
        return process

    def events(self, job: str = "1", restart: int = 0) -> list[Record]:
        mine = self.paths.incarnation(job, restart)
        found: list[Record] = []
        if mine.root.exists():
            for path in mine.event_logs(FILES.listdir(mine.root)):
                found += LogReader(FILES, path, time.monotonic).poll().records
        return found

    def of(self, kind: str, **where: Any) -> list[dict[str, Any]]:
        return [record.fields for record in self.events(**where) if record.kind == kind]

    def states(self, **where: Any) -> dict[str, str]:
        ended = self.of("attempt_ended", **where)
        return {fields["attempt"].split(".")[1]: fields["state"] for fields in ended}

    def pid_of(self, node: int) -> int:
        wanted = f"--node\0{node}\0"
        for path in Path("/proc").iterdir():
            if path.name.isdigit() and wanted in _cmdline(path) and str(self.pyz) in _cmdline(path):
                return int(path.name)
        return 0

    def kill_all(self) -> None:
        for process in self.jobs:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for node in range(PLAN.nodes):
            while pid := self.pid_of(node):
                os.kill(pid, signal.SIGKILL)
                time.sleep(0.01)
        self.log.close()


def _cmdline(path: Path) -> str:
    try:
        return (path / "cmdline").read_text()
    except OSError:
        return ""
