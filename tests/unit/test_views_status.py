"""The status screen and what it believes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from harvester.clock import iso
from harvester.errors import NotFound
from harvester.views.site_states import Health, find_states, judge, state_of
from harvester.views.status import state_json, status_screen
from harvester.views.text import clean, columns, instant, shorten

STATUS: Mapping[str, Any] = {
    "version": 1,
    "site": "here",
    "harvester": "0.1.0",
    "mode": "loop",
    "pid": 42,
    "host": "login1",
    "state": "running",
    "problems": [],
    "tasks": [
        {"task": "1", "leased": 1, "ordered": 2, "running": 3, "ended": 4, "delivered": 4},
    ],
    "allocations": [
        {
            "tag": "haaaaa-bbbbbb",
            "job_id": "17",
            "state": "running",
            "queue": "gpu",
            "nodes": 2,
            "slots": 8,
            "slots_busy": 7.5,
            "remaining_s": 600,
            "submitted": None,
        },
        {"tag": "haaaaa-cccccc", "state": "ended"},
    ],
    "delivery": {"pending": 2, "oldest_s": 30},
    "budgets": {
        "queries_last_minute": 1,
        "queries_allowed": 2,
        "submissions_last_hour": 3,
        "submissions_allowed": 30,
        "breaker": "closed",
    },
    "points": [],
    "log_gaps": 0,
}


def publish(base: Path, **changes: object) -> None:
    state_dir, spool = base / "harvester/sites/here", base / "spool"
    for directory in (state_dir, spool):
        directory.mkdir(parents=True, exist_ok=True)
    (state_dir / "daemon.json").write_text(json.dumps({"spool": str(spool), "site": "here"}))
    status = {**STATUS, "host": os.uname().nodename, "pid": os.getpid(), **changes}
    (spool / "status.json").write_text(json.dumps({"updated": iso(time.time()), **status}))


@pytest.mark.parametrize(
    ("changes", "age_s", "running", "health"),
    [
        ({}, 3, True, Health.ALIVE),
        ({}, 3, False, Health.DIED),
        ({}, 300, True, Health.SILENT),
        ({"host": "login2"}, 3, False, Health.ALIVE),
        ({"host": "login2"}, 300, True, Health.UNKNOWN),
        ({"state": "stopped"}, 300, False, Health.STOPPED),
        ({"state": "stopped", "mode": "once"}, 300, False, Health.STOPPED),
        ({"state": "stopped", "mode": "once"}, 3600, False, Health.UNKNOWN),
        ({"pid": "rubbish"}, 3, True, Health.DIED),
    ],
)
def test_health_follows_from_process_host_and_age(
    changes: dict[str, object], age_s: float, running: bool, health: Health
) -> None:
    assert judge({**STATUS, **changes}, age_s, "login1", lambda _: running) is health


def test_status_without_a_word_is_never() -> None:
    assert judge(None, None, "login1", lambda _: True) is Health.NEVER


def test_screen_fits_80_columns_and_shows_what_counts(tmp_path: Path) -> None:
    publish(tmp_path)
    (state,) = find_states({"XDG_STATE_HOME": str(tmp_path)})
    screen = status_screen(state)
    assert max(len(line) for line in screen.splitlines()) <= 80
    for part in ("here: running", "1 live, 1 ended", "haaaaa-bbbbbb", "7.5/8", "10 min"):
        assert part in screen
    assert "2 results wait, the oldest for 30 s" in screen
    assert "!" not in screen


def test_screen_shows_tasks_with_work_before_those_that_are_over(tmp_path: Path) -> None:
    over = {"leased": 0, "ordered": 0, "running": 0, "ended": 4, "delivered": 4}
    tasks = [{"task": str(n), **over} for n in range(1, 13)]
    tasks.append({"task": "7", **over, "leased": 1})
    publish(tmp_path, tasks=tasks)
    lines = status_screen(find_states({"XDG_STATE_HOME": str(tmp_path)})[0]).splitlines()
    at = next(n for n, line in enumerate(lines) if "Tasks: 1 with work here, 12 without" in line)
    assert [line.split()[0] for line in lines[at + 2 : at + 5]] == ["7", "12", "11"]
    assert "... 5 more" in lines[at + 10]


def test_screen_counts_all_that_run_and_not_only_those_that_are_listed(tmp_path: Path) -> None:
    point = {"task": "1", "point": "5", "since": iso(time.time())}
    ended = [{"tag": f"haaaaa-{n:06}", "state": "ended"} for n in range(100)]
    publish(tmp_path, points=200 * [point], attempts={"running": 1500}, allocations=ended)
    screen = status_screen(find_states({"XDG_STATE_HOME": str(tmp_path)})[0])
    assert "Running: 1500 points, longest 1.5" in screen
    assert "0 live, 100 ended lately" in screen


def test_problems_come_first_with_their_cure(tmp_path: Path) -> None:
    problem = {
        "what": "squeue does not answer",
        "since": iso(time.time()),
        "cure": "Nothing.",
        "count": 4,
    }
    publish(tmp_path, problems=[problem])
    lines = status_screen(find_states({"XDG_STATE_HOME": str(tmp_path)})[0]).splitlines()
    assert lines[1].startswith("  ! squeue does not answer (since ")
    assert lines[1].endswith(", 4 times)")
    assert lines[2].strip() == "Nothing."


def test_old_status_is_said_to_be_old(tmp_path: Path) -> None:
    publish(tmp_path, host="elsewhere", updated=iso(time.time() - 7200))
    screen = status_screen(find_states({"XDG_STATE_HOME": str(tmp_path)})[0])
    assert "UNKNOWN: last word 2 h 00 min ago" in screen
    assert "What follows is 2 h 00 min old" in screen
    assert "Look on elsewhere" in screen


def test_stop_file_is_shown_with_the_way_back(tmp_path: Path) -> None:
    publish(tmp_path)
    (tmp_path / "spool/STOP").touch()
    (state,) = find_states({"XDG_STATE_HOME": str(tmp_path)})
    assert "harvester start --site here" in status_screen(state)
    assert state_json(state)["stopping"] is True


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "\0",
        '{"updated": "soon"}',
        '{"updated": 1, "allocations": 5}',
        '{"updated": 1, "tasks": ["1"]}',
        '{"updated": 1, "budgets": null}',
    ],
)
def test_damaged_status_is_named(tmp_path: Path, text: str) -> None:
    publish(tmp_path)
    (tmp_path / "spool/status.json").write_text(text)
    (state,) = find_states({"XDG_STATE_HOME": str(tmp_path)})
    assert state.health is Health.DAMAGED
    assert state.status is None
    screen = status_screen(state)
    assert "here: no status" in screen
    assert f"! {tmp_path}/spool/status.json is damaged" in screen
    assert "harvester run --site here" in screen


def test_status_that_was_not_published_yet_is_not_damaged(tmp_path: Path) -> None:
    publish(tmp_path)
    (tmp_path / "spool/status.json").unlink()
    (state,) = find_states({"XDG_STATE_HOME": str(tmp_path)})
    assert state.health is Health.NEVER
    assert "Nothing is published yet" in status_screen(state)


def test_unknown_site_is_not_found_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="harvester run --site there"):
        state_of("there", {"XDG_STATE_HOME": str(tmp_path)})


def test_text_from_elsewhere_cannot_steer_the_terminal() -> None:
    assert clean("a\x1b[2Jb\r\nc\x9b") == "a?[2Jb??c?"


def test_columns_align_numbers_to_the_right() -> None:
    rows = [("a", 1, None), ("bbb", 100, "end")]
    assert columns(("x", "n", "last"), rows) == "x      n  last\na      1  -\nbbb  100  end"


def test_shortened_text_shows_that_it_was_cut() -> None:
    assert [shorten("abcdefgh", width) for width in (8, 6, 2)] == ["abcdefgh", "abc...", "..."]


def test_instant_is_read_from_text_and_number() -> None:
    assert instant("1970-01-01T00:01:00.000Z") == 60
    assert instant(5) == 5
    assert instant("never") is None
    assert instant(None) is None


def test_screen_says_why_a_job_waits(tmp_path: Path) -> None:
    waits = {**STATUS["allocations"][0], "state": "held", "reason": "JobHeldAdmin"}
    publish(tmp_path, allocations=[waits])
    screen = status_screen(state_of("here", {"XDG_STATE_HOME": str(tmp_path)}))
    assert "haaaaa-bbbbbb is held: JobHeldAdmin" in screen
    assert "alloc release" not in screen


def test_screen_says_how_a_job_that_was_submitted_held_is_let_start(tmp_path: Path) -> None:
    held = {**STATUS["allocations"][0], "state": "held", "submitted_held": True}
    publish(tmp_path, allocations=[{**held, "reason": "JobHeldUser"}])
    screen = status_screen(state_of("here", {"XDG_STATE_HOME": str(tmp_path)}))
    assert "haaaaa-bbbbbb is held: JobHeldUser" in screen
    assert "`harvester alloc release haaaaa-bbbbbb` lets it start" in screen
