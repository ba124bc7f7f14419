"""The Grid Engine adapter on a real Grid Engine: three nodes in namespaces, agents by qrsh."""

from __future__ import annotations

import json
import os
import pwd
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from harvester.batch.commands import Completed, run_command
from harvester.batch.gridengine import GridEngine
from harvester.batch.port import BatchJob, JobEnd, JobState, ObservedJob
from harvester.errors import BatchUnavailable, SubmissionRefused
from harvester.model import JobId, Tag
from scripts.stack import Stack
from tests.live.conftest import run_testbed
from tests.support import wait_to_see, wait_until

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]

STATE = Path("/var/lib/tb-sge")
CELL = {
    "SGE_ROOT": "/var/lib/gridengine",
    "SGE_CELL": "testbed",
    "SGE_QMASTER_PORT": "6544",
    "SGE_EXECD_PORT": "6545",
}
USER = "hpcuser"
SHARED = Path("/srv/shared")
CORES = 2  # of a node, as the parallel environment "mpi" gives them


def recorded(name: str) -> int:
    return int((STATE / "run" / f"{name}.pid").read_text())


def on_login_node() -> tuple[str, ...]:
    """In front of a command: there alone qmaster takes commands."""
    return ("nsenter", f"--uts=/proc/{recorded('login')}/ns/uts")


def control(*words: str) -> None:
    """A command as the administrator."""
    environment = {**os.environ, **CELL}
    subprocess.run([*on_login_node(), *words], check=True, capture_output=True, env=environment)


def why_no_gridengine() -> str | None:
    if os.getuid() != 0:
        return "a Grid Engine in namespaces needs root"
    needed = ("sge_qmaster", "sge_execd", "qsub", "ip")
    missing = [name for name in needed if shutil.which(name) is None]
    return f"{', '.join(missing)} missing; run scripts/testbed/install" if missing else None


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    reason = why_no_gridengine()
    if reason:
        pytest.skip(reason)
    was_up = (STATE / "run" / "qmaster.pid").exists()
    run_testbed("sge-up", "3")
    yield
    if not was_up:  # somebody's own cluster is left as it was
        run_testbed("sge-down", "--purge")


@dataclass
class Bench:
    """The adapter as an ordinary user, with a directory of that user."""

    directory: Path
    submitted: list[JobId] = field(default_factory=list)

    @property
    def batch(self) -> GridEngine:
        return GridEngine(execute=self._execute, user=USER)

    def _execute(
        self, argv: Sequence[str], *, timeout_s: float, environment: Mapping[str, str]
    ) -> Completed:
        switch = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups"]
        own = {**environment, **CELL, "HOME": pwd.getpwnam(USER).pw_dir, "USER": USER}
        return run_command([*on_login_node(), *switch, *argv], timeout_s=timeout_s, environment=own)

    def job(self, *command: str, nodes: int = 1) -> BatchJob:
        return BatchJob(
            tag=Tag(f"habcde-{uuid.uuid4().hex[:6]}"),
            nodes=nodes,
            walltime_s=600.0,
            directory=self.directory,
            command=command,
            cores_per_node=CORES if nodes > 1 else 1,
        )

    def submit(self, job: BatchJob) -> JobId:
        script = self.directory / f"{job.tag}.sh"
        script.write_text(self.batch.render(job))
        script.chmod(0o644)
        self.submitted.append(self.batch.submit(job, script))
        return self.submitted[-1]

    def seen(self, job: JobId) -> ObservedJob | None:
        return next((seen for seen in self.batch.observe().jobs if seen.job_id == job), None)

    def wait_for(self, job: JobId, state: JobState, timeout: float = 60.0) -> ObservedJob:
        """The job as it was first seen in this state."""
        found = wait_to_see(
            lambda: self.seen(job), lambda seen: seen and seen.state is state, timeout
        )
        assert found is not None
        return found

    def end(self, job: JobId, timeout: float = 60.0) -> ObservedJob:
        """The job's end as accounting tells it."""
        told = wait_to_see(
            lambda: self.batch.ended([job], []), lambda seen: any(one.end for one in seen), timeout
        )
        return next(one for one in told if one.end)

    def output(self) -> str:
        path = self.directory / "batch.out"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def bench(cluster: None) -> Iterator[Bench]:
    directory = Path(tempfile.mkdtemp(dir=SHARED))
    os.chown(directory, pwd.getpwnam(USER).pw_uid, pwd.getpwnam(USER).pw_gid)
    bench = Bench(directory)
    yield bench
    bench.batch.cancel(bench.submitted)
    shutil.rmtree(directory, ignore_errors=True)  # a job may be writing its last words


