"""The sampler's child process: real processes, hostile ones among them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from harvester.errors import InputError
from harvester.steering.samplers import Trial, suggest
from harvester.steering.samplers.child import Suggester
from harvester.steering.space import parse_space
from tests.support import wait_until

SPACE: dict[str, Any] = {
    "x": {"method": "uniform", "dimension": {"low": 0, "high": 1}},
    "k": {"method": "uniformint", "dimension": {"low": 1, "high": 5}},
}
PARSED = parse_space(SPACE)
HISTORY = [Trial(point, "done", point["x"]) for point in suggest("random", SPACE, [], 12, 0, 0)] + [
    Trial({"x": 0.5, "k": 3}, "pending")
]


def fake(tmp_path: Path, body: str) -> Suggester:
    """A suggester whose child runs ``body`` for every request line."""
    script = tmp_path / "child.py"
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    script.write_text(f"import json, os, sys, time\nfor line in sys.stdin:\n{lines}\n")
    return Suggester((sys.executable, "-u", str(script)))


def test_the_child_answers_what_the_function_answers() -> None:
    suggester = Suggester()
    try:
        found = suggester.ask("sobol", SPACE, HISTORY, 3, 7, 4, {}, 60)
        again = suggester.ask("sobol", PARSED, HISTORY, 3, 7, 4, {}, 60)
    finally:
        suggester.close()
    assert found.points == suggest("sobol", SPACE, HISTORY, 3, 7, 4)
    assert found.origin == ["sobol"] * 3
    assert found.note is None
    assert again == found


def test_light_samplers_and_starts_need_no_child(tmp_path: Path) -> None:
    suggester = Suggester((str(tmp_path / "missing"),))
    assert len(suggester.ask("random", SPACE, HISTORY, 2, 0, 0).points) == 2
    assert suggester.ask("auto", SPACE, [], 4, 0, 0).origin == ["auto"] * 4


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("os._exit(3)", "died (exit 3)"),
        ("raise SystemError('out of ideas')", "out of ideas"),
        ("os.kill(os.getpid(), 9)", "died (exit -9)"),
        ("print('hello')", "answered with nonsense"),
        ("print('[1]')", "answered with nonsense"),
        ("print(json.dumps({'error': 'no GPU'}))", "the sampler failed: no GPU"),
        ("print(json.dumps({'points': 7}))", "something else than a list"),
        ("os.close(1); time.sleep(60)", "closed its output"),
    ],
)
def test_a_failing_child_is_replaced_by_quasi_random_points_and_named(
    tmp_path: Path, body: str, words: str
) -> None:
    suggester = fake(tmp_path, body)
    try:
        found = suggester.ask("sobol", SPACE, HISTORY, 3, 0, 0, {}, 20)
    finally:
        suggester.close()
    assert found.origin == ["quasi-random"] * 3
    assert all(PARSED.contains(point) for point in found.points)
    assert found.note is not None
    assert words in found.note


def test_a_missing_interpreter_is_named_too(tmp_path: Path) -> None:
    suggester = Suggester((str(tmp_path / "missing"),))
    found = suggester.ask("sobol", SPACE, HISTORY, 2, 0, 0)
    assert "cannot start" in str(found.note)
    assert len(found.points) == 2


def test_a_hung_child_costs_its_deadline_and_is_killed(tmp_path: Path) -> None:
    suggester = fake(tmp_path, "time.sleep(600)")
    found = suggester.ask("sobol", SPACE, HISTORY, 2, 0, 0, {}, 2.0)
    assert "did not answer within its deadline" in str(found.note)
    assert len(found.points) == 2
    children = psutil.Process().children()
    assert [child for child in children if str(tmp_path) in " ".join(child.cmdline())] == []


def test_a_child_that_reads_nothing_does_not_block_a_large_request() -> None:
    suggester = Suggester((sys.executable, "-c", "import time; time.sleep(600)"))
    history = [Trial({"x": index / 10_000, "k": 1}, "done", 1.0) for index in range(10_000)]
    found = suggester.ask("sobol", SPACE, history, 2, 0, 0, {}, 0.5)
    assert found.origin == ["quasi-random"] * 2


def test_sloppy_answers_are_mended_and_the_rest_replaced(tmp_path: Path) -> None:
    points = [
        {"x": 0.25, "k": 2},
        {"x": 1.5, "k": 2.9999},  # a little outside
        {"x": 0.25, "k": 2},  # twice
        {"x": 0.5, "k": 3},  # pending already
        {"x": 0.1},
        {"x": 0.1, "k": 1, "z": 0},
        "no point",
    ]
    suggester = fake(tmp_path, f"print(json.dumps({{'points': {points!r}}}))")
    try:
        found = suggester.ask("sobol", SPACE, HISTORY, 7, 0, 0)
    finally:
        suggester.close()
    assert found.points[:2] == [{"x": 0.25, "k": 2}, {"x": 1.0, "k": 3}]
    assert found.origin == ["sobol", "sobol, repaired"] + ["quasi-random"] * 5
    assert all(PARSED.contains(point) for point in found.points)
    assert len({str(point) for point in found.points}) == 7
    assert found.note == (
        "1 of 7 points lay outside the space and were moved inside; "
        "5 of 7 points are quasi-random instead"
    )


def test_nan_and_too_many_points_do_no_harm(tmp_path: Path) -> None:
    answer = '{"points": [{"x": NaN, "k": 1}, {"x": 0.3, "k": 1}, {"x": 0.4, "k": 1}]}'
    suggester = fake(tmp_path, f"print({answer!r})")
    try:
        found = suggester.ask("sobol", SPACE, HISTORY, 2, 0, 0)
    finally:
        suggester.close()
    assert found.points[0] == {"x": 0.3, "k": 1}
    assert found.origin == ["sobol", "quasi-random"]


def test_a_child_that_left_while_idle_is_started_again(tmp_path: Path) -> None:
    answer = "print(json.dumps({'points': [{'x': 0.3, 'k': 1}]})); sys.exit(0)"
    suggester = fake(tmp_path, answer)
    try:
        for _ in range(3):
            assert suggester.ask("sobol", SPACE, HISTORY, 1, 0, 0).note is None
    finally:
        suggester.close()


def test_the_child_sees_none_of_the_services_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "hunter2")
    seen = tmp_path / "seen"
    suggester = fake(
        tmp_path, f"open({str(seen)!r}, 'w').write(repr(dict(os.environ))); print('{{}}')"
    )
    suggester.ask("sobol", SPACE, HISTORY, 1, 0, 0)
    suggester.close()
    assert "PATH" in seen.read_text()
    assert "hunter2" not in seen.read_text()


def test_the_child_ends_with_its_service(tmp_path: Path) -> None:
    code = (
        "import os, sys; from harvester.steering.samplers.child import Suggester\n"
        "from harvester.steering.samplers import Trial\n"
        "space = {'x': {'method': 'uniform', 'dimension': {'low': 0, 'high': 1}}}\n"
        "suggester = Suggester()\n"
        "suggester.ask('sobol', space, [], 1, 0, 0, {}, 60)\n"
        "print(suggester._child._process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = done.stdout.strip()
    assert child
    wait_until(lambda: _is_gone(child), 10)


def _is_gone(pid: str) -> bool:
    try:
        return Path("/proc", pid, "stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_an_unknown_sampler_and_a_bad_space_are_the_callers_fault() -> None:
    with pytest.raises(InputError):
        Suggester().ask("nope", SPACE, [], 1, 0, 0)
    with pytest.raises(InputError):
        Suggester().ask("random", {"x": {}}, [], 1, 0, 0)


def test_an_unknown_optimiser_of_nevergrad_is_told() -> None:
    suggester = Suggester()
    try:
        found = suggester.ask("nevergrad", SPACE, HISTORY, 1, 0, 0, {"optimizer": "OnePlusTwo"}, 60)
    finally:
        suggester.close()
    assert "is no optimiser of nevergrad" in str(found.note)
    assert found.origin == ["quasi-random"]


def test_an_exhausted_grid_says_so() -> None:
    space = {"k": {"method": "uniformint", "dimension": {"low": 1, "high": 2}}}
    found = Suggester().ask("grid", space, [], 5, 0, 0)
    assert (found.points, found.exhausted) == ([{"k": 1}, {"k": 2}], True)
