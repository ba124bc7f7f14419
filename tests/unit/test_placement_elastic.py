"""Which nodes an elastic payload is lent, and which are taken back."""

from __future__ import annotations

import random

import pytest

from payload_runner.placement import Placement, Step
from payload_runner.protocol import NodeShape, Shape
from payload_runner.waiting import Request

ONE = Shape(gpus_per_node=1)
WHOLE = Shape(gpus_per_node=4)
WIDE = Shape(nodes_min=1, nodes_max=3, gpus_per_node=4, start="elastic")
NOTICE_S = 40.0


def placement(nodes: int = 3) -> Placement:
    place = Placement(100_000.0)
    for index in range(nodes):
        place.add_node(index, f"n{index}", NodeShape(gpus=4, cores=8))
    place.settled = True
    return place


def elastic(attempt: str = "wide", shape: Shape = WIDE, **more: float) -> Request:
    return Request(attempt, shape, checkpointable=True, notice_s=NOTICE_S, **more)  # type: ignore[arg-type]


def step(place: Placement, now: float = 0.0, left: float = 10_000.0) -> Step:
    found = place.step(now, left)
    place.validate()
    return found


def lent(found: Step) -> list[tuple[str, int]]:
    return [(loan.attempt, slot.node) for loan in found.lend for slot in loan.slots]


def test_it_starts_with_all_idle_nodes_up_to_its_most_and_all_slots_know_all_hosts() -> None:
    place = placement(nodes=5)
    place.add(elastic())
    (assignment,) = step(place).start
    assert [slot.node for slot in assignment.slots] == [0, 1, 2]
    assert {slot.hosts for slot in assignment.slots} == {("n0", "n1", "n2")}
    assert [slot.first_rank for slot in assignment.slots] == [0, 1, 2]
    assert {slot.master_port for slot in assignment.slots} != {0}


def test_those_that_wait_in_the_same_step_go_before_loans() -> None:
    place = placement()
    place.add(elastic())
    place.add(Request("small", WHOLE, expected_s=100.0))
    starts = {item.attempt: len(item.slots) for item in step(place).start}
    assert starts == {"wide": 2, "small": 1}


def test_an_idle_node_is_lent_after_the_pause_and_named_after_those_before() -> None:
    place = placement(nodes=2)
    place.add(Request("small", WHOLE, expected_s=100.0, priority=1))
    place.add(elastic())
    step(place)
    place.release("small")
    assert lent(step(place, 5.0)) == []
    (loan,) = step(place, 10.0).lend
    assert (loan.attempt, loan.slots[0].node, loan.slots[0].first_rank) == ("wide", 0, 1)
    assert loan.slots[0].hosts == ("n1", "n0")


def test_a_loan_is_taken_back_for_one_that_waits_and_given_to_it() -> None:
    place = placement()
    place.add(elastic())
    step(place)
    place.add(Request("small", ONE, expected_s=100.0))
    assert step(place, 20.0).take_back == (("wide", 1),)
    # Three more fit the same node, so nothing else is taken back.
    for number in range(3):
        place.add(Request(f"more{number}", ONE, expected_s=100.0))
    assert step(place, 21.0).take_back == ()
    place.leave("wide", 1)
    found = step(place, 50.0)
    assert [item.slots[0].node for item in found.start] == [1, 1, 1, 1]
    assert found.lend == ()


def test_it_never_has_to_go_below_its_least() -> None:
    place = placement()
    place.add(elastic(shape=Shape(nodes_min=2, nodes_max=3, gpus_per_node=4, start="elastic")))
    step(place)
    for number in range(9):
        place.add(Request(f"s{number}", WHOLE, expected_s=100.0))
    assert step(place, 20.0).take_back == (("wide", 2),)
    assert step(place, 21.0).take_back == ()
    place.leave("wide", 2)
    assert step(place, 22.0).take_back == ()


def test_a_payload_of_two_nodes_gets_both_back_at_once() -> None:
    place = placement()
    place.add(elastic())
    step(place)
    place.add(Request("pair", Shape(nodes_min=2, nodes_max=2, gpus_per_node=4), expected_s=50.0))
    assert sorted(step(place, 20.0).take_back) == [("wide", 1), ("wide", 2)]
    place.leave("wide", 1)
    assert step(place, 40.0).lend == ()  # it is kept for the pair
    place.leave("wide", 2)
    assert [item.attempt for item in step(place, 60.0).start] == ["pair"]


