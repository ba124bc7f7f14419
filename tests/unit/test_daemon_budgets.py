"""Restraint and complaint: back-off, breaker, problems."""

from __future__ import annotations

import logging
import random

import pytest

from harvester.clock import FakeClock
from harvester.daemon.budgets import Backoff, Breaker
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
