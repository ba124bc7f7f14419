"""The contract of ``CentralService``, kept by the real service and by the simulated one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harvester.central.port import CentralService, Receipt, Report
from harvester.clock import FakeClock
from harvester.model import AttemptId, LeaseId
from harvester.simulation.central import SimulatedCentral
from payload_runner.files import RealFiles
from payload_runner.protocol import PayloadSpec
from tests.central_service import failure, request, result, running_service, sha256
from tests.postgresql import Cluster, why_not

POINTS = 6
INPUT = b"#!/bin/sh\nexit 0\n"


@dataclass
class Bench:
    """A service with one task of six points that wait, all of which may be leased at once."""

    central: CentralService
    other: CentralService  # the same service, as another harvester sees it
    clock: FakeClock
    counts: Callable[[], dict[str, int]]  # points by state
    losses: Callable[[], list[float | None]]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if why_not():
        pytest.skip(why_not())
    with Cluster(tmp_path_factory.mktemp("postgresql")) as found:
        yield found


@pytest.fixture(params=["sqlite", "simulated", pytest.param("postgresql", marks=pytest.mark.live)])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    if request.param == "simulated":
        yield _simulated()
        return
    url = None
    if request.param == "postgresql":
        url = request.getfixturevalue("cluster").new_database()
    with running_service(tmp_path, url) as service:
        task = service.submit_and_ask()
        service.service.files.add(sha256(INPUT), 0, len(INPUT), INPUT, "alice", 0.0)
        yield Bench(
            service.harvester(),
            service.harvester("other"),
            service.clock,
            lambda: _states(list(service.tasks().points(task))),
            lambda: [point["loss"] for point in service.tasks().points(task)],
        )


def _simulated() -> Bench:
    clock = FakeClock()
    central = SimulatedCentral(
        clock,
        PayloadSpec(payload_id="p1", command="true"),
        [{"x": n / POINTS} for n in range(POINTS)],
        files=RealFiles(),
        inputs={sha256(INPUT): INPUT},
    )

    def counts() -> dict[str, int]:
        return _states([{"state": point.state} for point in central.points.values()])

    return Bench(central, central, clock, counts, lambda: list(central.losses.values()))


def _states(points: list[Any]) -> dict[str, int]:
    found: dict[str, int] = {}
    for point in points:
        found[point["state"]] = found.get(point["state"], 0) + 1
    return found


class TestCentralPort:
    def test_points_come_with_the_payload_that_they_name(self, bench: Bench) -> None:
        reply = bench.central.lease(request(points=2))
        assert len(reply.points) == 2
        assert [spec.payload_id for spec in reply.payloads] == [reply.points[0].payload_id]
        assert reply.more
        assert all(set(point.parameters) == {"x"} for point in reply.points)

    def test_a_known_payload_is_not_sent_again(self, bench: Bench) -> None:
        known = bench.central.lease(request("a", 1)).points[0].payload_id
        assert bench.central.lease(request("b", 1, known_payloads=(known,))).payloads == ()

    @pytest.mark.fault("answer lost or repeated")
    def test_the_same_key_gets_the_same_points(self, bench: Bench) -> None:
        first = bench.central.lease(request("a", 2)).points
        again = bench.central.lease(request("a", 2)).points
        assert [point.lease for point in again] == [point.lease for point in first]
        assert bench.counts() == {"leased": 2, "waiting": 4}

    def test_a_key_whose_leases_have_ended_says_that_it_is_spent(self, bench: Bench) -> None:
        bench.central.lease(request("a", 2))
        bench.clock.advance(2 * 86_400)
        reply = bench.central.lease(request("a", 2))
        assert (reply.points, reply.more) == ((), True)
        assert len(bench.central.lease(request("b", 2)).points) == 2

    def test_no_point_is_leased_to_two_harvesters(self, bench: Bench) -> None:
        mine = bench.central.lease(request("a", 4)).points
        theirs = bench.other.lease(request("b", 4, harvester="other")).points
        assert len({point.point for point in (*mine, *theirs)}) == POINTS

    def test_an_empty_reply_says_that_there_are_none_now(self, bench: Bench) -> None:
        bench.central.lease(request("a"))
        reply = bench.other.lease(request("b", harvester="other"))
        assert (reply.points, reply.more, reply.waiting) == ((), False, 0)

    @pytest.mark.fault("answer lost or repeated")
    def test_a_loss_settles_its_point_once(self, bench: Bench) -> None:
        (point,) = bench.central.lease(request(points=1)).points
        told = result(point, loss=0.25)
        assert bench.central.deliver([told]) == (Receipt(told.attempt, "counted"),)
        assert [item.verdict for item in bench.central.deliver([told])] == ["recorded"]
        assert bench.losses()[:1] == [0.25]

    def test_receipts_come_in_the_order_of_the_results(self, bench: Bench) -> None:
        points = bench.central.lease(request(points=3)).points
        told = [result(point) for point in reversed(points)]
        receipts = bench.central.deliver(told)
        assert [item.attempt for item in receipts] == [item.attempt for item in told]

    def test_an_attempt_that_is_not_final_leaves_the_lease(self, bench: Bench) -> None:
        (point,) = bench.central.lease(request(points=1)).points
        cut = result(point, 1, state="timed_out", blame="walltime", final=False, loss=None)
        assert [item.verdict for item in bench.central.deliver([cut])] == ["recorded"]
        assert bench.central.renew([point.lease]).gone == ()
        assert [item.verdict for item in bench.central.deliver([result(point, 2)])] == ["counted"]

    def test_the_third_own_failure_gives_the_penalty_loss(self, bench: Bench) -> None:
        (point,) = bench.central.lease(request("0", 1)).points
        for number in range(1, 4):
            bench.central.deliver([failure(point)])
            assert bench.counts().get("failed", 0) == (number == 3)
            others = bench.central.lease(request(str(number), POINTS, harvester="edge")).points
            again = [item for item in others if item.point == point.point]
            point = again[0] if again else point
            bench.central.deliver(
                [failure(item, blame="site") for item in others if item is not point]
            )
        assert 1e5 in bench.losses()

    def test_a_failure_of_others_is_not_charged(self, bench: Bench) -> None:
        for number in range(5):
            points = bench.central.lease(request(str(number))).points
            assert len(points) == POINTS
            blame = "node" if number % 2 else "site"
            bench.central.deliver([failure(point, blame=blame) for point in points])
        assert bench.counts() == {"waiting": POINTS}

    def test_an_expired_lease_is_gone_once_others_have_its_point(self, bench: Bench) -> None:
        (point,) = bench.central.lease(request("a", 1)).points
        bench.clock.advance(4000)
        theirs = bench.other.lease(request("b", harvester="other")).points
        assert point.point in {item.point for item in theirs}
        assert bench.central.renew([point.lease]).gone == (point.lease,)

    def test_a_renewed_lease_does_not_expire(self, bench: Bench) -> None:
        (point,) = bench.central.lease(request("a", 1)).points
        for _ in range(3):
            bench.clock.advance(2000)
            assert bench.central.renew([point.lease]).gone == ()
        theirs = bench.other.lease(request("b", harvester="other")).points
        assert point.point not in {item.point for item in theirs}

    @pytest.mark.fault("answer lost or repeated")
    def test_a_late_loss_counts_once(self, bench: Bench) -> None:
        (mine,) = bench.central.lease(request("a", 1)).points
        bench.clock.advance(4000)
        replies = bench.other.lease(request("b", harvester="other")).points
        theirs = next(item for item in replies if item.point == mine.point)
        assert bench.central.deliver([result(mine, loss=0.1)])[0].verdict == "counted"
        assert bench.other.deliver([result(theirs, loss=0.9)])[0].verdict == "recorded"
        assert bench.other.renew([theirs.lease]).gone == (theirs.lease,)
        assert 0.9 not in bench.losses()

    def test_reports_are_taken_and_stop_nothing_by_themselves(self, bench: Bench) -> None:
        (point,) = bench.central.lease(request(points=1)).points
        attempt = AttemptId(f"{point.lease}.1")
        report = Report(point.lease, attempt, ({"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4}))
        assert dict(bench.central.report([report, report])) == {}

    def test_an_input_file_is_brought_whole(self, bench: Bench, tmp_path: Path) -> None:
        target = tmp_path / "input"
        bench.central.fetch_input(sha256(INPUT), target)
        assert target.read_bytes() == INPUT
        assert target.stat().st_mode & 0o777 == 0o600

    def test_tasks_are_listed_with_their_state(self, bench: Bench) -> None:
        (task,) = bench.central.tasks()
        assert (task["task"], task["state"]) == ("1", "running")

    def test_renewing_a_lease_nobody_gave_says_that_it_is_gone(self, bench: Bench) -> None:
        never = LeaseId("1.1.7")
        assert bench.central.renew([never]).gone == (never,)
