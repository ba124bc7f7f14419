"""Kills parts of a running system at random, then compares the books: see ``scripts/soak``."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select
from stack import Stack, StackFailed

from harvester.batch.local_records import Records
from harvester.steering.books import discrepancies
from harvester.steering.database import Database, parse_database_url
from harvester.steering.tables import LEASES

# Allocations are short, so that walltime, drains and new submissions are part of every run.
SITE = """\
extends: local
name: soak
queues:
  - name: short
    bins:
      - {{nodes: 2, walltime: 40s}}
runner:
  drain_margin: 1s
  idle_exit: 3s
planning:
  boot_margin: 1s
  walltime_min: 20s
budgets:
  jobs_in_flight: 2
spool:
  filesystem: {filesystem}
state:
  index: {root}/index.sqlite
"""
# Notes that it ran, works a moment, and answers with its own parameter as the loss.
PAYLOAD = """\
#!/bin/sh
echo "$HARVESTER_ATTEMPT" >> "{ran}/$HARVESTER_POINT"
sleep 0.4
read -r line < input.json
loss=$(printf %s "$line" | tr -dc '0-9.e+-')
printf '{{"loss": %s}}' "$loss" > output.json
"""
APART_S = (2.0, 6.0)  # between two faults
AWAY_S = (0.0, 3.0)  # how long a service that was killed stays away
STALL_S = (1.0, 12.0)  # how long one that was stopped does not answer
LOOK_S = 0.2
FINISH_S = 300.0  # for what is left when the faults end
# A point may run again under a new attempt after a fault; it must not be counted again.
HARMLESS = frozenset({"reran"})
_REPORTED = 20  # violations of one kind that are printed

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Process:
    """A process of the system under test."""

    pid: int
    role: str  # daemon | central | leader | agent | scheduler | shepherd


@dataclass(slots=True)
class Fault:
    """What was done to whom, and how long the search took to move again."""

    role: str
    how: str
    at: float
    recovered_s: float | None = None


@dataclass(slots=True)
class Books:
    """What is wrong after everything has settled, by kind."""

    wrong: dict[str, list[str]] = field(default_factory=dict)

    def note(self, kind: str, what: str) -> None:
        self.wrong.setdefault(kind, []).append(what)

    def summary(self) -> dict[str, object]:
        return {
            kind: {"count": len(found), "first": found[:_REPORTED]}
            for kind, found in self.wrong.items()
        }


class Soak:
    """One system under faults for a while."""

    def __init__(self, stack: Stack, points: int, rng: random.Random) -> None:
        self.tasks: list[str] = []
        self.faults: list[Fault] = []
        self._stack = stack
        self._points = points
        self._rng = rng
        self._began = time.monotonic()
        self._settled = 0
        self._ran = stack.root / "ran"
        self._ran.mkdir()

    def run(self, minutes: float) -> None:
        """Submit searches and break things until the time is over, then let all of it finish."""
        self._stack.start_central()
        self._submit()
        self._stack.start_daemon()
        until = self._began + 60 * minutes
        while time.monotonic() < until:
            self._watch(self._rng.uniform(*APART_S))
            self._break_something()
        self._watch_until_finished()

    # --- searches ---

    def _submit(self) -> None:
        directory = self._stack.root / f"search{len(self.tasks) + 1}"
        directory.mkdir()
        ran = self._ran / str(len(self.tasks) + 1)
        ran.mkdir()
        (directory / "run.sh").write_text(PAYLOAD.format(ran=ran))
        space = {"x": {"method": "uniform", "dimension": {"low": 0.1, "high": 1.0}}}
        (directory / "space.json").write_text(json.dumps(space))
        config = {
            "evaluationExec": "sh run.sh",
            "searchSpaceFile": "space.json",
            "maxPoints": self._points,
            "nParallelEvaluation": 40,
            "payload": {"gpus_per_node": 1, "expected_minutes": 0.02},
            "sampler": "random",
            "seed": self._rng.randrange(1000),
        }
        (directory / "config.json").write_text(json.dumps(config))
        self.tasks.append(self._stack.submit(directory / "config.json"))

    def _watch(self, seconds: float) -> None:
        """Look at the search for a while: does it move again, is it time for another one?"""
        until = time.monotonic() + seconds

        def time_is_over() -> bool:
            if self._all_finished():
                self._submit()
            time.sleep(LOOK_S)
            return time.monotonic() >= until

        self._stack.wait(time_is_over, seconds + 60, "the service does not answer")

    def _watch_until_finished(self) -> None:
        until = time.monotonic() + FINISH_S
        while not (self._all_finished() and self._nothing_in_flight()):
            if time.monotonic() > until:
                return  # the books tell what is left
            time.sleep(LOOK_S)

    def _all_finished(self) -> bool:
        shown = [self._stack.client().show(task) for task in self.tasks]
        settled = sum(item["points"]["done"] for item in shown)
        if settled > self._settled:
            self._settled = settled
            self._note_recovery()
        return all(item["state"] != "running" for item in shown)

    def _note_recovery(self) -> None:
        now = time.monotonic()
        for fault in reversed(self.faults):
            if fault.recovered_s is not None:
                return
            fault.recovered_s = now - self._began - fault.at

    def _nothing_in_flight(self) -> bool:
        status = self._stack.status()
        live = [item for item in status.get("allocations", ()) if item["state"] != "ended"]
        return not live and not status.get("delivery", {}).get("pending")

    # --- faults ---

    def _break_something(self) -> None:
        found = list(processes(self._stack))
        roles = sorted({process.role for process in found})
        if not roles:
            return
        role = self._rng.choice(roles)
        victim = self._rng.choice([process for process in found if process.role == role])
        stalls = self._rng.random() < 0.2
        self.faults.append(
            Fault(role, "stop" if stalls else "kill", time.monotonic() - self._began)
        )
        if stalls:
            self._stall(victim)
        else:
            self._kill(victim)

    def _kill(self, victim: Process) -> None:
        if victim.role == "daemon":
            self._stack.stop_daemon(signal.SIGKILL)
            time.sleep(self._rng.uniform(*AWAY_S))
            self._stack.start_daemon()
        elif victim.role == "central":
            self._stack.stop_central(signal.SIGKILL)
            time.sleep(self._rng.uniform(*AWAY_S))
            self._stack.start_central()
        else:
            _signal(victim.pid, signal.SIGKILL)

    def _stall(self, victim: Process) -> None:
        _signal(victim.pid, signal.SIGSTOP)
        try:
            time.sleep(self._rng.uniform(*STALL_S))
        finally:
            _signal(victim.pid, signal.SIGCONT)

    # --- books ---

    def compare_books(self) -> Books:
        """Compare what service, batch system, harvester and payloads say of the same search."""
        books = Books()
        for task in self.tasks:
            self._check_task(books, task)
        self._check_status(books)
        self._stack.stop_daemon()
        self._check_jobs(books)
        self._stack.stop()
        self._check_service(books)
        for process in processes(self._stack):
            books.note("process_left", f"{process.role} {process.pid}")
        return books

    def _check_task(self, books: Books, task: str) -> None:
        client = self._stack.client()
        summary = client.show(task)
        if summary["state"] != "finished":
            books.note("task_not_finished", f"{task}: {summary['state']} {summary['points']}")
        points = list(client.points(task))
        if len(points) != self._points:
            books.note("points_missing", f"{task}: {len(points)} of {self._points}")
        for point in points:
            self._check_point(books, task, point)

    def _check_point(self, books: Books, task: str, point: Json) -> None:
        name = f"{task}.{point['point']}"
        counted = [attempt for attempt in point["attempts"] if attempt["counted"]]
        states = [attempt["state"] for attempt in counted]
        if states != ["succeeded"]:
            books.note("not_counted_once", f"{name}: {states or point['state']}")
        if point["loss"] is not None and abs(point["loss"] - point["parameters"]["x"]) > 1e-9:
            books.note("wrong_loss", f"{name}: {point['loss']} for {point['parameters']}")
        for attempt in point["attempts"]:
            if attempt["blame"] == "point":
                books.note("charged", f"{attempt['attempt']}: {attempt['reason']}")
        ran = self._ran / task / point["point"]
        runs = Counter(ran.read_text().split()) if ran.exists() else Counter[str]()
        for attempt_id, times in runs.items():
            if times > 1:
                books.note("ran_twice", f"{attempt_id}: {times} times")
        if runs.total() > 1:
            books.note("reran", name)

    def _check_status(self, books: Books) -> None:
        status = self._stack.status()
        for state in ("leased", "ordered", "running"):
            if status["attempts"].get(state):
                books.note("attempts_left", f"{status['attempts'][state]} {state}")
        if status["delivery"]["pending"]:
            books.note("undelivered", str(status["delivery"]))
        for item in status["allocations"]:
            if item["state"] != "ended":
                books.note("allocation_left", f"{item['tag']}: {item['state']}")

    def _check_jobs(self, books: Books) -> None:
        records = Records(self._stack.site.state_dir / "batch")
        jobs: dict[str, set[str]] = {}
        for job in records.accounted():
            jobs.setdefault(job.name, set()).add(job.job_id)
        for job_id in records.live_jobs():
            books.note("job_left", job_id)
            jobs.setdefault(records.load_spec(job_id).tag, set()).add(job_id)
        for tag, ids in jobs.items():
            if len(ids) > 1:
                books.note("submitted_twice", f"{tag}: jobs {', '.join(sorted(ids))}")

    def _check_service(self, books: Books) -> None:
        path = self._stack.state_home / "harvester" / "central.db"
        database = Database(parse_database_url(None, path))
        try:
            with database.read() as connection:
                live = select(LEASES).where(LEASES.c.state == "live")
                for row in connection.execute(live):
                    books.note("leases_left", f"{row.task_id}.{row.point}.{row.grant_no}")
                for found in discrepancies(connection):
                    books.note("counts_wrong", found)
        finally:
            database.close()


def processes(stack: Stack) -> Iterator[Process]:
    """The living processes of a stack, found by the state directory in their environment."""
    mark = f"XDG_STATE_HOME={stack.state_home}".encode()
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            environment = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
            command = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # gone, or somebody else's
        if mark in environment and (role := _role(int(entry), command)):
            yield Process(int(entry), role)


def _role(pid: int, command: Sequence[bytes]) -> str | None:
    if b"harvester.batch.local_server" in command:
        return "scheduler" if _holds_lock(pid) else "shepherd"
    for word, role in ((b"serve", "central"), (b"run", "daemon"), (b"lead", "leader")):
        if word in command[1:5]:
            return role
    if b"agent" in command[1:3]:
        return "guardian" if b"agent" in _command(_parent(pid))[1:3] else "agent"
    return None


def _holds_lock(pid: int) -> bool:
    """The scheduler's children look like it, but have closed its lock."""
    for name in _listed(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/fd/{name}").endswith("/batch/lock"):
                return True
    return False


def _listed(path: str) -> Sequence[str]:
    try:
        return os.listdir(path)
    except OSError:
        return ()


def _command(pid: int) -> Sequence[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ()


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _summary(soak: Soak, books: Books, seed: int) -> dict[str, object]:
    kinds: dict[str, list[Fault]] = {}
    for fault in soak.faults:
        kinds.setdefault(f"{fault.how} {fault.role}", []).append(fault)
    return {
        "seed": seed,
        "searches": len(soak.tasks),
        "faults": {
            kind: {"times": len(found), **_recovery(found)} for kind, found in sorted(kinds.items())
        },
        "wrong": books.summary(),
    }


def _recovery(faults: Sequence[Fault]) -> dict[str, object]:
    """Seconds from a fault to the next settled point, over all faults of a kind."""
    times = sorted(fault.recovered_s for fault in faults if fault.recovered_s is not None)
    if not times:
        return {"recovered": 0}
    median, worst = times[len(times) // 2], times[-1]
    return {
        "recovered": len(times),
        "recovery_s": {"median": round(median, 1), "worst": round(worst, 1)},
    }


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="of faults (default 10)")
    parser.add_argument("--points", type=int, default=300, help="of each search (default 300)")
    parser.add_argument("--seed", type=int, help="of the faults (default: a new one)")
    parser.add_argument(
        "--filesystem",
        choices=("local", "shared"),
        default="local",
        help="as what the spool is treated (default local)",
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="run in DIR and leave it there")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the soak; 0 when the books are right, 1 when something is wrong."""
    options = _parse(arguments)
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    root = (options.keep or Path(tempfile.mkdtemp(prefix="soak-"))).absolute()
    root.mkdir(parents=True, exist_ok=True)
    code = 1
    try:
        with Stack(root, SITE.format(filesystem=options.filesystem, root=root)) as stack:
            soak = Soak(stack, options.points, random.Random(seed))
            soak.run(options.minutes)
            books = soak.compare_books()
        print(json.dumps(_summary(soak, books, seed), indent=1))
        code = 1 if books.wrong.keys() - HARMLESS else 0
    except StackFailed as failure:
        print(f"soak: seed {seed}: {failure}", file=sys.stderr)
    finally:
        if code == 0 and options.keep is None:
            shutil.rmtree(root, ignore_errors=True)
        else:
            print(f"soak: everything lies in {root}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
