"""Maintenance windows shorten or postpone allocations."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harvester.planning.facts import PlanInput
from harvester.planning.planner import plan
from harvester.planning.windows import START_DELAY_S, next_window
from harvester.site import Budgets, Reservation
from tests.planning_cases import attempts, facts, site

NOON = 1_796_126_400.0  # 2026-12-01 12:00 UTC
HOUR = 3600.0


def window(start_h: float, end_h: float, why: str = "maintenance") -> Reservation:
    return Reservation(start=NOON + start_h * HOUR, end=NOON + end_h * HOUR, why=why)


def facts_with(*windows: Reservation, work: int = 64, **fields: object) -> PlanInput:
    base = facts(waiting=attempts(work), now=NOON, **fields)
    return replace(
        base,
        site=replace(
            site((1, 1, 4 * HOUR)), reservations=windows, budgets=Budgets(jobs_in_flight=1)
        ),
    )


@pytest.mark.parametrize(
    ("windows", "lasts"),
    [
        ((), None),
        ((window(-8, -2),), None),
        ((window(2, 8),), 2 * HOUR - START_DELAY_S),
        ((window(2, 8), window(-8, -2)), 2 * HOUR - START_DELAY_S),
        ((window(20, 22), window(2, 8)), 2 * HOUR - START_DELAY_S),
        ((window(-1, 3),), 0.0),
        ((window(0.05, 3),), 0.0),
    ],
)
def test_next_window_bounds_what_starts_now(
    windows: tuple[Reservation, ...], lasts: float | None
) -> None:
    found = next_window(windows, NOON)
    assert (None if found is None else found.in_s) == lasts


def test_windows_that_touch_are_one_to_the_reader() -> None:
    found = next_window((window(1, 3), window(2, 5), window(9, 10)), NOON)
    assert found is not None
    assert "from 2026-12-01 13:00 UTC to 2026-12-01 17:00 UTC" in found.sentence


def test_far_window_changes_nothing() -> None:
    assert plan(facts_with(window(48, 56))) == plan(facts_with())


def test_near_window_shortens_the_allocation() -> None:
    (free,) = plan(facts_with()).submit
    (short,) = plan(facts_with(window(1, 8))).submit
    assert free.walltime_s > HOUR
    assert short.walltime_s <= HOUR - START_DELAY_S


@pytest.mark.parametrize("windows", [(window(0.1, 8),), (window(-1, 8),)])
def test_too_near_window_postpones_it_and_says_until_when(
    windows: tuple[Reservation, ...],
) -> None:
    answer = plan(facts_with(*windows))
    assert answer.submit == ()
    assert set(answer.blocked.values()) == {
        f"maintenance from {'2026-12-01 12:06' if windows[0].start > NOON else '2026-12-01 11:00'}"
        " UTC to 2026-12-01 20:00 UTC: no allocation of use would end before it"
    }


def test_after_the_window_submission_goes_on() -> None:
    later = replace(facts_with(window(-8, -1)), now=NOON)
    assert plan(later).submit == plan(facts_with()).submit


def test_shortened_walltime_is_a_whole_step_of_the_batch_system() -> None:
    (short,) = plan(facts_with(window(1.001, 8), walltime_step_s=60.0)).submit
    assert short.walltime_s % 60 == 0
    assert short.walltime_s <= 1.001 * HOUR - START_DELAY_S
