"""Placement inside an allocation: who starts where, who waits, who can never run here."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from payload_runner.placement import GpuShare, Placement, Step
from payload_runner.protocol import NodeShape, Shape
from payload_runner.waiting import Request

NODE = NodeShape(gpus=4, cores=8, memory_mb=8000)
ONE = Shape(gpus_per_node=1)


def placement(nodes: int = 1, node: NodeShape = NODE, total_s: float = 1000.0) -> Placement:
    made = Placement(total_s)
    for index in range(nodes):
        made.add_node(index, f"n{index}", node)
    made.settled = True
    return made


def started(step: Step) -> list[str]:
    return [assignment.attempt for assignment in step.start]


def test_single_gpu_payloads_fill_a_node_each_with_its_own_gpu_and_cores() -> None:
    place = placement()
    for number in range(5):
        place.add(Request(f"a{number}", ONE))
    step = place.step(0.0, 1000.0)
    assert started(step) == ["a0", "a1", "a2", "a3"]
    slots = [assignment.slots[0] for assignment in step.start]
    assert [slot.gpus for slot in slots] == [(GpuShare(gpu),) for gpu in range(4)]
    assert [slot.cores for slot in slots] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert (place.waiting, place.running, place.slots, place.slots_busy) == (1, 4, 4.0, 4.0)
    place.validate()


@pytest.mark.parametrize(
    ("share", "fit"), [(0.5, 2), (0.25, 4), (1 / 3, 3), (0.1, 10), (0.6, 1), (1 / 7, 7)]
)
def test_shares_of_a_gpu_fill_it_and_no_more(share: float, fit: int) -> None:
    place = placement(node=NodeShape(gpus=1, cores=4))
    for number in range(fit + 1):
        place.add(Request(f"a{number}", Shape(gpus_per_node=share)))
    assert len(started(place.step(0.0, 1000.0))) == fit
    place.validate()


def test_shares_go_to_the_gpu_that_has_least_left() -> None:
    place = placement(node=NodeShape(gpus=2, cores=4))
    place.add(Request("half", Shape(gpus_per_node=0.5)))
    place.add(Request("quarter", Shape(gpus_per_node=0.25)))
    place.add(Request("whole", ONE))
    step = place.step(0.0, 1000.0)
    assert [a.slots[0].gpus for a in step.start] == [
        (GpuShare(0, 0.5),),
        (GpuShare(0, 0.25),),
        (GpuShare(1),),
    ]


def test_a_multi_node_payload_gets_one_slot_per_node_with_its_ranks() -> None:
    place = placement(nodes=3)
    shape = Shape(nodes_min=2, nodes_max=2, gpus_per_node=4, ranks_per_node=4, start="processes")
    place.add(Request("big", shape))
    (assignment,) = place.step(0.0, 1000.0).start
    first, second = assignment.slots
    assert first.hosts == second.hosts == ("n0", "n1")
    assert (first.first_rank, second.first_rank, second.world_size) == (0, 4, 8)
    assert first.master_port == second.master_port > 0


def test_ranks_follow_the_order_of_the_nodes_however_full_they_are() -> None:
    place = placement(nodes=3)
    place.add(Request("filler", Shape(gpus_per_node=2)))
    place.add(Request("other", Shape(gpus_per_node=1)))
    place.step(0.0, 1000.0)
    place.release("filler")
    place.add(Request("pair", Shape(nodes_min=2, nodes_max=2, gpus_per_node=3, start="mpi")))
    (assignment,) = place.step(0.0, 1000.0).start
    nodes = [slot.node for slot in assignment.slots]
    assert nodes == sorted(nodes)


def test_a_payload_of_one_to_three_nodes_takes_what_is_free() -> None:
    place = placement(nodes=2)
    place.add(Request("wide", Shape(nodes_min=1, nodes_max=3, gpus_per_node=4)))
    (assignment,) = place.step(0.0, 1000.0).start
    assert len(assignment.slots) == 2


def test_higher_priority_goes_first_then_the_older() -> None:
    place = placement(node=NodeShape(gpus=1, cores=1))
    for attempt, priority in (("old", 0), ("new", 0), ("urgent", 5)):
        place.add(Request(attempt, ONE, priority=priority))
    order = []
    for _ in range(3):
        (attempt,) = started(place.step(0.0, 1000.0))
        order.append(attempt)
        place.release(attempt)
    assert order == ["urgent", "old", "new"]


def test_what_cannot_finish_before_the_drain_point_is_refused_unless_it_saves_checkpoints() -> None:
    place = placement()
    place.add(Request("long", ONE, expected_s=100))
    place.add(Request("saves", ONE, expected_s=100, checkpointable=True))
    step = place.step(900.0, 100.0)
    assert started(step) == ["saves"]
    assert step.refuse == (("long", "needs 110 s and only 100 s are left"),)


def test_a_short_payload_that_saves_checkpoints_starts_while_it_can_finish() -> None:
    place = placement()
    place.add(Request("short", ONE, expected_s=1, checkpointable=True))
    assert started(place.step(0.0, 1.2)) == ["short"]


def test_an_unknown_duration_starts_only_while_a_quarter_of_the_time_is_left() -> None:
    place = placement()
    place.add(Request("early", ONE))
    assert started(place.step(0.0, 251.0)) == ["early"]
    place.add(Request("late", ONE))
    assert [attempt for attempt, _ in place.step(0.0, 249.0).refuse] == ["late"]


def test_what_is_too_big_for_every_node_is_refused_once_all_nodes_are_known() -> None:
    place = placement(nodes=2)
    place.settled = False
    place.add(Request("big", Shape(gpus_per_node=5)))
    place.add(Request("wide", Shape(nodes_min=3, nodes_max=3, gpus_per_node=1)))
    assert place.step(0.0, 1000.0) == Step()
    place.settled = True
    assert place.step(0.0, 1000.0).refuse == (
        ("big", "asks for 1 node with 5 GPUs; 0 nodes of this allocation have that"),
        ("wide", "asks for 3 nodes with 1 GPUs; 2 nodes of this allocation have that"),
    )


def test_a_lost_node_makes_impossible_what_needed_it() -> None:
    place = placement(nodes=2)
    place.add(Request("a", Shape(nodes_min=2, nodes_max=2, gpus_per_node=4)))
    place.add(Request("b", Shape(nodes_min=2, nodes_max=2, gpus_per_node=4)))
    assert started(place.step(0.0, 1000.0)) == ["a"]
    place.release("a")
    place.remove_node(1)
    assert [attempt for attempt, _ in place.step(0.0, 1000.0).refuse] == ["b"]
    assert place.slots == 4.0


def test_a_closed_node_gets_nothing_more() -> None:
    place = placement(nodes=2)
    place.close_node(0)
    place.add(Request("a", ONE))
    (assignment,) = place.step(0.0, 1000.0).start
    assert assignment.slots[0].node == 1


def test_small_ones_fill_the_hole_before_a_big_one_only_if_done_in_time() -> None:
    place = placement(node=NodeShape(gpus=4, cores=4))
    place.add(Request("runs", Shape(gpus_per_node=2), expected_s=100))
    assert started(place.step(0.0, 1000.0)) == ["runs"]
    place.add(Request("big", Shape(gpus_per_node=4), expected_s=50))
    place.add(Request("too long", ONE, expected_s=150))
    place.add(Request("short", ONE, expected_s=50))
    assert started(place.step(1.0, 999.0)) == ["short"]


def test_withdrawn_payloads_do_not_start() -> None:
    place = placement()
    place.add(Request("a", ONE))
    place.add(Request("b", ONE))
    assert place.withdraw("a")
    assert not place.withdraw("a")
    assert started(place.step(0.0, 1000.0)) == ["b"]


def test_a_big_payload_starts_under_an_endless_stream_of_small_ones_of_unknown_length() -> None:
    place = placement(nodes=2, total_s=1e6)
    rng = random.Random(7)
    ends: dict[str, float] = {}
    big = Shape(nodes_min=2, nodes_max=2, gpus_per_node=4)
    for number in range(16):
        place.add(Request(f"s{number}", ONE))
    now, number = 0.0, 16
    while now < 5000:
        if number == 40:
            place.add(Request("big", big, expected_s=10))
        for attempt in started(place.step(now, 1e6 - now)):
            if attempt == "big":
                return
            ends[attempt] = now + rng.uniform(5, 200)
        first = min(ends, key=lambda attempt: ends[attempt])
        now = ends.pop(first)
        place.release(first)
        place.add(Request(f"s{number}", ONE))
        number += 1
    pytest.fail("the big payload starved")


SHAPES = st.builds(
    lambda nodes, extra, gpus, cores: Shape(
        nodes_min=nodes, nodes_max=nodes + extra, gpus_per_node=gpus, cores_per_node=cores
    ),
    st.integers(1, 3),
    st.integers(0, 1),
    st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 1.0, 2.0, 4.0]),
    st.sampled_from([0, 0, 1, 3]),
)
REQUESTS = st.tuples(
    SHAPES, st.sampled_from([None, 1.0, 20.0, 300.0]), st.booleans(), st.integers(0, 2)
)


@dataclass
class Run:
    """A little allocation in which payloads take as long as expected (or 30 s)."""

    place: Placement
    now: float = 0.0
    total: float = 1000.0
    ends: dict[str, float] = field(default_factory=dict)
    requests: dict[str, Request] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)

    def step(self) -> None:
        step = self.place.step(self.now, self.total - self.now)
        self.place.validate()
        self.done |= {attempt for attempt, _ in step.refuse}
        for attempt in started(step):
            request = self.requests[attempt]
            self.ends[attempt] = self.now + (request.expected_s or 30.0)
            if not request.checkpointable and request.expected_s is not None:
                assert self.ends[attempt] <= self.total

    def next_end(self) -> bool:
        if not self.ends:
            return False
        first = min(self.ends, key=lambda attempt: self.ends[attempt])
        self.now = self.ends.pop(first)
        self.place.release(first)
        self.done.add(first)
        return self.now < self.total


@settings(max_examples=150, deadline=None)
@given(
    st.lists(REQUESTS, max_size=40),
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 3)), max_size=2),
)
def test_nothing_is_given_twice_and_everything_ends_or_is_refused(
    requests: list[tuple[Shape, float | None, bool, int]],
    nodes: int,
    closings: list[tuple[int, int]],
) -> None:
    run = Run(placement(nodes))
    for number, (shape, expected_s, checkpointable, priority) in enumerate(requests):
        request = Request(f"a{number}", shape, expected_s, checkpointable, priority)
        run.requests[request.attempt] = request
        run.place.add(request)
    turn = 0
    run.step()
    while run.next_end():
        turn += 1
        for at, node in closings:
            if at == turn:
                run.place.close_node(node)
        run.step()
    run.now = run.total
    run.step()
    assert run.done | set(run.ends) == set(run.requests)
    assert run.place.waiting == 0


def test_ten_thousand_waiting_on_a_thousand_nodes_take_milliseconds_a_step() -> None:
    place = placement(nodes=1000, total_s=1e6)
    shapes = [ONE, Shape(gpus_per_node=0.5), Shape(gpus_per_node=2, cores_per_node=3)]
    for number in range(10_000):
        place.add(Request(f"a{number}", shapes[number % 3], expected_s=float(60 + number % 50)))
    running = started(place.step(0.0, 1e6))
    assert len(running) > 3000
    began = time.process_time()
    for turn in range(1000):
        place.release(running[turn])
        running += started(place.step(float(turn), 1e6))
    assert (time.process_time() - began) / 1000 < 0.005
