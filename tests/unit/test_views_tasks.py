"""Tasks and points as text, CSV and JSON."""

from __future__ import annotations

from typing import Any

from harvester.views.tasks import (
    ATTEMPT_KEYS,
    named_parameters,
    point_screen,
    point_table,
    results_csv,
    task_json,
    task_screen,
    task_table,
)

ATTEMPT: dict[str, Any] = {
    "n": 2,
    "attempt": "1.7.1.2",
    "allocation": "haaaaa-bbbbbb",
    "node": "n1",
    "state": "failed",
    "blame": "point",
    "reason": "exit code 3",
    "started": "2026-01-01T00:00:00Z",
    "ended": "2026-01-01T00:01:00Z",
    "resumed_from": 1,
    "loss": None,
    "counted": True,
}
POINT: dict[str, Any] = {
    "point": "7",
    "segment": None,
    "state": "done",
    "parameters": {"lr": 0.001, "kind": "a,b"},
    "loss": 0.125,
    "message": 'said "hi"',
    "metadata": None,
    "files": [],
    "sampler": "random",
    "attempts": [ATTEMPT],
}
TASK: dict[str, Any] = {
    "task": "1",
    "name": "digits",
    "owner": "alice",
    "state": "running",
    "created": "2026-01-01T00:00:00Z",
    "ended": None,
    "points": {"max": 10, "waiting": 1, "leased": 2, "done": 3, "failed": 1, "pruned": 0},
    "attempts": 6,
    "charged_attempts": 4,
    "best": {"point": "7", "loss": 0.125, "parameters": {"lr": 0.001}},
    "parallel": 4,
    "segments": 1,
}


def test_table_of_tasks_counts_what_is_settled() -> None:
    line = task_table([TASK]).splitlines()[1].split()
    assert line[:7] == ["1", "digits", "running", "4/10", "2", "1", "0.125"]


def test_empty_listings_are_sentences() -> None:
    assert (task_table([]), point_table([])) == ("No tasks.", "No points.")


def test_screen_shows_every_attempt_and_the_best_point() -> None:
    screen = task_screen(TASK, [POINT])
    assert "loss 0.125 at point 7: lr=0.001" in screen
    assert screen.splitlines()[-1].split()[:7] == [
        "7",
        "2",
        "haaaaa-bbbbbb",
        "n1",
        "failed",
        "point",
        "1",
    ]


def test_task_without_a_result_says_so() -> None:
    assert "best      none yet" in task_screen({**TASK, "best": None}, [])


def test_segments_are_listed_with_their_own_best() -> None:
    segment = {"name": "barrel", "points": TASK["points"], "best": TASK["best"]}
    unnamed = {**segment, "name": None}
    screen = task_screen({**TASK, "segments": [segment, unnamed]}, [])
    assert "segment   barrel: 4/10, best loss 0.125 at point 7: lr=0.001" in screen
    assert screen.count("segment ") == 1


def test_json_of_an_attempt_has_exactly_the_published_keys() -> None:
    found = task_json(TASK, [POINT])
    assert found["counts"]["max"] == 10
    (attempt,) = found["points"][0]["attempts"]
    assert tuple(attempt) == ATTEMPT_KEYS
    assert attempt["resumed_from"] == 1


def test_csv_has_a_column_for_each_parameter_of_any_point() -> None:
    other = {**POINT, "point": "8", "parameters": {"width": 3}, "loss": 1e-07, "message": None}
    assert results_csv([POINT, other]) == (
        "point,segment,state,loss,lr,kind,width,message\n"
        '7,,done,0.125,0.001,"a,b",,"said ""hi"""\n'
        "8,,done,1e-07,,,3,\n"
    )


def test_csv_of_nothing_is_its_header() -> None:
    assert results_csv([]) == "point,segment,state,loss,message\n"


def test_parameters_of_a_segmented_search_are_found_behind_the_model() -> None:
    assert named_parameters([3, {"lr": 1}]) == {"lr": 1}
    assert named_parameters({"lr": 1}) == {"lr": 1}
    assert named_parameters(5) == {"value": 5}


def test_point_screen_says_whom_an_attempt_blames_and_why() -> None:
    screen = point_screen({**POINT, "message": "a\x1b[2J"})
    assert "attempt 2: failed, blames the point, resumed from 1" in screen
    assert "exit code 3" in screen
    assert "\x1b" not in screen


def test_a_reason_of_several_lines_keeps_its_lines() -> None:
    reason = "exit code 1; stderr ends: Traceback:\n  File x\x1b[2J\nTypeError: no"
    screen = point_screen({**POINT, "message": reason, "attempts": [{**ATTEMPT, "reason": reason}]})
    assert (
        "  message     exit code 1; stderr ends: Traceback:\n"
        "                File x?[2J\n"
        "              TypeError: no\n"
    ) in screen
    assert screen.endswith(
        "    exit code 1; stderr ends: Traceback:\n      File x?[2J\n    TypeError: no"
    )
