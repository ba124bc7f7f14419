"""Every record of a log is applied once, in whatever order it comes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvester.store.positions import Position


def admit_all(numbers: list[int]) -> tuple[list[int], Position]:
    position, applied = Position(), []
    for number in numbers:
        admitted = position.admit(number)
        if admitted is not None:
            applied.append(number)
            position = admitted
    return applied, position


def test_a_gap_is_what_is_asked_for_again() -> None:
    _, position = admit_all([1, 2, 6, 8])
    assert position.missing == ((3, 5), (7, 7))
    assert position.contiguous == 2


def test_a_resent_record_fills_its_place_once() -> None:
    applied, position = admit_all([1, 4, 3, 3, 2, 4])
    assert applied == [1, 4, 3, 2]
    assert (position.missing, position.contiguous) == ((), 4)


def test_what_is_gone_for_good_is_no_longer_waited_for() -> None:
    _, position = admit_all([1, 10])
    assert position.without((3, 5)).missing == ((2, 2), (6, 9))
    assert position.without((1, 20)).missing == ()


@pytest.mark.fault("log torn, zeroed or stale")
@given(st.lists(st.integers(1, 30)))
def test_any_order_with_repeats_applies_each_number_once(numbers: list[int]) -> None:
    applied, position = admit_all(numbers)
    assert sorted(applied) == sorted(set(numbers))
    missing = {n for first, last in position.missing for n in range(first, last + 1)}
    assert missing == set(range(1, max(numbers, default=0))) - set(numbers)
