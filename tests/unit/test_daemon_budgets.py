"""Restraint and complaint: back-off, breaker, problems."""

from __future__ import annotations

import logging
import random

import pytest

from harvester.clock import FakeClock
from harvester.daemon.budgets import Backoff, Breaker, Rest
from harvester.daemon.problems import Problems


def backoff(base_s: float = 1.0, ceiling_s: float = 60.0) -> Backoff:
    return Backoff(random.Random(1), base_s=base_s, ceiling_s=ceiling_s)


def test_waits_double_with_jitter_up_to_the_ceiling() -> None:
    waiting = backoff()
    waits = []
    for _ in range(200):
        waiting.failed(0.0)
        waits.append(waiting.due_in(0.0))
    assert all(0.5 * 2**n <= wait <= 2**n for n, wait in enumerate(waits[:6]))
    assert all(30.0 <= wait <= 60.0 for wait in waits[6:])
    assert len(set(waits[6:])) > 50  # many daemons must not come back in step


def test_rest_grows_with_the_work_up_to_the_most() -> None:
    rest = Rest(per_item_s=0.01, at_most_s=0.25)
    assert rest.due_in(0.0) == 0.0
    rest.worked(2, now=1.0)
    assert rest.due_in(1.0) == pytest.approx(0.02)
    rest.worked(0, now=1.01)
    assert rest.due_in(1.01) == pytest.approx(0.01)
    rest.worked(1000, now=2.0)
    assert rest.due_in(2.0) == pytest.approx(0.25)


def test_a_flood_is_taken_in_batches_and_a_trickle_one_by_one() -> None:
    def polls_of(rate: float) -> int:
        """How many times work is found in 100 s when so many items come each second."""
        rest, now, taken, polls = Rest(per_item_s=0.01, at_most_s=0.25), 0.0, 0, 0
        while now < 100.0:
            come = int(rate * now)
            polls += come > taken
            rest.worked(come - taken, now)
            taken = come
            now += max(rest.due_in(now), 0.001)
        return polls

    assert polls_of(5.0) > 490
    assert polls_of(500.0) < 420


def test_a_success_forgets_the_failures() -> None:
    waiting = backoff()
    waiting.failed(0.0)
    waiting.succeeded()
    assert waiting.due_in(0.0) == 0.0


def test_the_breaker_wants_one_sound_answer_at_the_start() -> None:
    breaker = Breaker(backoff())
    assert not breaker.allows_submission
    breaker.answered()
    assert breaker.allows_submission


def test_an_open_breaker_wants_two_sound_answers() -> None:
    breaker = Breaker(backoff())
    breaker.answered()
    breaker.failed(0.0, 500.0)
    breaker.failed(10.0, 510.0)
    assert (breaker.open_since, breaker.allows_submission) == (500.0, False)
    breaker.answered()
    assert (breaker.open_since, breaker.allows_submission) == (500.0, False)
    breaker.answered()
    assert (breaker.open_since, breaker.allows_submission) == (None, True)


def test_a_trouble_is_logged_when_it_begins_and_when_it_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = FakeClock(100.0)
    problems = Problems(clock)
    with caplog.at_level(logging.INFO):
        for _ in range(1000):
            problems.report("batch", "squeue fails", "look at it")
        clock.advance(50)
        (trouble,) = problems.all()
        problems.clear("batch")
        problems.clear("batch")
    assert (trouble.since, trouble.count) == (100.0, 1000)
    assert problems.all() == ()
    assert len(caplog.records) == 2


def test_only_what_is_over_of_a_family_is_cleared() -> None:
    problems = Problems(FakeClock())
    for key in ("overdue.batch", "overdue.central", "storage"):
        problems.report(key, key, "wait")
    problems.clear_prefix("overdue.", frozenset({"overdue.batch"}))
    assert [trouble.what for trouble in problems.all()] == ["overdue.batch", "storage"]
