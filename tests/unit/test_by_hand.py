"""Submissions that a person's command made, as the daemon and the next command find them."""

from __future__ import annotations

from pathlib import Path

import pytest

from harvester.spool.by_hand import (
    queries,
    record_query,
    record_submission,
    spent_within_hour,
    submissions,
)
from payload_runner.files import RealFiles

NOW, HOUR_S = 1_800_000_000.0, 3600.0


def test_submissions_are_found_by_their_instants(tmp_path: Path) -> None:
    files, state_dir = RealFiles(), tmp_path / "state"
    assert submissions(files, state_dir) == ()

    record_submission(files, state_dir, "probe-aaaaaa", NOW)
    record_submission(files, state_dir, "probe-bbbbbb", NOW + 0.25)

    assert submissions(files, state_dir) == (NOW, NOW + 0.25)


def test_what_is_days_old_is_forgotten_with_the_next_one(tmp_path: Path) -> None:
    record_submission(RealFiles(), tmp_path, "old", NOW - 49 * HOUR_S)
    record_submission(RealFiles(), tmp_path, "new", NOW)
    assert submissions(RealFiles(), tmp_path) == (NOW,)


def test_queries_are_counted_apart_from_submissions(tmp_path: Path) -> None:
    files = RealFiles()
    record_query(files, tmp_path, "probe-aaaaaa-0", NOW - 2 * HOUR_S)
    record_query(files, tmp_path, "probe-aaaaaa-0", NOW)
    record_query(files, tmp_path, "probe-aaaaaa-1", NOW + 0.001)
    assert queries(files, tmp_path) == (NOW, NOW + 0.001)
    assert submissions(files, tmp_path) == ()


def test_other_files_there_are_no_submissions(tmp_path: Path) -> None:
    record_submission(RealFiles(), tmp_path, "probe-aaaaaa", NOW)
    (tmp_path / "submissions" / "README").touch()
    assert submissions(RealFiles(), tmp_path) == (NOW,)


@pytest.mark.parametrize(
    ("by_hand", "published", "published_at", "spent"),
    [
        ((), 0, None, 0),
        ((NOW - 30, NOW - HOUR_S - 1), 0, None, 1),
        ((NOW - 30,), 4, NOW - 10, 5),
        ((NOW - 600,), 4, NOW - 10, 4),  # the daemon has counted it
        ((NOW - 600,), 4, NOW - HOUR_S, 1),  # what it said is too old to count
    ],
)
def test_budget_counts_what_the_daemon_said_and_what_it_cannot_know_yet(
    by_hand: tuple[float, ...], published: int, published_at: float | None, spent: int
) -> None:
    assert spent_within_hour(by_hand, published, published_at, NOW) == spent
