"""A whole search on a real cluster: service and daemon on the login node, payloads on the nodes.

The service listens on the login node's loopback, which no node can reach. Everything runs as the
user of the case, from a copy of the code that this user can read.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TypeVar

from scripts.stack import TOP, Account, Stack, StackFailed

T = TypeVar("T")
LOGIN_PYTHON = Path("/usr/bin/python3")
_SOURCES = ("harvester", "payload_runner", "site_configs")
_MPI = ("lib/libmpi*", "lib/mpich", "bin/mpiexec", "bin/hydra_pmi_proxy")  # of the extra "mpi"
_ACCOUNTED = "JobID,JobName,State,User,NNodes,ElapsedRaw"

_SITE = """
extends: slurm
name: testbed
requeue: {requeue}
node: {{gpus: 4, cores: 8, memory: 6GB}}
queues:
  - name: batch
    bins: [{{nodes: {nodes}, walltime: "{walltime}"}}]
    queued_max: 10
spool: {{path: {spool}, filesystem: shared}}
state: {{index: {index}}}
runner:
  python: {python}
  launcher: {launcher}
  prologue: ["export UCX_TLS=tcp,self"]
  node_local_dir: /local_scratch
  mpi_launcher: {mpi_launcher}
  environment: {environment}
  transport: {transport}
  drain_margin: {drain_margin}
  idle_exit: 20s
planning: {{boot_margin: {boot_margin}, default_expected: 10s}}
budgets:
  query_interval: 2s
  queries_per_minute: 40
  submissions_per_hour: 60
  jobs_in_flight: {jobs}
  command_timeout: 20s
"""

_DEFAULTS: Mapping[str, object] = {
    "walltime": "00:10:00",
    "nodes": "1-3",
    "jobs": 3,
    "requeue": "false",
    "boot_margin": "2s",
    "drain_margin": "5s",
    "python": "/usr/bin/python3",
    "transport": "auto",
    # All nodes of the testbed share one kernel, which UCX takes for shared memory.
    "environment": '{UCX_TLS: "tcp,self"}',
    "launcher": "srun --ntasks-per-node=1 --overlap --kill-on-bad-exit=0",
    "mpi_launcher": (
        "srun --overlap --mpi=pmi2 --nodes={nodes} --nodelist={hosts} --ntasks={ranks} "
        "--ntasks-per-node={ranks_per_node} --kill-on-bad-exit=1"
    ),
}

_SPACE = {"x": {"method": "uniform", "dimension": {"low": 0.0, "high": 1.0}}}

# In front of a command of the batch system: counts its calls and lets a test step in after it.
_WRAPPER = """#!/bin/bash
echo "$EPOCHREALTIME {name} $*" >>{log}
if [ -x {after} ]; then
    answer=$({command} "$@")
    code=$?
    {after} $PPID
    printf '%s\\n' "$answer"
    exit $code
fi
exec {command} "$@"
"""
# Locks its GPUs on its node: two payloads on one GPU at a time fail. Counts steps of 0.2 s.
_PAYLOAD = """
import fcntl, json, os, pathlib, socket, sys, time

point = json.loads(pathlib.Path("input.json").read_text())
gpus, host = os.environ["CUDA_VISIBLE_DEVICES"], socket.gethostname()
locks = [open(f"/local_scratch/gpu.{gpu}.{os.getuid()}.lock", "w") for gpu in gpus.split(",")]
try:
    for lock in locks:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(f"one of the GPUs {gpus} of {host} is in use")
saved = pathlib.Path("checkpoint/step")
began = step = int(saved.read_text()) if saved.exists() else 0
while step < int(sys.argv[1]):
    time.sleep(0.2)
    step += 1
    if step % 5 == 0:
        saved.parent.mkdir(exist_ok=True)
        fresh = saved.with_suffix(".new")
        fresh.write_text(str(step))
        fresh.replace(saved)
