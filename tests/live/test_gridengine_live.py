"""The Grid Engine adapter on a real Grid Engine: three nodes in namespaces, agents by qrsh."""

from __future__ import annotations

import os
import pwd
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from harvester.batch.commands import Completed, run_command
from harvester.batch.gridengine import GridEngine
from harvester.batch.port import BatchJob, JobEnd, JobState, ObservedJob
from harvester.errors import BatchUnavailable, SubmissionRefused
from harvester.model import JobId, Tag
from tests.live.clusters import CELL, GridCluster
from tests.support import wait_to_see

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]

CORES = 2  # of a node, as the parallel environment "mpi" gives them


@dataclass
class Bench:
    """The adapter as an ordinary user, with a directory of that user."""

    grid: GridCluster
    directory: Path
    submitted: list[JobId] = field(default_factory=list)

    @property
    def batch(self) -> GridEngine:
        return GridEngine(execute=self._execute, user=self.grid.user)

    def _execute(
        self, argv: Sequence[str], *, timeout_s: float, environment: Mapping[str, str]
    ) -> Completed:
        user = self.grid.user
        switch = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
        own = {**environment, **CELL, "HOME": pwd.getpwnam(user).pw_dir, "USER": user}
        return run_command([*self.grid.enter, *switch, *argv], timeout_s=timeout_s, environment=own)

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
def bench(grid: GridCluster) -> Iterator[Bench]:
    bench = Bench(grid, grid.directory(grid.user))
    yield bench
    bench.batch.cancel(bench.submitted)
    shutil.rmtree(bench.directory, ignore_errors=True)  # a job may be writing its last words


def test_job_runs_privately_in_its_directory_and_is_accounted(bench: Bench) -> None:
    odd = bench.directory / "100% $JOB_ID, a:b 'odd'"
    odd.mkdir()
    os.chown(odd, bench.directory.stat().st_uid, -1)
    line = 'echo "$JOB_ID $NHOSTS $(id -un) $(umask) $RESTARTED"; pwd'
    asked = replace(bench.job("bash", "-c", line, nodes=2), directory=odd)

    job = bench.submit(asked)
    end = bench.end(job)

    assert (end.job_id, end.name, end.end) == (job, asked.tag, JobEnd.COMPLETED)
    assert (odd / "batch.out").read_text() == f"{job} 2 {bench.grid.user} 0077 0\n{odd}\n"
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

    bench.grid.control("qrls", "-h", "u", job)

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

    bench.grid.control("qmod", "-rj", job)

    wait_to_see(bench.output, lambda text: text.endswith("start 1\n"), 60)
    again = bench.wait_for(job, JobState.RUNNING)
    assert again.restarts == 1
    assert not [seen for seen in bench.batch.ended([job], []) if seen.end]


def test_walltime_warns_the_job_and_then_ends_it(bench: Bench) -> None:
    program = (
        "import os,signal,time\n"
        "signal.signal(signal.SIGUSR2, lambda *_: os.write(1, b'warned\\n'))\n"
        "while True: time.sleep(600)\n"
    )
    hasty = ("-l h_rt=00:00:05",)  # ours are whole minutes; what comes last counts
    job = bench.submit(replace(bench.job("/usr/bin/python3", "-c", program), directives=hasty))

    assert bench.end(job, timeout=120).end is JobEnd.TIMED_OUT
    # One or two: it comes twice within a millisecond, and two that are pending are one.
    assert set(bench.output().splitlines()) == {"warned"}


@pytest.mark.slow
def test_qmaster_away_is_an_error_for_every_call_and_jobs_are_there_afterwards(
    bench: Bench,
) -> None:
    job = bench.submit(bench.job("sleep", "600"))
    bench.wait_for(job, JobState.RUNNING)
    bench.grid.stop_qmaster()
    try:
        # Up to half a minute each, for Grid Engine tries for long: so all at once.
        with ThreadPoolExecutor() as pool:
            asked: list[Future[object]] = [
                pool.submit(lambda: bench.batch.observe()),
                pool.submit(lambda: bench.batch.cancel([job])),
                pool.submit(lambda: bench.submit(bench.job("true"))),
            ]
        for answer in asked:
            with pytest.raises(BatchUnavailable, match=r"qmaster|commlib"):
                answer.result()
    finally:
        bench.grid.heal()
    assert bench.wait_for(job, JobState.RUNNING).job_id == job
