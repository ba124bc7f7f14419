"""The production daemon over every adapter: it dies with a job taken, or commands misbehave.

Commands and jobs run for real; disk, clock and service are simulated.
"""

from __future__ import annotations

import contextlib
import getpass
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from harvester.batch.commands import Completed, run_command
from harvester.batch.flux import Flux
from harvester.batch.gridengine import GridEngine
from harvester.batch.local import LocalBatch
from harvester.batch.lsf import Lsf
from harvester.batch.pbs import Pbs
from harvester.batch.port import BatchJob, BatchSystem, JobEnd, JobState, Observation, ObservedJob
from harvester.batch.slurm import Slurm
from harvester.daemon import Daemon
from harvester.effects import InlineEffects
from harvester.model import AllocationState, BackfillWindow, JobId, Tag
from harvester.planning.planner import plan
from harvester.simulation.crashes import Crash
from harvester.simulation.world import World
from harvester.site import Budgets
from harvester.store import Store
from payload_runner.protocol import NodeShape
from tests.fakes.cluster import FakeCluster
from tests.simulation.daemon_world import small_world, spool_id_of, status_of
from tests.support import wait_until

HOUR_S = 3600.0
SLEEP = ("sleep", "600")
LOOKS = {
    "slurm": "squeue",
    "pbs": "qselect",
    "lsf": "bjobs",
    "flux": "jobs",
    "gridengine": "qstat",
}
COMMANDS: Mapping[str, Callable[..., BatchSystem]] = {
    "slurm": Slurm,
    "pbs": Pbs,
    "lsf": Lsf,
    "flux": Flux,
    "gridengine": GridEngine,
}


@dataclass
class DeadlyBatch:
    """A batch system that takes the first job, after which the process is gone."""

    batch: BatchSystem
    directory: Path  # on a real disk, where the spool of these tests is not
    command: Sequence[str] = SLEEP
    deadly: bool = True
    submitted: int = 0
    asked: list[str] = field(default_factory=list)  # status commands that were run
    cluster: FakeCluster | None = None  # none of the local batch system

    def __post_init__(self) -> None:
        self.name = self.batch.name
        self.capabilities = self.batch.capabilities

    def render(self, job: BatchJob) -> str:
        return self.batch.render(job)

    def backfill_windows(self) -> tuple[BackfillWindow, ...]:
        return self.batch.backfill_windows()

    def release(self, jobs: Sequence[JobId]) -> None:
        self.batch.release(jobs)

    def submit(self, job: BatchJob, script: Path) -> JobId:
        job = replace(
            job,
            directory=self.directory,
            command=tuple(self.command),
            queue="",
            gpus_per_node=1,
            cores_per_node=1,
            memory_mb_per_node=0,
        )
        script = self.directory / "batch.sh"
        script.write_text(self.batch.render(job))
        job_id = self.batch.submit(job, script)
        self.submitted += 1
        if self.deadly:
            raise Crash("the process is gone")
        return job_id

    def observe(self) -> Observation:
        return self.batch.observe()

    def ended(self, jobs: Sequence[JobId], tags: Sequence[Tag]) -> tuple[ObservedJob, ...]:
        return self.batch.ended(jobs, tags)

    def cancel(self, jobs: Sequence[JobId]) -> None:
        self.batch.cancel(jobs)


@pytest.fixture(params=["local", *COMMANDS])
def batch(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DeadlyBatch]:
    directory = tmp_path / "job"
    directory.mkdir()
    if request.param == "local":
        local = LocalBatch(tmp_path / "cluster", 2, NodeShape(gpus=2, cores=2), 0.5)
        yield DeadlyBatch(local, directory)
        local.shut_down()
        return
    asked: list[str] = []

    def execute(
        argv: Sequence[str], *, timeout_s: float, environment: Mapping[str, str]
    ) -> Completed:
        if not argv[0].endswith(("/id", "sbatch", "qsub", "sh")) and argv[1] != "batch":
            asked.append(argv[0])
        return run_command(argv, timeout_s=timeout_s, environment=environment)

    with FakeCluster(tmp_path / "cluster", request.param) as cluster:
        environment = cluster.environment(os.environ)
        adapter = COMMANDS[request.param](environment=environment, execute=execute)
        yield DeadlyBatch(adapter, directory, asked=asked, cluster=cluster)


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = small_world(tmp_path)
    site = replace(world.scenario.site, budgets=Budgets(jobs_in_flight=1))
    world.scenario = replace(world.scenario, site=site)
    return world


