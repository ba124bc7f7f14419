"""What a wait says when nothing comes of it."""

from __future__ import annotations

import pytest

from tests.support import wait_to_see, wait_until


def test_first_true_value_is_returned() -> None:
    values = iter([0, "", 7, 8])
    assert wait_until(lambda: next(values)) == 7


def test_failed_wait_names_its_line_its_last_value_and_what_there_was() -> None:
    said = r"test_support\.py:\d+ \(.*list\(\).*\): \[\]; then there was: a job"
    with pytest.raises(AssertionError, match=said):
        wait_until(lambda: list(), 0.0, lambda: "a job")  # noqa: C408


def test_what_is_waited_for_is_the_very_value_that_was_accepted() -> None:
    values = iter(range(9))
    assert wait_to_see(lambda: next(values), lambda seen: seen > 3) == 4


def test_failed_look_names_what_it_saw_last() -> None:
    with pytest.raises(AssertionError, match=r"test_support\.py:\d+ .* after 0 s: 'PENDING'"):
        wait_to_see(lambda: "PENDING", lambda seen: seen == "RUNNING", 0.0)