def test_job_runs_privately_in_its_directory_and_is_accounted(bench: Bench) -> None:
    odd = bench.directory / "100% $JOB_ID, a:b 'odd'"
    odd.mkdir()
    os.chown(odd, bench.directory.stat().st_uid, -1)
    line = 'echo "$JOB_ID $NHOSTS $(id -un) $(umask) $RESTARTED"; pwd'
    asked = replace(bench.job("bash", "-c", line, nodes=2), directory=odd)

    job = bench.submit(asked)
    end = bench.end(job)

    assert (end.job_id, end.name, end.end) == (job, asked.tag, JobEnd.COMPLETED)
    assert (odd / "batch.out").read_text() == f"{job} 2 {USER} 0077 0\n{odd}\n"
    assert (odd / "batch.out").stat().st_mode & 0o777 == 0o600
    assert [found.job_id for found in bench.batch.ended([], [asked.tag])] == [job]


def test_failed_job_tells_its_exit_code(bench: Bench) -> None:
    end = bench.end(bench.submit(bench.job("bash", "-c", "exit 7")))
    assert (end.end, end.reason) == (JobEnd.FAILED, "exit 7")


def test_running_job_that_is_deaf_to_the_warning_is_killed_after_it(bench: Bench) -> None:
    asked = bench.job("sleep", "600")
    job = bench.submit(asked)
    running = bench.wait_for(job, JobState.RUNNING)
    assert (running.name, running.nodes) == (asked.tag, 1)
    assert running.node_names.startswith("sge")

    bench.batch.cancel([job])
    bench.wait_for(job, JobState.ENDING)
    bench.batch.cancel([job, JobId("999999")])

    assert bench.end(job).end is JobEnd.CANCELLED


def test_program_that_handles_the_warning_leaves_by_itself(bench: Bench) -> None:
    program = (
        "import signal,sys,time\n"
        "signal.signal(signal.SIGUSR2, lambda *_: sys.exit('warned'))\n"
        "print('up', flush=True)\n"
        "time.sleep(600)\n"
    )
    job = bench.submit(bench.job("/usr/bin/python3", "-c", program))
    wait_to_see(bench.output, lambda text: text == "up\n", 60)

    bench.batch.cancel([job])

    assert bench.end(job).reason.startswith("exit 1")
    assert bench.output() == "up\nwarned\n"


def test_job_that_waits_is_queued_and_held_when_it_is(bench: Bench) -> None:
    job = bench.submit(replace(bench.job("true"), directives=("-h",)))
    assert bench.wait_for(job, JobState.HELD).reason == "hqw"

    control("qrls", "-h", "u", job)

    assert bench.end(job).end is JobEnd.COMPLETED


def test_job_in_error_says_why(bench: Bench) -> None:
    job = bench.submit(replace(bench.job("true"), directives=("-wd /not/there",)))
    broken = bench.wait_for(job, JobState.HELD)
    assert broken.reason.startswith("Eqw: ")
    assert "can't chdir to /not/there" in broken.reason
    # It was started once, and is on the books for that: but this is not its end.
    assert not [seen for seen in bench.batch.ended([job], []) if seen.end]


def test_excluded_nodes_are_left_out(bench: Bench) -> None:
    job = bench.submit(replace(bench.job("true"), exclude_nodes=("sge1", "sge3")))
    assert bench.end(job).node_names == "sge2"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"queue": "nowhere.q"}, "unknown queue"),
        ({"account": "nobody"}, "project"),
        ({"directives": ("-frobnicate",)}, "invalid option|[Uu]nknown option"),
        ({"directives": ("-l tpu=1",)}, "unknown resource"),
        ({"directives": ("-pe nosuch 4",)}, "parallel environment"),
        ({"gpus_per_node": 64}, "no suitable queues"),
    ],
)
def test_refusal_comes_in_grid_engines_words(
    bench: Bench, fields: dict[str, object], words: str
) -> None:
    with pytest.raises(SubmissionRefused, match=words):
        bench.submit(replace(bench.job("true"), **fields))  # type: ignore[arg-type]


def test_requeued_job_starts_again_under_its_id(bench: Bench) -> None:
    line = "echo start $RESTARTED; while :; do sleep 0.2; done"
    job = bench.submit(replace(bench.job("bash", "-c", line), requeue=True))
    wait_to_see(bench.output, lambda text: text == "start 0\n", 60)

    control("qmod", "-rj", job)

    wait_to_see(bench.output, lambda text: text.endswith("start 1\n"), 60)
    again = bench.wait_for(job, JobState.RUNNING)
    assert again.restarts == 1
    assert not [seen for seen in bench.batch.ended([job], []) if seen.end]


def test_walltime_warns_the_job_and_then_ends_it(bench: Bench) -> None:
    program = (
        "import signal,time\n"
        "signal.signal(signal.SIGUSR2, lambda *_: print('warned', flush=True))\n"
        "while True: time.sleep(600)\n"
    )
    job = bench.submit(replace(bench.job("/usr/bin/python3", "-c", program), walltime_s=20.0))

    assert bench.end(job, timeout=120).end is JobEnd.TIMED_OUT
    # One or two: it comes twice within a millisecond, and two that are pending are one.
    assert set(bench.output().splitlines()) == {"warned"}


