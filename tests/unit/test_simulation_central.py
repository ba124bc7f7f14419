"""The simulated central service: leases that expire, charges, and books that add up."""

from __future__ import annotations

from typing import Any

import pytest

from harvester.central.port import LeaseReply, LeaseRequest, Result
from harvester.clock import FakeClock
from harvester.errors import CentralUnavailable
from harvester.model import AttemptId, LeaseId, PointId
from harvester.simulation.central import SimulatedCentral
from payload_runner.protocol import PENALTY_LOSS, PayloadSpec

SPEC = PayloadSpec("p1", "python train.py")


def central(clock: FakeClock | None = None, **options: Any) -> SimulatedCentral:
    return SimulatedCentral(clock or FakeClock(), SPEC, [{"x": n} for n in range(4)], **options)


def ask(service: SimulatedCentral, key: str, points: int = 4) -> LeaseReply:
    return service.lease(LeaseRequest(key=key, harvester="h", site="s", points=points))


def result(lease: str, number: int = 1, **fields: object) -> Result:
    values: dict[str, object] = {"state": "succeeded", "final": True, "loss": 0.5, **fields}
    return Result(
        attempt=AttemptId(f"{lease}.{number}"),
        lease=LeaseId(lease),
        **values,  # type: ignore[arg-type]  # fields of the dataclass
    )


def test_the_same_request_gets_the_same_answer() -> None:
    service = central()
    assert ask(service, "a", 2) == ask(service, "a", 2)
    assert [point.point for point in ask(service, "b").points] == ["2", "3"]


def test_parallel_evaluations_bound_what_is_leased() -> None:
    assert len(ask(central(parallel=3), "a").points) == 3


def test_an_expired_lease_goes_to_the_next_and_a_late_result_still_counts_once() -> None:
    clock = FakeClock()
    service = central(clock, lease_s=100)
    first = ask(service, "a", 1).points[0]
    clock.advance(100)
    second = ask(service, "b", 1).points[0]
    assert (first.point, second.point, second.lease) == ("0", "0", "1.0.2")
    (late,) = service.deliver([result(first.lease)])
    (twice,) = service.deliver([result(second.lease)])
    assert (late.verdict, twice.verdict) == ("counted", "recorded")


def test_only_own_failures_use_up_the_tries() -> None:
    service = central()
    for number, blame in enumerate(["node", "point", "site", "point", "point"]):
        lease = ask(service, f"k{number}", 1).points[0].lease
        service.deliver([result(lease, state="failed", blame=blame, loss=None)])
    point = service.points[PointId("0")]
    assert (point.state, point.loss, point.own_failures) == ("failed", PENALTY_LOSS, 3)


def test_a_result_that_is_not_final_leaves_the_lease_with_the_harvester() -> None:
    service = central()
    lease = ask(service, "a", 1).points[0].lease
    service.deliver([result(lease, state="timed_out", blame="walltime", final=False, loss=None)])
    assert service.renew([lease]).gone == ()
    assert service.deliver([result(lease, 2)])[0].verdict == "counted"


@pytest.mark.fault("answer lost or repeated")
def test_a_lost_answer_does_not_undo_what_was_told() -> None:
    service = central()
    lease = ask(service, "a", 1).points[0].lease
    service.faults.loses_answers = True
    with pytest.raises(CentralUnavailable):
        service.deliver([result(lease)])
    service.faults.loses_answers = False
    (receipt,) = service.deliver([result(lease)])
    assert receipt.verdict == "recorded"
    assert (service.losses[PointId("0")], service.books.told[receipt.attempt]) == (0.5, 2)


def test_a_service_that_is_down_does_nothing() -> None:
    service = central()
    service.faults.down = True
    with pytest.raises(CentralUnavailable):
        ask(service, "a")
    assert service.unsettled == 4


def test_points_to_stop_are_named_when_leases_are_renewed() -> None:
    service = central()
    lease = ask(service, "a", 1).points[0].lease
    service.stop[PointId("0")] = "pruned"
    assert service.renew([lease]).stop == {lease: "pruned"}
