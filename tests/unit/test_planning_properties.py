"""Whatever the site: no limit is broken, and every waiting attempt has a place or a reason."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from harvester.model import AllocationState, Tag
from harvester.planning.facts import NewAllocation, Plan, PlanInput
from harvester.planning.planner import plan
from harvester.planning.shapes import payloads_per_node
from harvester.site import Budgets, Queue, WalltimeBin
from payload_runner.protocol import Shape
from tests.planning_cases import allocation, attempt, site

SHAPES = st.sampled_from(
    [
        Shape(),
        Shape(gpus_per_node=0.25),
        Shape(gpus_per_node=1 / 3),
        Shape(gpus_per_node=4),
        Shape(nodes_min=3, nodes_max=3, gpus_per_node=4),
        Shape(nodes_min=2, nodes_max=6, gpus_per_node=2),
        Shape(gpus_per_node=16),
        Shape(gpus_per_node=0, cores_per_node=5),
    ]
)


@st.composite
def random_facts(draw: st.DrawFn) -> PlanInput:
    limit = st.none() | st.integers(0, 6)
    queues = tuple(
        Queue(
            name=f"q{n}",
            bins=tuple(
                WalltimeBin(nodes_min=low, nodes_max=low + more, walltime_max_s=float(wall))
                for low, more, wall in draw(
                    st.lists(
                        st.tuples(
                            st.integers(1, 300), st.integers(0, 500), st.integers(60, 90_000)
                        ),
                        min_size=1,
                        max_size=3,
                    )
                )
            ),
            queued_max=draw(limit),
            running_max=draw(limit),
            total_max=draw(limit),
        )
        for n in range(draw(st.integers(1, 3)))
    )
    base = site()
    waiting = tuple(
        attempt(
            f"1.{n}.1.1",
            shape=draw(SHAPES),
            expected_s=draw(st.none() | st.floats(0.0, 50_000)),
            checkpointable=draw(st.booleans()),
            priority=draw(st.integers(0, 2)),
            waiting_s=draw(st.floats(0, 1000)),
        )
        for n in range(draw(st.integers(0, 30)))
    )
    in_flight = tuple(
        allocation(
            Tag(f"habcde-aaaaa{'abcdefgh'[n]}"),
            queue=draw(st.sampled_from(queues)).name,
            nodes=draw(st.integers(1, 40)),
            state=draw(st.sampled_from([AllocationState.RUNNING, AllocationState.QUEUED])),
            accepting=draw(st.booleans()),
            remaining_s=draw(st.none() | st.floats(0, 9000)),
        )
        for n in range(draw(st.integers(0, 4)))
    )
    return PlanInput(
        site=replace(base, queues=queues, budgets=Budgets(jobs_in_flight=draw(st.integers(0, 8)))),
        waiting=waiting,
        allocations=in_flight,
        unleased=draw(st.integers(0, 3000)),
        typical=waiting[0] if waiting else None,
        other_jobs={q.name: (draw(st.integers(0, 3)), draw(st.integers(0, 3))) for q in queues},
        submissions_left=draw(st.integers(0, 10)),
        node_hours_left=draw(st.none() | st.floats(0, 2000)),
        nothing_more=draw(st.booleans()),
    )


@settings(max_examples=300, deadline=None)
@given(random_facts())
def test_no_random_site_sees_a_limit_broken_and_no_attempt_is_forgotten(
    given_facts: PlanInput,
) -> None:
    found = plan(given_facts)
    assert len(found.submit) <= given_facts.submissions_left
    assert not found.submit or (
        len(found.submit) + len(given_facts.allocations) <= given_facts.site.budgets.jobs_in_flight
    )
    _check_bins(given_facts, found.submit)
    _check_queues(given_facts, found.submit)
    if given_facts.node_hours_left is not None:
        spent = sum(chosen.nodes * chosen.walltime_s / 3600 for chosen in found.submit)
        assert spent <= given_facts.node_hours_left + 1e-6
    _check_attempts(given_facts, found)


def _check_bins(given_facts: PlanInput, submit: tuple[NewAllocation, ...]) -> None:
    queues = {queue.name: queue for queue in given_facts.site.queues}
    for chosen in submit:
        assert any(
            found.nodes_min <= chosen.nodes <= found.nodes_max
            and 0 < chosen.walltime_s <= found.walltime_max_s
            for found in queues[chosen.queue].bins
        )


def _check_queues(given_facts: PlanInput, submit: tuple[NewAllocation, ...]) -> None:
    for queue in given_facts.site.queues:
        new = sum(chosen.queue == queue.name for chosen in submit)
        ours = [found for found in given_facts.allocations if found.queue == queue.name]
        running = sum(found.state is AllocationState.RUNNING for found in ours)
        others_queued, others_running = given_facts.other_jobs[queue.name]
        waiting = len(ours) - running + others_queued + new
        if new and queue.queued_max is not None:
            assert waiting <= queue.queued_max
        if new and queue.total_max is not None:
            assert waiting + running + others_running <= queue.total_max


def _check_attempts(given_facts: PlanInput, found: Plan) -> None:
    ordered = [name for name, _ in found.orders]
    assert len(ordered) == len(set(ordered))
    assert not set(ordered) & set(found.blocked)
    overhead = 120.0
    places = [(c.nodes, c.walltime_s - overhead) for c in found.submit] + [
        (a.nodes, a.walltime_s - overhead if a.remaining_s is None else a.remaining_s)
        for a in given_facts.allocations
    ]
    for waiting in given_facts.waiting:
        if waiting.attempt in ordered or waiting.attempt in found.blocked:
            continue
        assert payloads_per_node(waiting.shape, given_facts.site.node) > 0
        assert any(waiting.shape.nodes_min <= nodes and usable > 0 for nodes, usable in places)
