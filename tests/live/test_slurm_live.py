"""The Slurm adapter on a real Slurm: nodes in namespaces, accounting, outages, lost nodes."""

from __future__ import annotations

import math
import os
import pwd
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from harvester.batch.commands import Completed, run_command
from harvester.batch.port import BatchJob, JobEnd, JobState, ObservedJob
from harvester.batch.slurm import Slurm
from harvester.errors import BatchUnavailable, SubmissionRefused
from harvester.model import BackfillWindow, JobId, Tag
from harvester.service.crontab import Table, render_entry
from harvester.service.facts import Service
from harvester.site import Queue, Site, WalltimeBin
from payload_runner.protocol import NodeShape
from tests.live.clusters import SlurmCluster
from tests.support import wait_to_see, wait_until

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]


def run_as(user: str) -> dict[str, str]:
    owner = pwd.getpwnam(user)
    return {"HOME": owner.pw_dir, "USER": user, "LOGNAME": user}


@dataclass
class Bench:
    """The adapter as one user, with a directory of that user."""

    cluster: SlurmCluster
    user: str
    directory: Path
    submitted: list[JobId] = field(default_factory=list)
    project: str = ""

    @property
    def batch(self) -> Slurm:
        return Slurm(execute=self._execute, user=self.user, project=self.project)

    def _execute(
        self, argv: Sequence[str], *, timeout_s: float, environment: Mapping[str, str]
    ) -> Completed:
        switch = ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--init-groups"]
        own = {**environment, **run_as(self.user)}
        return run_command([*switch, *argv], timeout_s=timeout_s, environment=own)

    def job(self, *command: str) -> BatchJob:
        return BatchJob(
            tag=Tag(f"habcde-{uuid.uuid4().hex[:6]}"),
            nodes=1,
            walltime_s=600.0,
            directory=self.directory,
            command=command,
            cores_per_node=1,
        )

    def submit(self, job: BatchJob) -> JobId:
        script = self.directory / f"{job.tag}.sh"
        script.write_text(self.batch.render(job))
        script.chmod(0o644)
        job_id = self.batch.submit(job, script)
        self.submitted.append(job_id)
        return job_id

    def seen(self, job: JobId) -> ObservedJob:
        return next(seen for seen in self.batch.observe().jobs if seen.job_id == job)

    def wait_for(self, job: JobId, *states: JobState, timeout: float = 60.0) -> ObservedJob:
        """The job as it was first seen in one of these states."""
        return wait_to_see(lambda: self.seen(job), lambda seen: seen.state in states, timeout)

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
def bench(slurm_cluster: SlurmCluster, request: pytest.FixtureRequest) -> Iterator[Bench]:
    user = getattr(request, "param", slurm_cluster.user)
    bench = Bench(slurm_cluster, user, slurm_cluster.directory(user))
    yield bench
    bench.batch.cancel(bench.submitted)
    shutil.rmtree(bench.directory, ignore_errors=True)  # a job may be writing its last words


both_users = pytest.mark.parametrize("bench", ["root", "hpcuser"], indirect=True)


@both_users
def test_job_runs_on_nodes_and_gpus_of_its_own_and_is_accounted(bench: Bench) -> None:
    line = 'echo "$SLURM_JOB_ID $SLURM_JOB_NUM_NODES $CUDA_VISIBLE_DEVICES $(id -un) $(umask)"'
    asked = replace(bench.job("bash", "-c", line), nodes=2, gpus_per_node=2)

    job = bench.submit(asked)
    end = bench.end(job)

    assert (end.job_id, end.nodes, end.end) == (job, 2, JobEnd.COMPLETED)
    assert bench.output().split() == [job, "2", "0,1", bench.user, "0077"]


@both_users
def test_running_job_is_cancelled(bench: Bench) -> None:
    job = bench.submit(bench.job("sleep", "600"))
    running = bench.wait_for(job, JobState.RUNNING)
    assert running.node_names.startswith("node")

    bench.batch.cancel([job])

    assert bench.end(job).end is JobEnd.CANCELLED
    bench.batch.cancel([job, JobId("999999")])