def test_nothing_is_taken_back_before_the_rest_of_what_is_needed_is_free() -> None:
    place = placement()
    place.add(Request("long", WHOLE, expected_s=1000.0, priority=1))
    place.add(elastic(shape=Shape(nodes_min=1, nodes_max=2, gpus_per_node=4, start="elastic")))
    step(place)
    place.add(Request("pair", Shape(nodes_min=2, nodes_max=2, gpus_per_node=4), expected_s=50.0))
    assert step(place, 20.0).take_back == ()
    at = 1100.0 - NOTICE_S
    assert step(place, at).take_back == (("wide", 2),)


def test_nothing_is_taken_back_for_one_that_could_not_finish_after_the_notice() -> None:
    place = placement()
    place.add(elastic())
    step(place)
    place.add(Request("small", WHOLE, expected_s=100.0))
    assert step(place, 20.0, left=130.0).take_back == ()


def test_nothing_is_lent_when_the_time_is_nearly_up() -> None:
    place = placement()
    place.add(elastic())
    (assignment,) = step(place, left=59.0).start
    assert len(assignment.slots) == 1


def test_the_smallest_of_several_is_served_first() -> None:
    place = placement(nodes=6)
    place.add(elastic("a", Shape(nodes_min=1, nodes_max=6, gpus_per_node=4, start="elastic")))
    place.add(elastic("b", Shape(nodes_min=1, nodes_max=6, gpus_per_node=4, start="elastic")))
    sizes = [len(item.slots) for item in step(place).start]
    assert sizes == [3, 3]


def test_a_node_on_which_it_ended_by_itself_is_not_lent_to_it_again() -> None:
    place = placement()
    place.add(elastic())
    step(place)
    place.leave("wide", 1)
    assert lent(step(place, 1000.0)) == []


def test_a_node_that_was_taken_back_may_be_lent_again() -> None:
    place = placement(nodes=2)
    place.add(elastic())
    step(place)
    place.add(Request("small", WHOLE, expected_s=100.0))
    assert step(place, 20.0).take_back == (("wide", 1),)
    place.leave("wide", 1)
    step(place, 60.0)
    place.release("small")
    (loan,) = step(place, 100.0).lend
    assert (loan.slots[0].node, loan.slots[0].first_rank) == (1, 2)


def test_one_that_is_being_stopped_gets_nothing() -> None:
    place = placement()
    place.add(Request("small", WHOLE, expected_s=100.0))
    place.add(elastic())
    step(place)
    place.fix("wide")
    place.release("small")
    assert lent(step(place, 1000.0)) == []


def test_a_lost_node_is_forgotten_with_its_slots() -> None:
    place = placement()
    place.add(elastic())
    step(place)
    place.leave("wide", 2)
    place.remove_node(2)
    place.remove_node(1)
    assert (place.slots, place.slots_busy) == (4.0, 4.0)
    place.release("wide")
    assert place.slots_busy == 0.0


@pytest.mark.parametrize("seed", range(8))
def test_whatever_comes_nobody_starves_and_nothing_is_given_twice(seed: int) -> None:
    rng = random.Random(seed)
    place = placement(nodes=5)
    shapes = [ONE, WHOLE, Shape(nodes_min=2, nodes_max=2, gpus_per_node=4)]
    place.add(elastic("e0", Shape(nodes_min=1, nodes_max=5, gpus_per_node=4, start="elastic")))
    place.add(elastic("e1", Shape(nodes_min=2, nodes_max=3, gpus_per_node=2, start="elastic")))
    ends: dict[str, float] = {}
    members: dict[str, set[int]] = {}
    leaving: dict[tuple[str, int], float] = {}
    now, number = 0.0, 0
    while now < 5000.0:
        if now < 2000.0 and rng.random() < 0.2:
            place.add(Request(f"s{number}", rng.choice(shapes), expected_s=rng.uniform(5, 100)))
            number += 1
        found = step(place, now, 1e6)
        for item in (*found.start, *found.lend):
            members.setdefault(item.attempt, set()).update(slot.node for slot in item.slots)
            if not item.attempt.startswith("e"):
                ends[item.attempt] = now + rng.uniform(5, 100)
        for attempt, index in found.take_back:
            leaving[attempt, index] = now + rng.uniform(0, NOTICE_S)
        for attempt, index in [pair for pair, at in leaving.items() if at <= now]:
            del leaving[attempt, index]
            members[attempt].discard(index)
            place.leave(attempt, index)
        for attempt in [attempt for attempt, at in ends.items() if at <= now]:
            del ends[attempt]
            place.release(attempt)
        assert len(members["e0"]) >= 1
        assert len(members["e1"]) >= 2
        now += 5.0
    assert place.waiting == 0
    assert len(members["e0"]) + len(members["e1"]) >= 5
