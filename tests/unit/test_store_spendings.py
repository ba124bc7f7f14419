"""Budget windows over a wall clock that may jump."""

from __future__ import annotations

from pathlib import Path

import pytest

from harvester.store import Store

MINUTE_S, YEAR_S = 60.0, 365 * 86_400.0


@pytest.mark.fault("clock set wrong")
def test_spendings_of_a_clock_that_was_wrong_hold_nobody_up_for_years(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "index.sqlite", "abcde")
    now = 1_000_000.0
    store.spendings.add("query", now + YEAR_S)  # then the clock was set right

    assert store.spendings.within("query", MINUTE_S, now) == 1
    assert store.spendings.within("query", MINUTE_S, now + MINUTE_S - 1) == 1
    assert store.spendings.within("query", MINUTE_S, now + MINUTE_S + 1) == 0
    store.close()


def test_what_is_told_twice_is_spent_once(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "index.sqlite", "abcde")
    store.spendings.note("submission", 1000.25)
    store.spendings.note("submission", 1000.25)
    store.spendings.note("submission", 1001.0)

    assert store.spendings.within("submission", MINUTE_S, 1002.0) == 2
    store.close()