def test_failed_job_tells_its_exit_code(bench: Bench) -> None:
    job = bench.submit(bench.job("bash", "-c", "exit 7"))
    end = bench.end(job)
    assert (end.end, end.reason) == (JobEnd.FAILED, "FAILED, exit 7:0")


def test_job_is_found_by_its_tag(bench: Bench) -> None:
    asked = bench.job("true")
    job = bench.submit(asked)
    assert [seen.job_id for seen in bench.batch.observe().jobs if seen.name == asked.tag] == [job]
    bench.end(job)

    # Accounting may learn a job's name seconds after its end.
    (found,) = wait_until(lambda: bench.batch.ended([], [asked.tag]), 60)
    assert (found.job_id, found.name) == (job, asked.tag)


def test_job_that_the_administrator_holds_is_held_until_released(bench: Bench) -> None:
    whole = bench.submit(replace(bench.job("sleep", "600"), nodes=3, cores_per_node=8))
    bench.wait_for(whole, JobState.RUNNING)
    job = bench.submit(bench.job("true"))
    bench.cluster.control("hold", job)
    held = bench.wait_for(job, JobState.HELD)
    assert held.reason == "JobHeldAdmin"

    bench.cluster.control("release", job)
    bench.batch.cancel([whole])

    assert bench.end(job).end is JobEnd.COMPLETED


def test_job_that_waits_says_why(bench: Bench) -> None:
    whole = replace(bench.job("sleep", "600"), nodes=3, cores_per_node=8)
    first = bench.submit(whole)
    bench.wait_for(first, JobState.RUNNING)

    second = bench.submit(replace(whole, tag=Tag("habcde-waits2")))

    waits = ("Resources", "Priority")
    seen = wait_to_see(lambda: bench.seen(second), lambda seen: seen.reason in waits, 60)
    assert seen.state is JobState.QUEUED


def test_requeued_job_starts_again_under_its_id(bench: Bench) -> None:
    asked = replace(
        bench.job("bash", "-c", "echo ${SLURM_RESTART_COUNT-0}; sleep 600"), requeue=True
    )
    job = bench.submit(asked)
    bench.wait_for(job, JobState.RUNNING)

    bench.cluster.control("requeue", job)
    waits = wait_to_see(lambda: bench.seen(job), lambda seen: seen.reason == "BeginTime", 60)
    assert (waits.state, waits.restarts) == (JobState.QUEUED, 1)

    assert bench.wait_for(job, JobState.RUNNING, timeout=120).restarts == 1
    wait_to_see(bench.output, lambda text: text.endswith("1\n"), 60)


def test_job_that_may_not_requeue_ends_instead(bench: Bench) -> None:
    job = bench.submit(bench.job("sleep", "600"))
    bench.wait_for(job, JobState.RUNNING)
    with pytest.raises(subprocess.CalledProcessError):
        bench.cluster.control("requeue", job)


def test_excluded_nodes_are_left_out(bench: Bench) -> None:
    job = bench.submit(replace(bench.job("true"), exclude_nodes=("node1", "node3")))
    assert bench.end(job).node_names == "node2"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"queue": "nowhere"}, "nvalid partition"),
        ({"directives": ("--frobnicate",)}, "unrecognized option"),
        ({"directives": ("--gres=tpu:1",)}, "generic resource"),
        ({"exclude_nodes": ("nosuchnode",)}, "node name"),
        ({"directives": ("--nodes=bogus",)}, "node count"),
    ],
)
def test_refusal_comes_in_slurms_words(bench: Bench, fields: dict[str, object], words: str) -> None:
    with pytest.raises(SubmissionRefused, match=words):
        bench.submit(replace(bench.job("true"), **fields))  # type: ignore[arg-type]


