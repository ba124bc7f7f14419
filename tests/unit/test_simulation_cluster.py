"""The simulated batch system and runner, driven by hand through real order logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harvester.batch.port import BatchJob, JobEnd, JobState
from harvester.clock import FakeClock
from harvester.errors import BatchUnavailable, SubmissionRefused
from harvester.model import JobId, Tag
from harvester.simulation.agenda import Agenda
from harvester.simulation.cluster import JobStart, SimulatedCluster
from harvester.simulation.memory_files import SharedDisk
from harvester.simulation.runner import SimulatedRunner
from harvester.simulation.workload import Lognormal
from payload_runner.logfile import LogReader, LogWriter
from payload_runner.protocol import (
    AllocationPlan,
    CheckpointRule,
    NodeShape,
    Order,
    PayloadSpec,
    SpoolPaths,
    dump_json,
    to_fields,
)

TAG = Tag("habcde-aaaaaa")
SPOOL = SpoolPaths(Path("/spool"))
SPEC = PayloadSpec("p1", "python train.py", checkpoint=CheckpointRule(("model",), interval_s=100.0))


class Bench:
    """A cluster of four nodes and the harvester's hands."""

    def __init__(self, *, median_s: float = 300.0, wait_s: float = 60.0) -> None:
        self.clock = FakeClock()
        self.agenda = Agenda(self.clock)
        self.disk = SharedDisk(self.clock.monotonic)
        self.login = self.disk.host("login")
        self.cluster = SimulatedCluster(
            self.agenda, self.launch, nodes=4, wait_s=lambda job: wait_s
        )
        self.workload = Lognormal(median_s=median_s, sigma=0.0, failing=frozenset({"bad"}))
        self.paths = SPOOL.allocation(TAG)
        self.login.make_dir(SPOOL.leases)
        self.login.make_dir(self.paths.root)
        plan = AllocationPlan(TAG, "abcde", 2, NodeShape(gpus=2), 1000.0, "simulated")
        self.login.replace(self.paths.plan, dump_json(plan))
        self.orders = self.new_epoch(1)

    def new_epoch(self, epoch: int) -> LogWriter:
        self.login.create_exclusive(SPOOL.epoch_claim(epoch), b"")
        return LogWriter(self.login, self.paths.orders(epoch), self.clock.now, self.clock.monotonic)

    def launch(self, start: JobStart) -> SimulatedRunner:
        return SimulatedRunner(
            start,
            files=self.disk.host(start.node_names[0]),
            spool=SPOOL,
            agenda=self.agenda,
            workload=self.workload,
        )

    def submit(self, **fields: Any) -> JobId:
        job = BatchJob(
            tag=TAG,
            walltime_s=1000.0,
            directory=self.paths.root,
            command=("run",),
            **{"nodes": 2, **fields},
        )
        return self.cluster.submit(job, self.paths.script)

    def order(self, *attempts: str, log: LogWriter | None = None) -> None:
        log = log or self.orders
        log.append("define", to_fields(SPEC))
        for attempt in attempts:
            log.append("order", to_fields(order(attempt)))
        log.commit()

    def events(self, job: JobId, restarts: int = 0) -> list[tuple[str, dict[str, Any]]]:
        path = self.paths.incarnation(job, restarts).events(f"0-{job}-{restarts}")
        records = LogReader(self.login, path, self.clock.monotonic).poll().records
        return [(record.kind, record.fields) for record in records]

    def ends(self, job: JobId) -> dict[str, str]:
        found = [fields for kind, fields in self.events(job) if kind == "attempt_ended"]
        return {fields["attempt"]: fields["state"] for fields in found}


def order(attempt: str) -> Order:
    return Order(attempt, "1", attempt.split(".")[1], "p1", {"x": 1})


def state_of(bench: Bench, job: JobId) -> tuple[JobState, JobEnd | None]:
    return bench.cluster.jobs[job].state, bench.cluster.jobs[job].end


def test_a_job_waits_runs_and_is_killed_at_its_walltime() -> None:
    bench = Bench(wait_s=60.0)
    job = bench.submit()
    bench.agenda.advance(59)
    assert bench.cluster.observe().jobs[0].state is JobState.QUEUED
    bench.agenda.advance(2)
    assert bench.cluster.observe().jobs[0].state is JobState.RUNNING
    bench.cluster.kill(job, JobEnd.TIMED_OUT)
    assert bench.cluster.observe().jobs == ()
    (ended,) = bench.cluster.ended((job,), ())
    assert (ended.state, ended.end) == (JobState.ENDED, JobEnd.TIMED_OUT)


def test_jobs_start_in_turn_as_nodes_become_free() -> None:
    bench = Bench()
    first, second = bench.submit(nodes=3), bench.submit(nodes=2)
    bench.agenda.advance(100)
    assert state_of(bench, second)[0] is JobState.QUEUED
    bench.cluster.cancel([first])
    bench.agenda.advance(10)
    assert state_of(bench, second)[0] is JobState.RUNNING


