"""Traits of the daemon that no whole search would show by itself."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from harvester.batch.port import JobEnd, JobState
from harvester.errors import Fenced
from harvester.model import AttemptId, AttemptState, PointId
from harvester.simulation.workload import SimulatedPayload
from harvester.simulation.world import World, parameters_of
from harvester.site import Budgets, SubmissionRules
from harvester.store import Store
from payload_runner.logfile import LogReader, LogWriter
from payload_runner.protocol import CheckpointRule, InputFile, Order, PayloadSpec
from tests.simulation.daemon_world import (
    BAD_POINT,
    DAY_S,
    POINTS,
    problems_of,
    running_jobs,
    small_world,
    spool_id_of,
    status_of,
)
from tests.simulation.reference import reference_site


def records(world: World, path: Path) -> list[str]:
    reader = LogReader(world.login, path, world.clock.monotonic)
    return [record.kind for record in reader.poll().records]


def test_the_status_is_what_its_schema_says(tmp_path: Path) -> None:
    world = small_world(tmp_path)
    daemon = world.daemon()
    world.run(daemon, lambda: world.central.unsettled < POINTS, limit_s=DAY_S)
    schema = files("harvester") / "schemas" / "status.schema.json"
    jsonschema.validate(status_of(world), json.loads(schema.read_text()))
    daemon.close()
    assert status_of(world)["state"] == "stopped"
    jsonschema.validate(status_of(world), json.loads(schema.read_text()))


def test_what_is_submitted_held_starts_when_a_person_releases_it(tmp_path: Path) -> None:
    site = reference_site(tmp_path / "index", submission=SubmissionRules(held=True))
    world = small_world(tmp_path, site=site)
    daemon = world.daemon()
    world.run(daemon, lambda: bool(world.cluster.jobs), limit_s=DAY_S)
    since = world.clock.now()
    world.run(daemon, lambda: world.clock.now() > since + 3600, limit_s=DAY_S)
    jobs = len(world.cluster.jobs)
    world.run(daemon, lambda: world.clock.now() > since + 6 * 3600, limit_s=DAY_S)

    # Hours of waiting bring no more of them.
    held = held_allocations(world)
    assert len(held) == jobs == len(world.cluster.jobs)
    assert {item["submitted_held"] for item in held} == {True}
    assert {(item["started"], item["remaining_s"]) for item in held} == {(None, None)}
    assert not running_jobs(world)
    assert world.central.unsettled == POINTS

    world.cluster.release(list(world.cluster.jobs))
    world.run(daemon, lambda: bool(running_jobs(world)), limit_s=DAY_S)


def held_allocations(world: World) -> list[dict[str, Any]]:
    return [item for item in status_of(world)["allocations"] if item["state"] == "held"]


@pytest.mark.fault("two daemons")
def test_a_second_daemon_refuses_with_the_name_of_the_first(tmp_path: Path) -> None:
    world = small_world(tmp_path)
    first = world.daemon()
    world.run(first, lambda: bool(world.cluster.jobs), limit_s=DAY_S)
    second = world.daemon(seed=2)

    def both() -> None:
        for _ in range(100):
            world.agenda.advance(first.tick().next_in_s)
            second.tick()

    with pytest.raises(Fenced, match=r"pid \d+.*drives /spool"):
        both()


@pytest.mark.fault("daemon paused")
def test_a_daemon_that_slept_for_an_hour_does_nothing_more(tmp_path: Path) -> None:
    world = small_world(tmp_path)
    sleeper = world.daemon()
    world.run(sleeper, lambda: bool(running_jobs(world)), limit_s=DAY_S)
    successor = world.daemon(seed=2)
    world.run(successor, world.is_over, limit_s=DAY_S)
    calls = dict(world.central.books.calls)
    with pytest.raises(Fenced):
        sleeper.tick()
    assert dict(world.central.books.calls) == calls
    assert world.central.unsettled == 0


def test_a_day_of_cron_runs_stays_in_one_epoch(tmp_path: Path) -> None:
    world = small_world(tmp_path)
    for _ in range(60):
        if world.is_over():
            break
        world.daemon().run_once(60.0)
        world.agenda.advance(300)
    assert world.central.unsettled == 0
    assert set(world.central.books.told.values()) == {1}
    assert world.login.listdir(world.spool.leases) == ("1",)
    ledger = records(world, world.scenario.site.state_dir / "ledger.1.log")
    assert ledger.count("open") == 1


def test_nothing_is_submitted_while_a_stop_file_lies_in_the_spool(tmp_path: Path) -> None:
    world = small_world(tmp_path)
    world.login.create_exclusive(world.spool.stop, b"")
    daemon = world.daemon()
    world.run(daemon, lambda: world.clock.monotonic() > 5000, limit_s=DAY_S)
    assert not world.cluster.jobs
    assert status_of(world)["state"] == "draining"
    world.login.remove(world.spool.stop)
    world.run(daemon, world.is_over, limit_s=DAY_S)
    assert world.central.unsettled == 0


def test_an_idle_daemon_asks_nobody_and_writes_nothing_but_its_lease(tmp_path: Path) -> None:
    world = small_world(tmp_path)
    daemon = world.daemon()
    world.run(daemon, world.is_over, limit_s=DAY_S)
    until = world.clock.monotonic() + 1200
    world.run(daemon, lambda: world.clock.monotonic() > until, limit_s=DAY_S)
    ledger = world.scenario.site.state_dir / "ledger.1.log"
    before = (len(records(world, ledger)), world.cluster.queries)
    until = world.clock.monotonic() + 3600
    world.run(daemon, lambda: world.clock.monotonic() > until, limit_s=DAY_S)
    assert (len(records(world, ledger)), world.cluster.queries) == before


def test_a_job_that_ends_before_its_runner_speaks_is_not_followed_by_many(
    tmp_path: Path,
) -> None:
    world = small_world(tmp_path)
    daemon = world.daemon()

    def kill_all() -> bool:
        for job in list(world.cluster.jobs.values()):
            if job.state is not JobState.ENDED:
                world.cluster.kill(job.job_id, JobEnd.FAILED)
        return world.clock.monotonic() > 1000 + 3600

    world.run(daemon, kill_all, limit_s=DAY_S)
    assert len(world.cluster.jobs) < 12
    assert any("before its runner started" in what for what in problems_of(world))
    world.run(daemon, world.is_over, limit_s=DAY_S)
    assert world.central.unsettled == 0
    assert not problems_of(world)


def test_budgets_are_hard(tmp_path: Path) -> None:
    world = small_world(tmp_path, parameters=parameters_of(24))
    site = replace(
        world.scenario.site,
        budgets=Budgets(submissions_per_hour=1, jobs_in_flight=1, queries_per_minute=1),
    )
    world.scenario = replace(world.scenario, site=site)
    daemon = world.daemon()
    began = world.clock.monotonic()
    submitted: dict[str, float] = {}

    def watch() -> bool:
        for name in world.cluster.jobs:
            submitted.setdefault(name, world.clock.monotonic())
        return world.is_over()

    world.run(daemon, watch, limit_s=2 * DAY_S)
    times = sorted(submitted.values())
    assert all(later - earlier >= 3590 for earlier, later in pairwise(times))
    assert len(times) > 1
    minutes = (world.clock.monotonic() - began) / 60
    assert world.cluster.queries <= minutes + 1


def test_a_point_stopped_by_the_service_is_stopped_wherever_it_is(tmp_path: Path) -> None:
    world = small_world(tmp_path, lease_s=600.0)
    daemon = world.daemon()
    world.run(daemon, lambda: bool(status_of_running(world)), limit_s=DAY_S)
    running = status_of_running(world)[0]
    for point in world.central.points:
        world.central.stop[point] = "cancelled"
    world.run(daemon, world.is_over, limit_s=DAY_S)
    assert {point.state for point in world.central.points.values()} <= {"done", "cancelled"}
    assert world.central.books.results[AttemptId(running)].state == "cancelled"


def state_of(world: World, attempt: str) -> AttemptState | None:
    store = Store.open(world.scenario.site.index, spool_id_of(world))
    assert store is not None
    try:
        return store.attempts.state(AttemptId(attempt))
    finally:
        store.close()


def status_of_running(world: World) -> list[str]:
    if not world.login.exists(world.spool.status):
        return []
    return [point["attempt"] for point in status_of(world)["points"]]


@pytest.mark.fault("answer lost or repeated")
def test_a_result_that_comes_after_its_attempt_was_lost_counts_once(tmp_path: Path) -> None:
    """The job is declared ended while the login node cannot see its last events yet."""
    world = small_world(tmp_path)
    daemon = world.daemon()
    world.run(daemon, lambda: bool(status_of_running(world)), limit_s=DAY_S)
    attempt = status_of_running(world)[0]
    (name,) = running_jobs(world)[:1]
    home = world.spool.allocation(world.cluster.jobs[name].job.tag).incarnation(name, 0)
    for job in running_jobs(world):
        world.cluster.kill(job, JobEnd.NODE_FAILED)
    world.run(daemon, lambda: state_of(world, attempt) is AttemptState.LOST, limit_s=DAY_S)
    late = LogWriter(world.login, home.events("1-late"), world.clock.now, world.clock.monotonic)
    late.append("attempt_ended", {"attempt": attempt, "state": "succeeded", "loss": 0.125})
    late.commit()
    world.run(daemon, world.is_over, limit_s=DAY_S)
    point = world.central.points[PointId(attempt.split(".")[1])]
    assert (point.state, point.loss, point.settled_by) == ("done", 0.125, attempt)


def test_input_files_lie_in_the_spool_before_the_first_order(tmp_path: Path) -> None:
    content = b"print('hello')"
    digest = hashlib.sha256(content).hexdigest()
    spec = PayloadSpec(
        "p1",
        "python train.py",
        files=(InputFile("train.py", digest, len(content)),),
        checkpoint=CheckpointRule(("model",), interval_s=120.0),
    )
    world = small_world(tmp_path, payload=spec)
    world.central.add_input(digest, content)
    daemon = world.daemon()
    world.run(daemon, world.is_over, limit_s=DAY_S)
    assert world.login.read(world.spool.input(digest), 0, 100) == content
    assert world.central.books.calls["fetch_input"] == 1
    assert world.central.unsettled == 0


def test_every_ended_allocation_has_a_witness(tmp_path: Path) -> None:
    world = small_world(tmp_path)
    daemon = world.daemon()
    world.run(daemon, world.is_over, limit_s=DAY_S)
    until = world.clock.monotonic() + 600
    world.run(daemon, lambda: world.clock.monotonic() > until, limit_s=DAY_S)
    daemon.close()
    store = Store.open(world.scenario.site.index, spool_id_of(world))
    assert store is not None
    rows = store.allocations.newest_ended(100)
    assert rows
    assert not store.allocations.not_ended()
    assert all(row.witness in ("runner", "accounting", "batch system") for row in rows)


def test_a_point_that_fails_by_itself_goes_on_from_its_checkpoint_once(tmp_path: Path) -> None:
    """And then from zero: what it was resumed from may be what it fails by."""

    def crashing(order: Order) -> SimulatedPayload:
        if order.point == BAD_POINT:
            return SimulatedPayload(work_s=1000.0, loss=None)
        return SimulatedPayload(work_s=600.0, loss=0.5)

    world = small_world(tmp_path, workload=crashing)
    world.run(world.daemon(), world.is_over, limit_s=DAY_S)
    results = world.central.books.results.values()
    failed = sorted(
        (result.attempt, result.resumed_from) for result in results if result.blame == "point"
    )
    first, second, third = (attempt for attempt, _ in failed)
    assert failed == [(first, None), (second, first), (third, None)]
