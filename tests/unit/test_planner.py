"""The planning step as a pure function, case by case."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from harvester.model import AttemptId
from harvester.planning.planner import plan
from harvester.site import Queue
from payload_runner.protocol import Shape
from tests.planning_cases import A, B, allocation, attempt, attempts, facts, queued, site

# --- orders ---


def test_orders_fill_slots_and_keep_one_more_per_slot_ready() -> None:
    orders = plan(facts(waiting=attempts(20), allocations=(allocation(),))).orders
    assert len(orders) == 8


def test_on_a_local_file_system_long_attempts_are_not_ordered_ahead() -> None:
    local = replace(site(), filesystem="local")
    orders = plan(facts(site=local, waiting=attempts(20), allocations=(allocation(),))).orders
    assert len(orders) == 4


def test_short_attempts_are_ordered_far_enough_ahead_to_outlast_the_polls() -> None:
    waiting = attempts(500, expected_s=1.0)
    orders = plan(facts(waiting=waiting, allocations=(allocation(),))).orders
    assert len(orders) == 4 * 11


def test_orders_are_spread_over_allocations() -> None:
    both = (allocation(A), allocation(B))
    orders = plan(facts(waiting=attempts(8), allocations=both)).orders
    assert Counter(tag for _, tag in orders) == {A: 4, B: 4}


def test_what_stands_in_an_allocation_takes_its_room() -> None:
    busy = allocation(running=attempts(4), ordered=attempts(4))
    assert plan(facts(waiting=attempts(9), allocations=(busy,))).orders == ()


@pytest.mark.parametrize(
    ("fields", "remaining_s", "ordered"),
    [
        ({}, 950.0, True),
        ({}, 850.0, False),  # 600 s and its margin do not fit
        ({"high_s": 800.0}, 850.0, True),  # a learned spread replaces the margin
        ({"cut_s": 700.0}, 950.0, False),  # it was cut off after longer already
        ({"checkpointable": True}, 200.0, True),
        ({"checkpointable": True}, 100.0, False),  # too short to be worth it
        ({"limit_s": 300.0}, 301.0, True),  # it is stopped then anyway
        ({"expected_s": None}, 1900.0, True),
        ({"expected_s": None}, 1700.0, False),
        ({"handed_back_by": (A,)}, 3600.0, False),
        ({"shape": Shape(nodes_min=2, nodes_max=2)}, 3600.0, False),
        ({"shape": Shape(gpus_per_node=8)}, 3600.0, False),
    ],
)
def test_an_attempt_is_ordered_only_where_it_can_finish_or_save_its_progress(
    fields: dict[str, object], remaining_s: float, ordered: bool
) -> None:
    found = plan(
        facts(
            waiting=(attempt("1.1.1.1", **fields),),
            allocations=(allocation(remaining_s=remaining_s),),
        )
    )
    assert bool(found.orders) is ordered


def test_priority_goes_before_age() -> None:
    waiting = (
        *attempts(8, waiting_s=500.0),
        attempt("young", priority=5, waiting_s=1.0),
    )
    orders = plan(facts(waiting=waiting, allocations=(allocation(),))).orders
    assert orders[0][0] == "young"


def test_a_stream_of_small_attempts_does_not_starve_a_large_one() -> None:
    large = attempt("large", shape=Shape(nodes_min=2, nodes_max=2, gpus_per_node=4), waiting_s=9.0)
    almost_full = allocation(nodes=2, running=attempts(8), ordered=attempts(7))
    waiting = (*attempts(20, waiting_s=1.0), large)
    orders = plan(facts(waiting=waiting, allocations=(almost_full,))).orders
    assert orders[0] == ("large", A)


def test_only_accepting_allocations_get_orders() -> None:
    deaf = allocation(accepting=False)
    assert plan(facts(waiting=attempts(3), allocations=(deaf, queued()))).orders == ()


# --- submissions ---


def test_nothing_known_means_leasing_before_submitting() -> None:
    found = plan(facts(unleased=100))
    assert found.submit == ()
    assert found.lease == 2 * 8 * 4


@pytest.mark.parametrize(
    ("count", "nodes"),
    [(1, 1), (4, 1), (5, 2), (32, 8), (3200, 8)],
)
def test_nodes_follow_the_backlog_up_to_the_bin(count: int, nodes: int) -> None:
    waiting = attempts(count, expected_s=3000.0)
    assert plan(facts(waiting=waiting)).submit[0].nodes == nodes


def test_walltime_is_enough_for_the_longest_attempt_and_no_more() -> None:
    alone = facts(waiting=attempts(4, expected_s=3000.0), nothing_more=True)
    (chosen,) = plan(alone).submit
    assert chosen.walltime_s == pytest.approx(1.5 * 3000 + 120, abs=2)


def test_walltime_is_what_the_batch_system_will_make_of_it() -> None:
    brief = facts(waiting=attempts(4, expected_s=10.0), nothing_more=True, walltime_step_s=60.0)
    (chosen,) = plan(brief).submit
    assert chosen.walltime_s == 480.0
    (chosen,) = plan(replace(brief, node_hours_left=200 / 3600)).submit
    assert chosen.walltime_s == 180.0
    # Less than that would be rounded up to more than the node-hours that are left.
    assert plan(replace(brief, node_hours_left=179 / 3600)).submit == ()


def test_walltime_for_the_shortest_payloads_outlasts_a_start_much_slower_than_its_margin() -> None:
    for nothing_more in (True, False):
        brief = attempts(8, expected_s=0.05, grace_s=1.0)
        (chosen,) = plan(facts(waiting=brief, nothing_more=nothing_more)).submit
        margins_s = 60 + 60  # of the start, of the drain
        assert chosen.walltime_s >= 4 * margins_s


def test_a_users_own_allocation_takes_no_room_of_the_budget_and_is_never_cancelled() -> None:
    own = replace(queued(), joined=True)
    busy = replace(own, tag=B, ordered=attempts(1))
    wanted = facts(waiting=attempts(100, expected_s=3000.0), allocations=(own, own, own, own))
    assert plan(wanted).submit
    assert plan(facts(allocations=(own, busy), nothing_more=True)).cancel == ()
    idle = replace(allocation(), joined=True)
    assert plan(facts(allocations=(idle,), nothing_more=True)).close == ()


def test_walltime_leaves_room_for_the_points_that_results_will_bring() -> None:
    (chosen,) = plan(facts(waiting=attempts(4, expected_s=1000.0))).submit
    assert chosen.walltime_s == pytest.approx(4 * 1000 + 500 + 120, abs=2)


def test_a_point_that_was_cut_off_is_given_more_time_the_next_time() -> None:
    again = attempts(1, expected_s=1000.0, cut_s=2000.0)
    (chosen,) = plan(facts(waiting=again, nothing_more=True)).submit
    assert chosen.walltime_s == pytest.approx(2 * 2000 + 120, abs=2)


def test_a_point_that_was_cut_off_by_the_longest_walltime_may_try_again() -> None:
    again = attempts(1, expected_s=1000.0, cut_s=7000.0)
    (chosen,) = plan(facts(waiting=again, nothing_more=True)).submit
    assert chosen.walltime_s == 7200.0


def test_an_attempt_whose_margin_fits_nowhere_gets_a_fresh_allocation() -> None:
    tight = attempts(1, expected_s=6000.0)
    assert [c.walltime_s for c in plan(facts(waiting=tight)).submit] == [7200.0]
    fresh, worn = allocation(remaining_s=7000.0), allocation(remaining_s=6200.0)
    assert plan(facts(waiting=tight, allocations=(fresh,))).orders
    assert not plan(facts(waiting=tight, allocations=(worn,))).orders


def test_short_attempts_run_in_rounds_so_that_the_start_pays() -> None:
    (chosen,) = plan(facts(waiting=attempts(80, expected_s=60.0))).submit
    assert chosen.nodes == 1  # 20 rounds of a minute rather than 20 nodes for one minute


def test_unleased_points_count_with_the_typical_shape() -> None:
    waiting = attempts(4, expected_s=3000.0)
    found = plan(facts(waiting=waiting, typical=waiting[0], unleased=12))
    assert [chosen.nodes for chosen in found.submit] == [4]


def test_what_is_in_flight_is_not_submitted_again() -> None:
    waiting = attempts(32, expected_s=3000.0)
    assert plan(facts(waiting=waiting, allocations=(queued(nodes=8),))).submit == ()


def test_a_long_attempt_goes_to_a_bin_that_lasts() -> None:
    bins = site((1, 4, 3600.0), (3, 16, 21600.0))
    long = facts(site=bins, waiting=attempts(8, expected_s=7200.0), nothing_more=True)
    (chosen,) = plan(long).submit
    assert chosen.nodes == 3
    assert chosen.walltime_s == pytest.approx(1.5 * 7200 + 120, abs=2)


def test_a_checkpointable_attempt_longer_than_every_bin_is_planned_for() -> None:
    found = plan(facts(waiting=attempts(4, expected_s=20_000.0, checkpointable=True)))
    assert [(chosen.nodes, chosen.walltime_s) for chosen in found.submit] == [(1, 7200.0)]
    assert found.blocked == {}


def test_preferences_bound_nodes_and_walltime() -> None:
    wish = site(nodes_max=2, walltime_max_s=1000.0)
    found = plan(facts(site=wish, waiting=attempts(100, expected_s=600.0)))
    assert {(c.nodes <= 2, c.walltime_s <= 1000) for c in found.submit} == {(True, True)}


@pytest.mark.parametrize(
    ("queue", "others", "allowed"),
    [
        (Queue(name="batch", bins=(), queued_max=3), (1, 0), 2),
        (Queue(name="batch", bins=(), total_max=3), (1, 1), 1),
        (Queue(name="batch", bins=(), running_max=1), (0, 1), 1),  # one may stand in line
        (Queue(name="batch", bins=()), (50, 50), 4),  # the budget's jobs in flight
    ],
)
def test_queue_limits_count_the_users_other_jobs(
    queue: Queue, others: tuple[int, int], allowed: int
) -> None:
    waiting = attempts(1000, expected_s=3000.0)
    found = plan(facts(site=site(queue=queue), waiting=waiting, other_jobs={"batch": others}))
    assert len(found.submit) == allowed


def test_node_hours_left_shrink_the_allocation() -> None:
    waiting = attempts(32, expected_s=3000.0)
    found = plan(facts(waiting=waiting, node_hours_left=4.5))
    assert found.submit
    assert sum(c.nodes * c.walltime_s / 3600 for c in found.submit) <= 4.5


# --- close, cancel ---


def test_idle_allocations_close_when_the_service_has_nothing_more() -> None:
    idle, busy = allocation(A), allocation(B, running=attempts(1))
    assert plan(facts(allocations=(idle, busy), nothing_more=True)).close == (A,)


def test_idle_allocations_stay_while_results_may_bring_new_points() -> None:
    assert plan(facts(allocations=(allocation(),))).close == ()


def test_a_queued_allocation_is_cancelled_when_the_rest_finishes_elsewhere() -> None:
    busy = allocation(A, running=attempts(1))
    found = plan(facts(allocations=(busy, queued(B)), nothing_more=True))
    assert [tag for tag, _ in found.cancel] == [B]


def test_a_queued_allocation_stays_while_a_running_attempt_may_be_cut_off() -> None:
    late = allocation(A, running=attempts(1, checkpointable=True), remaining_s=100.0)
    assert plan(facts(allocations=(late, queued(B)), nothing_more=True)).cancel == ()


def test_lookahead_is_kept_over_all_slots_in_flight() -> None:
    found = plan(
        facts(
            waiting=attempts(1),
            allocations=(allocation(running=attempts(4)), queued(nodes=1)),
            typical=attempt("t"),
        )
    )
    assert found.lease == 2 * (4 + 4) - (1 + 4)


def test_points_are_leased_before_the_batch_system_is_known_to_be_well() -> None:
    assert plan(facts(submissions_left=0)).lease == 2 * 8 * 4


def test_nothing_is_leased_where_no_queue_could_take_it() -> None:
    assert plan(facts(site=site((1, 2, 100.0)))).lease == 0


def test_a_stopped_spool_gets_nothing_new() -> None:
    found = plan(facts(waiting=attempts(2), allocations=(allocation(),), stopping=True))
    assert (found.orders, found.submit, found.lease) == ((), (), 0)
    assert set(found.blocked) == {"1.0.1.1", "1.1.1.1"}


# --- blocked ---


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"waiting": attempts(1, shape=Shape(gpus_per_node=8))}, "needs 8 GPUs on a node"),
        ({"waiting": attempts(1, shape=Shape(nodes_min=9, nodes_max=9))}, "at most 8"),
        ({"waiting": attempts(1, expected_s=7000.0)}, "saves no checkpoints"),
        ({"waiting": attempts(1), "submissions_left": 0}, "no submission is allowed now"),
        ({"waiting": attempts(1), "node_hours_left": 0.01}, "node-hours left"),
        ({"waiting": attempts(1), "site": site((256, 512, 7200.0))}, "start at 256 nodes"),
        ({"waiting": attempts(1), "site": site((1, 2, 100.0))}, "no queue of site"),
    ],
)
def test_a_blocked_attempt_says_why(change: dict[str, object], sentence: str) -> None:
    found = plan(facts(**change))
    assert (found.submit, found.orders) == ((), ())
    assert sentence in found.blocked[AttemptId("1.0.1.1")]


def test_a_guessed_duration_blocks_nothing() -> None:
    short = site((1, 8, 900.0))
    assert plan(facts(site=short, waiting=attempts(4, expected_s=None))).submit


def test_an_elastic_attempt_is_planned_by_its_least_and_fills_what_would_stand_empty() -> None:
    wide = Shape(nodes_min=1, nodes_max=64, gpus_per_node=4, start="elastic")
    (chosen,) = plan(facts(waiting=attempts(1, shape=wide))).submit
    assert chosen.nodes == 1
    large_only = site((64, 128, 7200.0))
    (chosen,) = plan(facts(site=large_only, waiting=attempts(1, shape=wide))).submit
    assert chosen.nodes == 64
    least = replace(wide, nodes_max=1)
    assert plan(facts(site=large_only, waiting=attempts(1, shape=least))).submit == ()