def test_faults_are_answered_as_the_port_says() -> None:
    bench = Bench()
    bench.cluster.faults.refuses = "QOSMaxSubmitJobPerUserLimit"
    with pytest.raises(SubmissionRefused):
        bench.submit()
    bench.cluster.faults.refuses = ""
    bench.cluster.faults.loses_answers = True
    with pytest.raises(BatchUnavailable):
        bench.submit()
    (taken,) = bench.cluster.ended((), (TAG,))
    bench.cluster.faults.unavailable = True
    with pytest.raises(BatchUnavailable):
        bench.cluster.observe()
    bench.cluster.faults.unavailable = False
    bench.cluster.faults.forgotten.add(taken.job_id)
    assert bench.cluster.observe().jobs == ()


def test_orders_are_run_and_answered() -> None:
    bench = Bench()
    job = bench.submit()
    bench.order("1.1.1.1", "1.bad.1.1")
    bench.agenda.advance(500)
    assert bench.ends(job) == {"1.1.1.1": "succeeded", "1.bad.1.1": "failed"}


def test_more_orders_than_slots_take_turns() -> None:
    bench = Bench(median_s=300.0)
    job = bench.submit()
    bench.order(*(f"1.{n}.1.1" for n in range(6)))
    bench.agenda.advance(60 + 10 + 5 + 305)
    assert len(bench.ends(job)) == 4
    bench.agenda.advance(305)
    assert len(bench.ends(job)) == 6


def test_the_end_of_the_allocation_cuts_and_saves_what_runs_and_hands_back_the_rest() -> None:
    bench = Bench(median_s=5000.0)
    job = bench.submit()
    bench.order(*(f"1.{n}.1.1" for n in range(5)))
    bench.agenda.advance(1060)
    kinds = [kind for kind, _ in bench.events(job)]
    assert set(bench.ends(job).values()) == {"timed_out"}
    assert kinds[-1] == "allocation_ended"
    (handed_back,) = [f for kind, f in bench.events(job) if kind == "handed_back"]
    assert handed_back["attempts"] == ["1.4.1.1"]
    assert state_of(bench, job) == (JobState.ENDED, JobEnd.COMPLETED)
    saved = [fields for kind, fields in bench.events(job) if kind == "checkpoint"]
    assert all(bench.login.exists(SPOOL.root / fields["file"]["path"]) for fields in saved)
    assert len(saved) == 4 * 10  # every 100 s, and at the end


def test_a_lost_node_fails_what_ran_there_and_the_rest_goes_on() -> None:
    bench = Bench()
    job = bench.submit()
    bench.order(*(f"1.{n}.1.1" for n in range(4)))
    bench.agenda.advance(100)
    bench.cluster.lose_node(job, 0)
    bench.agenda.advance(400)
    assert sorted(bench.ends(job).values()) == ["failed", "failed", "succeeded", "succeeded"]


def test_a_new_epoch_fences_the_old_orders_and_repeats_outcomes() -> None:
    bench = Bench(median_s=50.0)
    job = bench.submit()
    bench.order("1.1.1.1")
    bench.agenda.advance(150)
    orders = bench.new_epoch(2)
    bench.order("1.1.1.1", "1.2.1.1", log=orders)
    bench.order("1.3.1.1")  # too late, in the old log
    bench.agenda.advance(100)
    kinds = [kind for kind, _ in bench.events(job)]
    assert kinds.count("fenced") == 1
    assert kinds.count("attempt_started") == 2
    assert kinds.count("attempt_ended") == 3
    assert set(bench.ends(job)) == {"1.1.1.1", "1.2.1.1"}


def test_a_second_job_of_a_tag_does_no_work() -> None:
    bench = Bench()
    first, second = bench.submit(), bench.submit()
    bench.order("1.1.1.1")
    bench.agenda.advance(75)
    assert state_of(bench, second) == (JobState.ENDED, JobEnd.COMPLETED)
    assert state_of(bench, first)[0] is JobState.RUNNING


def test_a_requeued_job_starts_anew_in_its_own_directory() -> None:
    bench = Bench()
    job = bench.submit()
    bench.order("1.1.1.1")
    bench.agenda.advance(100)
    bench.cluster.requeue(job)
    bench.agenda.advance(500)
    assert [kind for kind, _ in bench.events(job, restarts=1)].count("attempt_started") == 1
    assert bench.ends(job) == {}


def test_an_idle_runner_leaves() -> None:
    bench = Bench()
    job = bench.submit()
    bench.agenda.advance(60 + 10 + 130)
    assert state_of(bench, job) == (JobState.ENDED, JobEnd.COMPLETED)


def test_a_job_wider_than_the_cluster_is_refused() -> None:
    with pytest.raises(SubmissionRefused, match="5 nodes"):
        Bench().submit(nodes=5)


def test_a_job_that_waits_for_nodes_says_so() -> None:
    bench = Bench()
    bench.submit(nodes=3)
    second = bench.submit(nodes=2)
    bench.agenda.advance(61)
    (seen,) = [job for job in bench.cluster.observe().jobs if job.job_id == second]
    assert (seen.state, seen.reason) == (JobState.QUEUED, "Resources")
