"""Shapes that start now before larger ones that wait: the rule, case by case."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from harvester.model import BackfillWindow
from harvester.planning.facts import NewAllocation
from harvester.planning.planner import plan
from harvester.site import Queue
from tests.planning_cases import attempts, facts, site

NOW = 1_800_000_000.0
# 32 attempts of 50 minutes fill 8 nodes of 4 GPUs.
WORK = attempts(32, expected_s=3000.0)


def window(nodes: int, lasts_s: float = math.inf, queue: str = "batch") -> BackfillWindow:
    return BackfillWindow(queue, nodes, NOW + lasts_s)


def submitted(*windows: BackfillWindow, **changes: object) -> tuple[NewAllocation, ...]:
    known = {"waiting": WORK, "nothing_more": True, "walltime_step_s": 60.0, "now": NOW}
    return plan(facts(**{**known, **changes}, windows=windows)).submit


def test_without_windows_the_allocation_that_suits_best_is_submitted() -> None:
    (chosen,) = submitted()
    assert chosen.nodes == 8
    assert "idle" not in chosen.why


def test_what_fits_a_window_anyway_stays_as_it_is_and_says_so() -> None:
    (usual,), (chosen,) = submitted(), submitted(window(8))
    assert replace(chosen, why=usual.why) == usual
    assert chosen.why.endswith("; 8 nodes stand idle now")


def test_fewer_nodes_that_are_free_now_go_before_more_that_wait() -> None:
    first, *rest = submitted(window(3))
    assert first.nodes == 3
    assert "3 nodes stand idle now for" in first.why
    assert "where 8 nodes for" in first.why
    # What it leaves is planned for as ever, and waits.
    assert sum(chosen.nodes for chosen in rest) >= 4
    assert not any("idle" in chosen.why for chosen in rest)


def test_a_shorter_job_ends_before_the_nodes_are_needed() -> None:
    first, *_ = submitted(window(8, 5000.0), waiting=attempts(64, expected_s=1000.0))
    assert "stand idle now" in first.why
    assert first.walltime_s <= 5000.0 - 120.0
    assert first.walltime_s % 60 == 0


@pytest.mark.parametrize(
    "found",
    [
        window(1),  # less than a quarter of what waits
        window(8, 3300.0),  # the attempts would hardly end in it
        window(8, 60.0),
        window(8, queue="debug"),
    ],
)
def test_windows_that_are_not_worth_it_change_nothing(found: BackfillWindow) -> None:
    assert submitted(found) == submitted()


def test_one_window_is_not_used_twice() -> None:
    many = attempts(320, expected_s=3000.0)
    chosen = submitted(window(3), waiting=many, site=site((1, 4, 7200.0)))
    assert [item.nodes for item in chosen if "idle" in item.why] == [3]


def test_a_window_is_no_way_around_the_smallest_size_of_a_queue() -> None:
    large = site((5, 8, 7200.0))
    assert submitted(window(3), site=large) == submitted(site=large)


def test_a_window_is_no_way_around_the_shortest_walltime_that_the_site_wants() -> None:
    patient = site(walltime_min_s=7200.0)
    assert submitted(window(8, 6000.0), site=patient) == submitted(site=patient)


def test_windows_behind_a_routing_queue_count_and_those_of_a_qos_are_not_known() -> None:
    routed = site(queue=Queue(name="prod", bins=(), routes_to=("small",)))
    assert "idle" in submitted(window(4, queue="small"), site=routed)[0].why
    qos = site(queue=Queue(name="batch", bins=(), kind="qos"))
    assert submitted(window(4), site=qos) == submitted(site=qos)