def daemon_of(world: World, batch: DeadlyBatch) -> Daemon:
    return Daemon(
        world.scenario.site,
        batch=batch,
        central=world.central,
        files=world.login,
        clock=world.clock,
        effects=InlineEffects(),
        plan=plan,
        seed=1,
    )


def die_after_submission(world: World, batch: DeadlyBatch) -> None:
    with pytest.raises(Crash):
        world.run(daemon_of(world, batch), lambda: False, limit_s=HOUR_S)
    batch.deadly = False


def job_of(batch: DeadlyBatch) -> ObservedJob:
    (job,) = wait_until(lambda: batch.observe().jobs)
    return job


def follow(world: World, batch: DeadlyBatch, seconds: float) -> None:
    """Another daemon, which counts every status command that it has run."""
    world.clock.advance(10 * 60.0)  # the dead one's lease is over
    end = world.clock.monotonic() + seconds
    batch.asked.clear()
    daemon = daemon_of(world, batch)
    world.run(daemon, lambda: world.clock.monotonic() > end, limit_s=2 * seconds)
    daemon.close()
    with index_of(world) as store:
        counted = store.spendings.within("query", seconds + 60.0, world.clock.now())
    assert len(batch.asked) <= counted <= 2 * seconds / 60.0 + 2


def known_allocations(world: World) -> dict[str, tuple[AllocationState, str | None]]:
    with index_of(world) as store:
        return {row.tag: (row.state, row.job_id) for row in store.allocations.not_ended()}


@contextlib.contextmanager
def index_of(world: World) -> Iterator[Store]:
    store = Store.open(world.scenario.site.index, spool_id_of(world))
    assert store is not None
    yield store
    store.close()


def test_job_is_found_by_its_tag_and_not_submitted_again(world: World, batch: DeadlyBatch) -> None:
    die_after_submission(world, batch)
    wait_until(lambda: job_of(batch).state is JobState.RUNNING)
    job = job_of(batch)
    assert list(known_allocations(world).values()) == [(AllocationState.SUBMITTING, None)]

    follow(world, batch, 300.0)

    assert batch.submitted == 1
    assert known_allocations(world) == {job.name: (AllocationState.RUNNING, job.job_id)}


def test_job_that_has_ended_meanwhile_is_known_to_have_been_there(
    world: World, batch: DeadlyBatch
) -> None:
    batch.command = ("true",)
    die_after_submission(world, batch)
    ((tag, _),) = known_allocations(world).items()
    wait_until(lambda: [job.end for job in batch.ended([], [Tag(tag)])] == [JobEnd.COMPLETED])

    follow(world, batch, 150.0)

    with index_of(world) as store:
        row = store.allocations.get(Tag(tag))
    assert row.state is AllocationState.ENDED
    assert row.witness in ("batch system", "accounting")


@pytest.mark.parametrize("batch", COMMANDS, indirect=True)
def test_nothing_is_submitted_until_looks_are_sound(world: World, batch: DeadlyBatch) -> None:
    assert batch.cluster is not None
    batch.deadly = False
    batch.cluster.plant(user=getpass.getuser())  # so that there is a list to damage
    daemon = daemon_of(world, batch)
    for fault in ("down", "garbage", "partial", "lost"):
        batch.cluster.fault(**{LOOKS[batch.name]: fault})
        asked = len(batch.asked)
        end = world.clock.monotonic() + 200.0

        world.run(
            daemon,
            lambda end=end, asked=asked: world.clock.monotonic() > end and len(batch.asked) > asked,
            limit_s=2 * HOUR_S,
        )

        assert batch.submitted == 0, fault
        assert status_of(world)["budgets"]["breaker"].startswith("open since"), fault
    batch.cluster.fault()

    world.run(daemon, lambda: batch.submitted > 0, limit_s=2 * HOUR_S)

    daemon.close()