def test_jobs_of_the_project_are_listed_apart_whosever_they_are(bench: Bench) -> None:
    mate = Bench(bench.cluster, "root", bench.cluster.directory())
    bench.project = "proj"
    nobody_runs = ("--begin=now+1hour",)
    try:
        theirs = mate.submit(replace(mate.job("true"), account="proj", directives=nobody_runs))
        foreign = mate.submit(replace(mate.job("true"), account="root", directives=nobody_runs))
        ours = bench.submit(replace(bench.job("true"), account="proj", directives=nobody_runs))

        seen = bench.batch.observe()
    finally:
        mate.batch.cancel(mate.submitted)
        shutil.rmtree(mate.directory)

    shown = {job.job_id for job in seen.jobs}
    of_project = {job.job_id: (job.user, job.account, job.queue) for job in seen.of_project}
    assert (ours in shown, theirs in shown, foreign in shown) == (True, False, False)
    assert of_project[ours] == ("hpcuser", "proj", "batch")
    assert of_project[theirs] == ("root", "proj", "batch")
    assert foreign not in of_project


def test_jobs_with_wild_names_are_listed_beside_ours(bench: Bench) -> None:
    ours = bench.submit(bench.job("sleep", "600"))
    names = ["two\nlines|here", "ünï|cödé", "x" * 100, "  blanks  "]
    others = [_submit_named(bench, name) for name in names]

    seen = {seen.job_id: seen.name for seen in bench.batch.observe().jobs}

    assert seen[others[0]] == names[0]
    assert seen[others[1]] == names[1]
    assert seen[others[2]] == "x" * 64
    assert ours in seen


def test_paths_with_blanks_and_percent_signs_are_paths(bench: Bench) -> None:
    odd = bench.directory / "100% %j 'odd'"
    odd.mkdir()
    os.chown(odd, bench.directory.stat().st_uid, -1)
    job = bench.submit(replace(bench.job("pwd"), directory=odd))

    assert bench.end(job).end is JobEnd.COMPLETED
    assert (odd / "batch.out").read_text() == f"{odd}\n"


