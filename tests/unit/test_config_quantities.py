"""Durations, sizes and node ranges as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvester.quantities import format_duration, parse_duration_s, parse_nodes, parse_size_bytes


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("02:00:00", 7200),
        ("1-12:00:00", 129_600),
        ("90m", 5400),
        ("1h30m", 5400),
        ("2d", 172_800),
        ("18s", 18),
        ("0.5s", 0.5),
        (5400, 5400),
        (0, 0),
        (1.5, 1.5),
    ],
)
def test_duration_is_read(text: object, seconds: float) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "12:00", "1:90:00", "90 minutes", "-1s", "1m1h", None, True, -1, []),
        *(float("nan"), float("inf"), 10**400, "9" * 400 + "h", "36526d"),
    ],
)
def test_duration_that_is_none_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="a duration such as"):
        parse_duration_s(text)


@given(st.integers(0, 99), st.integers(0, 59), st.integers(0, 59))
def test_clock_form_is_exact_for_every_second(hours: int, minutes: int, seconds: int) -> None:
    text = f"{hours:02}:{minutes:02}:{seconds:02}"
    assert parse_duration_s(text) == hours * 3600 + minutes * 60 + seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8 * 10**9), ("8 GiB", 8 * 2**30), ("512kB", 512_000), ("7B", 7), ("1.5MB", 1_500_000)],
)
def test_size_is_read(text: str, size: int) -> None:
    assert parse_size_bytes(text) == size


@pytest.mark.parametrize("text", ["8", 8, "8G", "GB", "-1GB", "1e3GB", None, "9" * 400 + "GB"])
def test_size_without_unit_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="a size with its unit"):
        parse_size_bytes(text)


@pytest.mark.parametrize(("value", "nodes"), [("1-91", (1, 91)), ([2, 3], (2, 3)), (8, (8, 8))])
def test_nodes_are_read(value: object, nodes: tuple[int, int]) -> None:
    assert parse_nodes(value) == nodes


@pytest.mark.parametrize("value", ["", "5-1", [1], [1, 2, 3], [1, True], 0, True, "1..3", None])
def test_nodes_that_are_none_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="nodes such as"):
        parse_nodes(value)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0 s"), (45.4, "45 s"), (600, "10 min"), (11_100, "3 h 05 min"), (190_000, "2 d 4 h")],
)
def test_duration_for_people_has_two_parts_at_most(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