output = {"loss": (point["x"] - 0.25) ** 2, "message": f"{host} {gpus} {began}"}
pathlib.Path("output.json").write_text(json.dumps(output))
"""


class Cluster(Protocol):
    """What searches need of a cluster."""

    @property
    def user(self) -> str:
        """An ordinary one, besides root."""

    def directory(self, user: str) -> Path:
        """A fresh private directory of ``user`` on the shared file system."""


def install(cluster: Cluster) -> Account:
    """The code and what it needs, where the cluster's ordinary user can read it.

    Raises:
        RuntimeError: the distribution's interpreter cannot load the packages of this one.
    """
    version = subprocess.run(
        [LOGIN_PYTHON, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    if version != "{}.{}".format(*sys.version_info[:2]):
        raise RuntimeError(f"{LOGIN_PYTHON} is {version}, another than that of this environment")
    home = cluster.directory(cluster.user)
    for name in _SOURCES:
        shutil.copytree(TOP / name, home / "code" / name)
    python = copy_environment(Path(sys.prefix), home / "venv")
    for found in (found for pattern in _MPI for found in Path(sys.prefix).glob(pattern)):
        _copy(found, home / "venv" / found.relative_to(sys.prefix))
    return Account(cluster.user, python, home / "code")


def copy_environment(prefix: Path, target: Path) -> Path:
    """The packages of the environment ``prefix`` in a new one, which all users can read.

    Returns its interpreter, the distribution's.
    """
    subprocess.run([LOGIN_PYTHON, "-m", "venv", "--without-pip", target], check=True)
    (packages,) = target.glob("lib/python*/site-packages")
    packages.rmdir()
    _copy(prefix / packages.relative_to(target), packages)
    return target / "bin" / "python"


def _copy(source: Path, target: Path) -> None:
    # Hard links where that is possible: it is half a gigabyte.
    if subprocess.run(["cp", "-al", source, target], capture_output=True).returncode:
        subprocess.run(["cp", "-a", source, target], check=True)


@dataclass(frozen=True)
class Books:
    """What central service, index and accounting have written down about one search."""

    points: tuple[Mapping[str, Any], ...]  # of the service
    attempts: tuple[Mapping[str, Any], ...]  # of the index, as are the allocations
    allocations: tuple[Mapping[str, Any], ...]
    queries: int
    jobs: tuple[Mapping[str, str], ...]  # of accounting, those with a tag of this spool

    def check(self, points: int) -> None:
        """Every point has its one true loss, and the three agree on what it took."""
        assert len(self.points) == points
        for point in self.points:
            assert point["state"] == "done", point
            assert abs(point["loss"] - (point["parameters"]["x"] - 0.25) ** 2) < 1e-9, point
        self._check_attempts()
        self._check_jobs()

    def _check_attempts(self) -> None:
        told = [attempt for point in self.points for attempt in point["attempts"]]
        charged = [attempt for attempt in told if attempt["blame"] == "point"]
        assert not charged, "a point was charged for a fault that was not its own"
        good = [attempt["point"] for attempt in self.attempts if attempt["state"] == "succeeded"]
        assert sorted(good) == sorted(point["point"] for point in self.points)
        assert not [item for item in self.attempts if item["delivered"] != 2], "not delivered"
        assert sorted(attempt["number"] for attempt in self.attempts) == sorted(
            attempt["n"] for attempt in told
        )

    @property
    def joined(self) -> tuple[Mapping[str, Any], ...]:
        """Allocations that the user started."""
        return tuple(item for item in self.allocations if item["joined"])

    def _check_jobs(self) -> None:
        names = [job["JobName"] for job in self.jobs]
        assert len(names) == len(set(names)), f"a tag was submitted twice: {names}"
        ours = [item for item in self.allocations if item["job_id"] and not item["joined"]]
        known = {item["tag"]: item["job_id"] for item in ours}
        assert known == {job["JobName"]: job["JobID"] for job in self.jobs}
        assert {item["state"] for item in self.allocations} == {"ended"}

    def figures(self, title: str, seconds: float) -> str:
        """One line for people."""
        return (
            f"\n{title}: {len(self.points)} points in {seconds:.0f} s; {self.queries} queries, "
            f"{len(self.jobs)} jobs submitted, {len(self.attempts)} attempts; "
            f"job ends: {', '.join(job['State'] for job in self.jobs)}"
        )


class Search:
    """One search of a user on Slurm: a stack on the login node, and what became of it.

    What another batch system has of its own stands in the class variables and the methods at
    the end.
    """

    site_text: ClassVar[str] = _SITE
    commands: ClassVar[Sequence[str]] = (
        "sbatch",
        "squeue",
        "sacct",
        "scancel",
        "sinfo",
        "scontrol",
    )
    payload: ClassVar[Mapping[str, object]] = {"gpus_per_node": 1}

    def __init__(self, cluster: Cluster, account: Account, **site: object) -> None:
        self.cluster = cluster
        self.user = account.user or "root"
        self.root = cluster.directory(self.user)
        self.spool = self.root / "spool"
        self.index = self.root / "index.sqlite"
        chosen = {**_DEFAULTS, **site}
        text = self.site_text.format(spool=self.spool, index=self.index, **chosen)
        self.stack = Stack(self.root, text, account)
        self._wrap_commands()
        self.began = time.monotonic()
        self.seconds = 0.0  # until the search was done
        self.task = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self._end_jobs()
        finally:
            self.stack.stop()
        if kind is None:
            shutil.rmtree(self.root, ignore_errors=True)
        else:
            print(f"left behind: {self.root}\n{self.stack.log_ends()}")

    def start(self, points: int, *, seconds: float = 1.0, daemon: bool = True) -> None:
        """Start the service and submit the search; then the daemon, unless that is left to do."""
        self.stack.start_central()
        self.task = self.stack.submit(self._write_search(points, round(seconds * 5)))
        if daemon:
            self.stack.start_daemon()

    def submit(
        self,
        name: str,
        program: str,
        points: int,
        *,
        command: str | None = None,
        space: Mapping[str, object] = _SPACE,
        checkpoint: str | None = None,
        **payload: object,
    ) -> str:
        """Submit one more search, of a program that runs under the account's own Python.

        ``command`` starts ``evaluate.py`` otherwise; ``checkpoint`` names what it saves.
        """
        directory = self.root / name
        directory.mkdir()
        (directory / "evaluate.py").write_text(program)
        (directory / "space.json").write_text(json.dumps(space))
        saved = {"checkPointToSave": checkpoint, "checkPointInterval": 1} if checkpoint else {}
        config = {
            **saved,
            "evaluationExec": command or f"{self.stack.account.python} evaluate.py",
            "searchSpaceFile": "space.json",
            "sampler": "random",
            "maxPoints": points,
            "nParallelEvaluation": points,
            "payload": {"expected_minutes": 0.1, "warn_seconds": 1, **payload},
        }
        (directory / "config.json").write_text(json.dumps(config))
        return self.stack.submit(directory / "config.json")

    def _wrap_commands(self) -> None:
        directory = self.root / "bin"
        directory.mkdir()
        log = self.root / "commands.log"
        log.touch()
        log.chmod(0o666)
        for name in self.commands:
            real, after = shutil.which(name), directory / f"after-{name}"
            text = _WRAPPER.format(name=name, log=log, command=real, after=after)
            (directory / name).write_text(text)
            (directory / name).chmod(0o755)
        search_path = self.stack.environment["PATH"]
        self.stack.environment["PATH"] = f"{directory}{os.pathsep}{search_path}"

    def after(self, command: str, script: str) -> None:
        """Run ``script`` (shell; $1 is the caller's process) after each call of a command."""
        path = self.root / "bin" / f"after-{command}"
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)

    def calls(self, command: str, *, without: str = "") -> list[float]:
        """When a command was called so far (without that argument), in seconds since the epoch."""
        lines = (self.root / "commands.log").read_text().splitlines()
        found = (line.split() for line in lines)
        return [float(words[0]) for words in found if words[1] == command and without not in words]

    def _write_search(self, points: int, steps: int) -> Path:
        directory = self.root / "search"
        directory.mkdir()
        (directory / "evaluate.py").write_text(_PAYLOAD)
        (directory / "space.json").write_text(json.dumps(_SPACE))
        config = {
            "evaluationExec": f"/usr/bin/python3 evaluate.py {steps}",
            "searchSpaceFile": "space.json",
            "sampler": "random",
            "maxPoints": points,
            "nParallelEvaluation": points,
            "checkPointToSave": "checkpoint",
            "checkPointInterval": 1,
            "payload": {**self.payload, "expected_minutes": steps / 300, "warn_seconds": 1},
        }
        (directory / "config.json").write_text(json.dumps(config))
        return directory / "config.json"

    # --- what happens ---

    def wait(self, predicate: Callable[[], T], timeout: float, claim: str) -> T:
        """Wait for a true value; what was hoped for, the allocations and problems that were last
        published, and the logs' ends when it does not come.
        """
        try:
            return self.stack.wait(predicate, timeout, f"not within {timeout:g} s: {claim}")
        except StackFailed as error:
            error.add_note(f"published: {self.live()}; {self.problems()}")
            raise

    def live(self, *states: str) -> list[Mapping[str, Any]]:
        """Allocations of the published status in these states, in any but ended by default."""
        found = self.stack.status().get("allocations", ())
        return [item for item in found if item["state"] in states or not states]

    def started_jobs(self, least: int = 1) -> list[str]:
        """Wait until so many jobs of ours run with payloads in them; their ids.

        The status is published every 10 s at most: payloads must take longer to be seen for sure.
        """

        def running() -> list[str]:
            busy = {point["tag"] for point in self.stack.status().get("points", ())}
            found = [item["job_id"] for item in self.live("running") if item["tag"] in busy]
            return found if len(found) >= least else []

        return self.wait(running, 120, f"{least} allocations run payloads")

    def problems(self) -> str:
        """The published problems, as one text."""
        return "\n".join(item["what"] for item in self.stack.status().get("problems", ()))

    def settle(self, timeout: float = 240) -> None:
        """Wait until the search is done and nothing is left in flight."""
        client = self.stack.client()

        def done() -> bool:
            if client.show(self.task)["state"] == "running":
                time.sleep(0.5)
                return False
            return True

        self.wait(done, timeout, "the search is done")
        self.seconds = time.monotonic() - self.began
        done_at = datetime.now(UTC)
        self.wait(
            lambda: self._is_idle(done_at),
            120,
            "all allocations have ended and all results are delivered",
        )

    @contextlib.contextmanager
    def as_user(self, line: str) -> Iterator[subprocess.Popen[bytes]]:
        """A command line of the user on the login node, ended at the latest on leaving."""
        with (self.root / "logs" / "user.log").open("wb") as log:
            own = subprocess.Popen(
                self.stack.account.run(*shlex.split(line)),
                env=self.stack.environment,
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            yield own
        finally:
            own.terminate()
            own.wait(60)

    def settle_with(self, own: subprocess.Popen[bytes]) -> Books:
        """Wait until the search is done, have the user's own job leave, and take the books."""
        client = self.stack.client()
        self.wait(lambda: client.show(self.task)["state"] != "running", 240, "the search is done")
        self.seconds = time.monotonic() - self.began
        own.terminate()
        own.wait(60)
        return self.finish()

    def finish(self, timeout: float = 240) -> Books:
        """Wait until the search is done and nothing is left in flight; its books."""
        self.settle(timeout)
        self.stack.stop_daemon()
        books = self.books()
        calls = ", ".join(f"{len(self.calls(name))} {name}" for name in self.commands)
        title = os.environ.get("PYTEST_CURRENT_TEST", "").split("::")[-1]
        print(f"{books.figures(title, self.seconds)}; commands: {calls}")
        return books

    def _is_idle(self, since: datetime) -> bool:
        """Whether a status that was published after an instant has nothing in flight."""
        status = self.stack.status()
        if not status or datetime.fromisoformat(status["updated"]) < since:
            return False
        left = [item for item in status["allocations"] if item["state"] != "ended"]
        return not left and not status["delivery"]["pending"]

    def books(self) -> Books:
        """What the three have written down by now. The daemon must not run."""
        with sqlite3.connect(f"file:{self.index}?mode=ro", uri=True) as index:
            index.row_factory = sqlite3.Row
            allocations = tuple(map(dict, index.execute("SELECT * FROM allocations")))
            attempts = tuple(map(dict, index.execute("SELECT * FROM attempts")))
            asked = "SELECT count(*) FROM spendings WHERE what = 'query'"
            (queries,) = index.execute(asked).fetchone()
        index.close()
        return Books(
            tuple(self.stack.client().points(self.task)),
            attempts,
            allocations,
            queries,
            self._accounted(
                self.stack.tags() - {item["tag"] for item in allocations if item["joined"]}
            ),
        )

    def _accounted(self, tags: frozenset[str]) -> tuple[Mapping[str, str], ...]:
        """Jobs under these tags, whoever submitted them, once accounting knows their end."""
        if not tags:
            return ()
        return self.wait(lambda: self.told_ends(tags), 60, "accounting knows the end of all jobs")

    # --- what differs between batch systems ---

    def told_ends(self, tags: frozenset[str]) -> tuple[Mapping[str, str], ...]:
        """Accounting's jobs under these tags; none unless it knows the end of all it has.

        Of each at least JobID, JobName, State (how it ended) and User.
        """
        names = ",".join(sorted(tags))
        command = ["sacct", "-n", "-P", "-X", "-a", f"--name={names}", "--starttime=now-2hours"]
        done = subprocess.run(
            [*command, f"--format={_ACCOUNTED}"], capture_output=True, text=True, check=True
        )
        rows = [line.split("|") for line in done.stdout.splitlines()]
        found = [dict(zip(_ACCOUNTED.split(","), row, strict=True)) for row in rows]
        over = all(job["State"] not in ("RUNNING", "PENDING", "COMPLETING") for job in found)
        return tuple(found) if over else ()

    def _end_jobs(self) -> None:
        names = ",".join(sorted(self.stack.tags()))
        if names:
            subprocess.run(["scancel", f"--name={names}"], check=False)