def test_nodes_cannot_reach_the_login_nodes_loopback_nor_the_outside(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        line = (
            f"(: </dev/tcp/127.0.0.1/{port}) 2>/dev/null && echo loopback;"
            "(: </dev/tcp/192.0.2.1/80) 2>/dev/null && echo outside; echo done"
        )
        bench.end(bench.submit(bench.job("bash", "-c", line)))
    assert bench.output() == "done\n"


def test_accounting_daemon_away_is_an_error_and_only_for_accounting(bench: Bench) -> None:
    job = bench.submit(bench.job("sleep", "600"))
    bench.cluster.stop("slurmdbd")
    try:
        with pytest.raises(BatchUnavailable, match=r"database|persist"):
            wait_until(lambda: not bench.batch.ended([job], []), 60)
        assert bench.seen(job).job_id == job
    finally:
        bench.cluster.heal()
    assert wait_until(lambda: bench.batch.ended([job], []), 60)[0].job_id == job


@pytest.mark.fault("scheduler away")
def test_controller_away_is_an_error_for_every_call_and_jobs_are_there_afterwards(
    bench: Bench,
) -> None:
    job = bench.submit(bench.job("sleep", "600"))
    bench.wait_for(job, JobState.RUNNING)
    bench.cluster.stop("slurmctld")
    try:
        # 9 s each, for Slurm tries for long: so all at once.
        with ThreadPoolExecutor() as pool:
            asked: list[Future[object]] = [
                pool.submit(lambda: bench.batch.observe()),
                pool.submit(lambda: bench.batch.cancel([job])),
                pool.submit(lambda: bench.submit(bench.job("true"))),
            ]
        assert [type(answer.exception()) for answer in asked] == [BatchUnavailable] * 3
    finally:
        bench.cluster.heal()
    assert bench.wait_for(job, JobState.RUNNING).job_id == job


def test_options_of_a_scrontab_entry_are_options_of_slurm(bench: Bench) -> None:
    """There is no scrontab in Debian's Slurm, but it reads ``#SCRON`` as sbatch ``#SBATCH``."""
    limits = WalltimeBin(nodes_min=1, nodes_max=1, walltime_max_s=600.0)
    site = Site(
        name="testbed",
        batch_system="slurm",
        node=NodeShape(gpus=0, cores=1),
        queues=(Queue(name="batch", bins=(limits,)),),
        spool=bench.directory,
        account="proj",
    )
    service = Service(site=site, named="testbed", harvester=("true",), user="ada", environment={})
    log = str(bench.directory / 'it\'s 100% "quoted" #1.log')
    entry = render_entry(service, "/true", log, Table.SCRON)
    options = "".join(
        line.replace("#SCRON", "#SBATCH")
        for line in entry.splitlines(keepends=True)
        if line.startswith("#SCRON")
    )
    script = bench.directory / "entry.sh"
    script.write_text(f"#!/bin/sh\n{options}")
    script.chmod(0o755)

    done = bench._execute(
        ["sbatch", "--parsable", "--hold", str(script)], timeout_s=30.0, environment=os.environ
    )
    job = JobId(done.stdout.strip())
    bench.submitted.append(job)

    shown = bench.cluster.control("show", "job", job)
    assert "JobName=harvester-testbed" in shown
    assert "Account=proj" in shown
    assert "TimeLimit=00:10:00" in shown
    assert f"StdOut={log.replace('%', '%%')}\n" in shown


@pytest.mark.fault("node lost")
def test_lost_node_ends_its_job_as_the_nodes_failure(bench: Bench) -> None:
    job = bench.submit(replace(bench.job("sleep", "600"), exclude_nodes=("node1", "node2")))
    assert bench.wait_for(job, JobState.RUNNING).node_names == "node3"
    bench.cluster.kill("node3")
    try:
        end = bench.wait_for(job, JobState.ENDED, timeout=90)
        assert end.end is JobEnd.NODE_FAILED
        assert bench.end(job).end is JobEnd.NODE_FAILED
    finally:
        bench.cluster.heal()


@pytest.mark.slow
def test_walltime_warns_the_script_and_then_ends_the_job(bench: Bench) -> None:
    program = (
        "import signal,time\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('warned', flush=True))\n"
        "while True: time.sleep(600)\n"
    )
    asked = replace(bench.job("/usr/bin/python3", "-c", program), walltime_s=40.0, warn_s=30.0)
    job = bench.submit(asked)

    end = bench.end(job, timeout=180)

    assert end.end is JobEnd.TIMED_OUT
    assert bench.output().startswith("warned\n")


def _submit_named(bench: Bench, name: str) -> JobId:
    done = bench._execute(
        ["sbatch", "--parsable", "--hold", f"--job-name={name}", "--output=/dev/null",
         f"--chdir={bench.directory}", "--wrap=true"],
        timeout_s=30.0,
        environment=os.environ,
    )  # fmt: skip
    job = JobId(done.stdout.strip())
    bench.submitted.append(job)
    return job


@pytest.mark.slow
def test_idle_nodes_are_free_until_the_job_that_is_expected_there(bench: Bench) -> None:
    def alone(nodes: int) -> BatchJob:
        return replace(bench.job("sleep", "300"), nodes=nodes, directives=("--exclusive",))

    began = time.time()
    nodes = bench.cluster.nodes
    first = bench.submit(alone(nodes - 1))
    bench.wait_for(first, JobState.RUNNING)
    assert BackfillWindow("batch", 1, math.inf) in bench.batch.backfill_windows()

    # It gets its last node now, and the others when the first job's ten minutes are over.
    bench.submit(alone(nodes))
    (window,) = wait_to_see(
        lambda: [found for found in bench.batch.backfill_windows() if found.queue == "batch"],
        lambda found: [item.until < math.inf for item in found] == [True],
    )
    assert window.nodes == 1
    assert began + 500 < window.until < began + 1000

    # What ends before starts there at once.
    soon = replace(alone(1), walltime_s=120.0)
    bench.wait_for(bench.submit(soon), JobState.RUNNING)


@both_users
def test_held_job_is_said_to_be_held_by_its_user_and_starts_when_released(bench: Bench) -> None:
    held = bench.submit(replace(bench.job("true"), held=True))
    seen = bench.seen(held)
    assert (seen.state, seen.reason) == (JobState.HELD, "JobHeldUser")

    bench.batch.release([held])

    assert bench.end(held).end is JobEnd.COMPLETED
    bench.batch.release([held])  # gone: nothing to do
