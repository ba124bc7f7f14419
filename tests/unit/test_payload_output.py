"""Bounded memory of a payload's output."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payload_runner.output import Capture, bounded_text


def test_short_output_is_kept_whole() -> None:
    capture = Capture(100)
    capture.add(b"hello ")
    capture.add(b"world")
    assert capture.text() == "hello world"
    assert capture.tail() == "hello world"


def test_middle_is_left_out_and_counted() -> None:
    capture = Capture(10)
    capture.add(b"0123456789" * 10)
    assert capture.text() == "01234\n[... 90 bytes left out ...]\n56789"


@pytest.mark.fault("output flooded")
@given(st.lists(st.text("abc", max_size=30)), st.integers(2, 40))
def test_head_tail_and_count_add_up(chunks: list[str], limit: int) -> None:
    capture = Capture(limit)
    for chunk in chunks:
        capture.add(chunk.encode())
    whole = "".join(chunks)
    if len(whole) <= limit:
        assert capture.text() == whole
        return
    head, mark, tail = capture.text().split("\n")
    assert mark == f"[... {len(whole) - limit} bytes left out ...]"
    assert len(head) + len(tail) == limit
    assert whole.startswith(head)
    assert whole.endswith(tail)


@pytest.mark.fault("output flooded")
def test_a_flood_stays_bounded() -> None:
    capture = Capture(64 * 1024)
    for _ in range(3000):
        capture.add(b"x" * 65536)
    assert len(capture.text()) < 66_000


@pytest.mark.parametrize("text", ["a" * 5000, "\x00" * 5000, "\U0001f600" * 5000])
def test_bounded_text_fits_into_its_json(text: str) -> None:
    short = bounded_text(text, 1000)
    assert len(json.dumps(short)) <= 1000
    assert short.startswith(text[:10])
    assert short.endswith(text[-10:])


def test_text_that_fits_is_left_alone() -> None:
    assert bounded_text("short", 100) == "short"