def test_qmaster_away_is_an_error_for_every_call_and_jobs_are_there_afterwards(
    bench: Bench,
) -> None:
    job = bench.submit(bench.job("sleep", "600"))
    bench.wait_for(job, JobState.RUNNING)
    os.kill(recorded("qmaster"), signal.SIGTERM)
    try:
        wait_until(lambda: not _answers(bench), 20)
        with pytest.raises(BatchUnavailable, match=r"qmaster|commlib"):
            bench.batch.cancel([job])
        with pytest.raises(BatchUnavailable, match=r"qmaster|commlib"):
            bench.submit(bench.job("true"))
    finally:
        run_testbed("sge-up", "3")
    assert bench.wait_for(job, JobState.RUNNING).job_id == job


def _answers(bench: Bench) -> bool:
    try:
        bench.batch.observe()
    except BatchUnavailable:
        return False
    return True


# --- whole searches ---

_SITE = """
extends: gridengine
name: testbed
node: {{gpus: 4, cores: 2, memory: 2GB}}
directives: ["-pe {environment} {{slots}}"]
queues:
  - name: all.q
    bins: [{{nodes: "3-3", walltime: "00:10:00"}}]
    queued_max: 10
spool: {{path: {root}/spool, filesystem: shared}}
state: {{index: {root}/index.sqlite}}
runner:
  python: /usr/bin/python3
  node_local_dir: /local_scratch
  drain_margin: 5s
  idle_exit: 20s
planning: {{boot_margin: 2s, default_expected: 5s}}
budgets:
  query_interval: 2s
  queries_per_minute: 40
  submissions_per_hour: 60
  jobs_in_flight: 1
"""
_PAYLOAD = """
import json, os, pathlib, socket, time
x = json.loads(pathlib.Path("input.json").read_text())["x"]
time.sleep(1.5)
where = f"{socket.gethostname()} {os.environ['CUDA_VISIBLE_DEVICES']}"
pathlib.Path("output.json").write_text(json.dumps({"loss": x * x, "message": where}))
"""


@pytest.fixture
def root(cluster: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory on the shared file system; this process gives its commands on the login node."""
    path = Path(tempfile.mkdtemp(dir=SHARED))
    (path / "bin").mkdir()
    for name in ("qsub", "qstat", "qacct", "qdel"):
        real = shutil.which(name)
        assert real is not None
        wrapper = path / "bin" / name
        wrapper.write_text(f'#!/bin/sh\nexec {shlex.join([*on_login_node(), real])} "$@"\n')
        wrapper.chmod(0o755)
    for key, value in {**CELL, "PATH": f"{path / 'bin'}{os.pathsep}{os.environ['PATH']}"}.items():
        monkeypatch.setenv(key, value)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def stack_of(root: Path, environment: str) -> Stack:
    """A stack of a site with this parallel environment."""
    return Stack(root, _SITE.format(root=root, environment=environment))


def write_search(root: Path, points: int) -> Path:
    (root / "evaluate.py").write_text(_PAYLOAD)
    space = {"x": {"method": "uniform", "dimension": {"low": 0.0, "high": 1.0}}}
    (root / "space.json").write_text(json.dumps(space))
    config = {
        "evaluationExec": "/usr/bin/python3 evaluate.py",
        "searchSpaceFile": "space.json",
        "sampler": "random",
        "maxPoints": points,
        "nParallelEvaluation": points,
        "payload": {"gpus_per_node": 1, "cores_per_node": 0, "expected_minutes": 0.1},
    }
    (root / "config.json").write_text(json.dumps(config))
    return root / "config.json"


def test_search_runs_on_all_gpus_of_three_nodes_with_an_agent_each(root: Path) -> None:
    with stack_of(root, "mpi") as stack:
        stack.start_central()
        task = stack.submit(write_search(root, 24))
        stack.start_daemon()
        client = stack.client()
        stack.wait(lambda: _done(client.show(task)), 120, "the search is done")

        points = tuple(client.points(task))

        assert {point["state"] for point in points} == {"done"}
        nodes = {point["attempts"][0]["node"] for point in points}
        assert nodes == {"sge1", "sge2", "sge3"}
        assert all(abs(point["loss"] - point["parameters"]["x"] ** 2) < 1e-9 for point in points)


def test_allocation_on_another_number_of_hosts_says_so(root: Path) -> None:
    with stack_of(root, "pile") as stack:  # fills a node: six slots lie on one
        stack.start_central()
        stack.submit(write_search(root, 4))
        stack.start_daemon()
        words = "gave slots on 1 hosts, 3 were asked for"

        def told() -> bool:
            return any(
                words in path.read_text() for path in root.glob("spool/allocations/*/*/events.*")
            )

        stack.wait(told, 90, "the leader says what is wrong")


def _done(task: Mapping[str, object]) -> bool:
    time.sleep(0.5)
    return task["state"] != "running"
