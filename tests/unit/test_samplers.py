"""Samplers as functions of space, history and seed."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harvester.errors import InputError
from harvester.steering.problems import Problems
from harvester.steering.samplers import Trial, runs_in_process, suggest
from harvester.steering.samplers.cube import Cube
from harvester.steering.samplers.gaussian_process import _posterior
from harvester.steering.samplers.gp import log_expected_improvement
from harvester.steering.samplers.losses import finished, most_telling, winsorised
from harvester.steering.samplers.quasirandom import halton_point
from harvester.steering.samplers.registry import SAMPLERS, SamplerChoice, read_sampler
from harvester.steering.space import parse_space

MIXED = parse_space(
    {
        "lr": {"method": "loguniform", "dimension": {"low": 1e-5, "high": 1}},
        "layers": {"method": "uniformint", "dimension": {"low": 1, "high": 6}},
        "optimizer": {"method": "categorical", "dimension": {"categories": ["adam", "sgd", None]}},
        "momentum": {
            "method": "quniform",
            "dimension": {"low": 0, "high": 0.9, "q": 0.1},
            "condition": {"optimizer": ["sgd"]},
        },
        "noise": {"method": "normal", "dimension": {"mu": 0, "sigma": 1}},
        "kind": {"method": "fixed", "dimension": {"value": "x"}},
    }
)
SMALL = parse_space(
    {
        "a": {"method": "uniformint", "dimension": {"low": 1, "high": 3}},
        "b": {"method": "categorical", "dimension": {"categories": ["x", "y"]}},
    }
)
SQUARE = parse_space(
    {f"x{i}": {"method": "uniform", "dimension": {"low": -5, "high": 5}} for i in range(4)}
)
ALL = sorted(SAMPLERS)


def bowl(point: dict[str, Any]) -> float:
    """Four dimensions, minimum 0 away from the centre, ill-conditioned."""
    return float(sum(4**i * (point[f"x{i}"] - 1.3 * (-1.0) ** i) ** 2 for i in range(4)))


def mixed_loss(point: dict[str, Any]) -> float:
    return float(
        (math.log10(point["lr"]) + 3) ** 2
        + abs(point["layers"] - 4)
        + (point["optimizer"] != "sgd")
    )


def search(
    name: str, space: Any, loss: Callable[[dict[str, Any]], float], n: int, seed: int
) -> list[Trial]:
    """A search with four points in flight."""
    history: list[Trial] = []
    for ask in range(n // 4):
        points = suggest(name, space, history, 4, seed, ask)
        history += [Trial(point, "done", loss(point)) for point in points]
    return history


def a_history(n: int, seed: int = 0) -> list[Trial]:
    """Done, failed, pruned and pending trials, a NaN and an outlier among them."""
    points = suggest("random", MIXED, [], n, seed, 0)
    trials = [Trial(point, "done", mixed_loss(point)) for point in points]
    trials[1] = Trial(points[1], "failed", None)
    trials[2] = Trial(points[2], "done", math.nan)
    trials[3] = Trial(points[3], "done", 1e30)
    trials[4] = Trial(points[4], "pruned", 3.0)
    trials[-3:] = [Trial(point, "pending") for point in points[-3:]]
    return trials


@pytest.mark.parametrize("name", ALL)
def test_points_are_clean_json_inside_the_space_new_and_repeatable(name: str) -> None:
    history = a_history(24)
    points = suggest(name, MIXED, history, 3, 7, 5)
    assert points == suggest(name, MIXED, history, 3, 7, 5)
    assert json.loads(json.dumps(points, allow_nan=False)) == points
    assert len(points) == 3
    assert all(MIXED.contains(point) for point in points)
    keys = [json.dumps(point, sort_keys=True) for point in points]
    assert len({*keys, *(json.dumps(dict(t.parameters), sort_keys=True) for t in history)}) == 27


@pytest.mark.parametrize("name", ["random", "nevergrad", "skopt", "auto"])
def test_another_seed_gives_other_points(name: str) -> None:
    history = a_history(20)
    assert suggest(name, MIXED, history, 2, 1, 0) != suggest(name, MIXED, history, 2, 2, 0)


@pytest.mark.parametrize("name", ALL)
def test_a_finite_space_is_tried_out_before_anything_repeats(name: str) -> None:
    history: list[Trial] = []
    for ask in range(3):
        points = suggest(name, SMALL, history, 2, 3, ask)
        history += [Trial(point, "done", float(point["a"])) for point in points]
    assert len({json.dumps(dict(trial.parameters), sort_keys=True) for trial in history}) == 6
    more = suggest(name, SMALL, history, 2, 3, 3)
    assert len(more) == (0 if name == "grid" else 2)
    assert all(SMALL.contains(point) for point in more)


@pytest.mark.parametrize("name", ALL)
def test_the_first_ask_of_a_large_batch_is_answered_in_full(name: str) -> None:
    points = suggest(name, MIXED, [], 40, 1, 0)
    assert len({json.dumps(point, sort_keys=True) for point in points}) == 40


@pytest.mark.parametrize("name", ALL)
def test_a_history_without_any_loss_is_no_obstacle(name: str) -> None:
    points = suggest("random", MIXED, [], 30, 0, 0)
    history = [Trial(point, "failed" if i % 2 else "pending") for i, point in enumerate(points)]
    assert len(suggest(name, MIXED, history, 2, 0, 0)) == 2


@pytest.mark.parametrize("name", ALL)
def test_a_space_of_fixed_values_only_has_one_point(name: str) -> None:
    space = parse_space({"x": {"method": "fixed", "dimension": {"value": [1, 2]}}})
    assert suggest(name, space, [], 1, 0, 0) == [{"x": [1, 2]}]
    history = [Trial({"x": [1, 2]}, "done", 1.0)] * 20
    assert suggest(name, space, history, 1, 0, 1) in ([{"x": [1, 2]}], [])


@pytest.mark.parametrize("name", [name for name in ALL if name != "grid"])
def test_equal_losses_everywhere_are_no_obstacle(name: str) -> None:
    points = suggest("random", MIXED, [], 20, 0, 0)
    history = [Trial(point, "done", 0.0) for point in points]
    assert len(suggest(name, MIXED, history, 2, 0, 0)) == 2


@pytest.mark.parametrize("name", ["auto", "skopt", "nevergrad"])
def test_a_foreign_point_in_the_history_is_no_obstacle(name: str) -> None:
    foreign: dict[str, Any] = {"lr": 50.0, "other": "?"}
    history = [*a_history(20), Trial(foreign, "done", 0.5)]
    assert len(suggest(name, MIXED, history, 1, 0, 0)) == 1


@pytest.mark.parametrize(
    ("name", "n", "seeds"), [("auto", 40, 3), ("skopt", 24, 1), ("nevergrad", 60, 3)]
)
def test_a_model_beats_random_on_a_bowl(name: str, n: int, seeds: int) -> None:
    def best(sampler: str, seed: int) -> float:
        history = search(sampler, SQUARE, bowl, n, seed)
        return min(trial.loss for trial in history if trial.loss is not None)

    chance = sorted(best("random", seed) for seed in range(9))[4]
    assert sorted(best(name, seed) for seed in range(seeds))[seeds // 2] < 0.5 * chance


def test_a_search_goes_on_identically_after_its_history_was_read_back() -> None:
    history = search("auto", MIXED, mixed_loss, 24, 3)
    text = json.dumps([[dict(trial.parameters), trial.state, trial.loss] for trial in history])
    again = [Trial(*item) for item in json.loads(text)]
    assert suggest("auto", MIXED, again, 2, 3, 6) == suggest("auto", MIXED, history, 2, 3, 6)


def test_auto_goes_beyond_the_reach_of_its_model_quickly() -> None:
    points = suggest("sobol", SQUARE, [], 1200, 0, 0)
    history = [Trial(point, "done", bowl(point)) for point in points]
    begun = time.process_time()
    assert len(suggest("auto", SQUARE, history, 2, 0, 1)) == 2
    wide = parse_space({f"x{i}": SQUARE.to_json()["x0"] for i in range(40)})
    trials = [Trial(point, "done", 1.0) for point in suggest("random", wide, [], 50, 0, 0)]
    assert len(suggest("auto", wide, trials, 2, 0, 1)) == 2
    assert time.process_time() - begun < 5


@pytest.mark.parametrize("z", [-1e6, -2e3, -999.0, -50.0, -20.0])
def test_expected_improvement_follows_its_series_far_into_the_tail(z: float) -> None:
    # Mills' ratio: 1 + z cdf/pdf = 1/z^2 - 3/z^4 + 15/z^6 - 105/z^8 + ...
    series = 1 - 3 / z**2 + 15 / z**4 - 105 / z**6
    expected = -0.5 * z * z - 0.5 * math.log(2 * math.pi) - 2 * math.log(-z) + math.log(series)
    assert log_expected_improvement(np.array([z]))[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("z", [-4.0, -1.0, -0.5, 0.0, 3.0, 30.0])
def test_expected_improvement_is_its_definition_elsewhere(z: float) -> None:
    pdf = math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    cdf = 0.5 * math.erfc(-z / math.sqrt(2))
    found = log_expected_improvement(np.array([z]))[0]
    assert found == pytest.approx(math.log(pdf + z * cdf), rel=1e-9, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_rows_of_the_cube_are_points_of_the_space(seed: int) -> None:
    cube = Cube(MIXED)
    rng = np.random.default_rng(seed)
    rows = cube.mutate(rng, cube.draw(rng, 20), 0.3)
    points = [cube.decode(row) for row in rows]
    assert all(MIXED.contains(point) for point in points)
    assert np.allclose(cube.encode(points), rows, atol=1e-6)
    assert np.array_equal(cube.snap(rows), rows)


def test_the_gradient_of_the_posterior_is_that_of_its_value() -> None:
    cube = Cube(MIXED)
    rng = np.random.default_rng(1)
    rows = cube.draw(rng, 15)
    distances, losses = cube.distances(rows, rows), rng.normal(size=15)
    theta = rng.normal(size=cube.width + 1) * 0.3 - 1
    _, gradient = _posterior(theta, distances, losses, 0.1)
    for index in range(len(theta)):
        step = np.zeros_like(theta)
        step[index] = 1e-5
        above, _ = _posterior(theta + step, distances, losses, 0.1)
        below, _ = _posterior(theta - step, distances, losses, 0.1)
        assert gradient[index] == pytest.approx((above - below) / 2e-5, rel=1e-4, abs=1e-5)


def test_the_default_point_comes_first() -> None:
    space = parse_space(
        {"x": {"method": "uniform", "dimension": {"low": 0, "high": 1}, "default": 0.25}}
    )
    for name in ("auto", "random", "sobol"):
        assert suggest(name, space, [], 2, 0, 0)[0] == {"x": 0.25}
    assert suggest("auto", space, [Trial({"x": 0.25}, "pending")], 1, 0, 1) != [{"x": 0.25}]


def test_raw_json_is_accepted_for_space_and_history() -> None:
    history = [{"parameters": {"a": 1, "b": "x"}, "state": "done", "loss": 1.0}]
    parsed = [Trial({"a": 1, "b": "x"}, "done", 1.0)]
    assert suggest("sobol", SMALL.to_json(), history, 2, 1, 1) == suggest(
        "sobol", SMALL, parsed, 2, 1, 1
    )


def test_asking_for_nothing_gives_nothing() -> None:
    assert suggest("auto", SMALL, [], 0, 0, 0) == []


def test_an_unknown_sampler_is_named_with_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'sobol'"):
        suggest("soboll", SMALL, [], 1, 0, 0)


# --- grid ---


def test_grid_sweeps_what_is_marked_and_draws_the_rest() -> None:
    space = parse_space(
        {
            "a": {
                "method": "categorical",
                "dimension": {"categories": [1, 2], "grid_search": 1},
            },
            "b": {
                "method": "categorical",
                "dimension": {"categories": ["x", "y", "z"], "grid_search": 0},
            },
            "c": {"method": "uniform", "dimension": {"low": 0, "high": 1}},
        }
    )
    points = suggest("grid", space, [], 6, 0, 0)
    assert [point["a"] for point in points] == [1, 2, 1, 2, 1, 2]
    assert len({point["c"] for point in points}) == 6


def test_grid_leaves_out_what_conditions_switch_off_and_then_ends() -> None:
    space = parse_space(
        {
            "a": {"method": "categorical", "dimension": {"categories": ["on", "off"]}},
            "b": {
                "method": "uniformint",
                "dimension": {"low": 1, "high": 2},
                "condition": {"a": ["on"]},
            },
        }
    )
    expected: list[dict[str, Any]] = [{"a": "on", "b": 1}, {"a": "on", "b": 2}, {"a": "off"}]
    assert suggest("grid", space, [], 9, 0, 0) == expected
    history = [Trial(point, "pending") for point in expected]
    assert suggest("grid", space, history, 9, 0, 1) == []


def test_a_huge_grid_is_looked_into_lazily() -> None:
    space = parse_space(
        {f"x{i}": {"method": "uniformint", "dimension": {"low": 1, "high": 900}} for i in range(9)}
    )
    assert len(suggest("grid", space, [], 3, 0, 0)) == 3


# --- parts ---


def test_the_start_is_evenly_spread_in_every_coordinate() -> None:
    points = [halton_point(12, index, 5) for index in range(11)]
    for coordinate in range(6, 12):  # bases 17 and more: no two of 11 points share a stratum
        base = (17, 19, 23, 29, 31, 37)[coordinate - 6]
        assert len({int(point[coordinate] * base) for point in points}) == 11
    many = [halton_point(2, index, 5) for index in range(1024)]
    cells = {(int(x * 16), int(y * 16)) for x, y in many}
    assert len(cells) > 250  # random points leave about five of 256 empty, these fewer


def test_failures_count_as_the_worst_and_pending_ones_not_at_all() -> None:
    history = [
        Trial({}, "done", 2.0),
        Trial({}, "failed", None),
        Trial({}, "pending", None),
        Trial({}, "done", 5.0),
    ]
    assert finished(history)[1] == [2.0, 5.0, 5.0]


def test_outliers_are_cut_at_two_and_a_half_spreads_above_the_median() -> None:
    assert winsorised([0.0, 1.0, 2.0, 3.0, 1e9]) == [0.0, 1.0, 2.0, 3.0, 7.0]
    assert winsorised([1.0, 1.0, 1.0, 2.0]) == [1.0, 1.0, 1.0, 2.0]


def test_a_long_history_keeps_its_best_and_its_newest() -> None:
    losses = [float(i) for i in range(10)]
    assert most_telling(losses, 2, 3) == [0, 1, 7, 8, 9]
    assert most_telling(losses, 5, 5) == list(range(10))


def test_the_first_points_need_no_heavy_library() -> None:
    assert runs_in_process("auto", MIXED, [], 8)
    assert runs_in_process("random", MIXED, a_history(50), 8)
    assert not runs_in_process("auto", MIXED, a_history(20), 1)
    code = (
        "import sys; from harvester.steering.samplers import suggest;"
        "space = {'x': {'method': 'uniform', 'dimension': {'low': 0, 'high': 1}}};"
        "suggest('auto', space, [], 8, 1, 0);"
        "print(sorted({'numpy', 'scipy', 'skopt', 'nevergrad', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("given", "choice"),
    [
        (None, SamplerChoice("auto", {})),
        ("grid", SamplerChoice("grid", {})),
        (
            {"name": "nevergrad", "options": {"optimizer": "TwoPointsDE"}},
            SamplerChoice("nevergrad", {"optimizer": "TwoPointsDE"}),
        ),
    ],
)
def test_a_sampler_is_chosen_by_name(given: Any, choice: SamplerChoice) -> None:
    problems = Problems("config.json")
    assert read_sampler(problems, given) == choice
    assert not problems.found


@pytest.mark.parametrize(
    ("given", "key"),
    [
        (3, "sampler"),
        ("no", "sampler.name"),
        ({"name": "auto", "option": {}}, "sampler.option"),
        ({"name": "auto", "options": 3}, "sampler.options"),
        ({"name": "grid", "options": {"x": 1}}, "sampler.options"),
        ({"name": "skopt", "options": {"lie": "white"}}, "sampler.options.lie"),
        ({"name": "nevergrad", "options": {"optimizer": "a b"}}, "sampler.options.optimizer"),
        ({"name": "auto", "options": {"n_start": True}}, "sampler.options.n_start"),
    ],
)
def test_a_bad_choice_of_sampler_is_named(given: Any, key: str) -> None:
    problems = Problems("config.json")
    read_sampler(problems, given)
    assert [problem.key for problem in problems.found] == [key]


@pytest.mark.parametrize("name", ["grid", "skopt"])
def test_a_history_may_be_trials_mappings_or_iddss_pairs(name: str) -> None:
    pairs: list[Any] = [[{"k": "a"}, 0.5], [{"k": "b"}, None]]
    trials = [Trial({"k": "a"}, "done", 0.5), Trial({"k": "b"}, "pending")]
    mappings = [
        {"id": str(n), "parameters": point, "loss": loss} for n, (point, loss) in enumerate(pairs)
    ]
    space = {"k": {"method": "categorical", "dimension": {"categories": ["a", "b", "c", "d"]}}}
    histories: list[list[Any]] = [trials, mappings, pairs]
    answers = [suggest(name, space, history, 1, 3, 2) for history in histories]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0][0]["k"] in ("c", "d")
