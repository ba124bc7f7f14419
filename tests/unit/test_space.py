"""The search-space format: what is read, what is refused, and how points map to coordinates."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harvester.errors import InputError
from harvester.steering.space import SearchSpace, parse_space

EVERY_METHOD: dict[str, Any] = {
    "optimizer": {"method": "categorical", "dimension": {"categories": ["adam", "sgd"]}},
    "momentum": {
        "method": "uniform",
        "dimension": {"low": 0.1, "high": 0.9},
        "condition": {"optimizer": ["sgd"]},
    },
    "layers": {"method": "uniformint", "dimension": {"low": 1, "high": 4}},
    "dropout": {"method": "quniform", "dimension": {"low": 0.05, "high": 0.5, "q": 0.1}},
    "width": {"method": "quniform", "dimension": {"low": 16, "high": 64, "q": 16}},
    "lr": {"method": "loguniform", "dimension": {"low": 1e-5, "high": 1e-1, "base": 10}},
    "batch": {"method": "loguniformint", "dimension": {"low": 8, "high": 512}},
    "steps": {"method": "qloguniform", "dimension": {"low": 10, "high": 1000, "q": 10}},
    "shift": {"method": "normal", "dimension": {"mu": 0, "sigma": 2}},
    "rounded": {"method": "qnormal", "dimension": {"mu": 5, "sigma": 1, "q": 0.5}},
    "scale": {"method": "lognormal", "dimension": {"mu": -2, "sigma": 1, "base": 10}},
    "tens": {"method": "qlognormal", "dimension": {"mu": 1, "sigma": 0.5, "base": 10, "q": 10}},
    "seed": {"method": "fixed", "dimension": {"value": 7}},
    "choice": {"type": "Choice", "params": {"choices": [1, None, True]}},
    "depth": {"type": "TransitionChoice", "params": {"choices": [1, 2, 4]}},
    "scalar": {"type": "Scalar", "bounds": [-1, 1]},
    "free": {"type": "Scalar", "params": {"init": 3}},
    "decay": {"type": "Log", "params": {"lower": 1e-6, "upper": 1}},
    "matrix": {"type": "Array", "params": {"shape": [2, 3]}, "bounds": [0, 1]},
}


def problems_of(definition: Any) -> dict[str, str]:
    with pytest.raises(InputError) as caught:
        parse_space(definition, file="space.json")
    assert all(problem.file == "space.json" for problem in caught.value.problems)
    return {problem.key: str(problem) for problem in caught.value.problems}


def one(method: str, **dimension: Any) -> SearchSpace:
    return parse_space({"x": {"method": method, "dimension": dimension}})


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_sampled_points_are_inside_survive_json_and_round_trip_through_coordinates(
    seed: int,
) -> None:
    space = parse_space(EVERY_METHOD)
    point = space.sample(random.Random(seed))
    again = json.loads(json.dumps(point, allow_nan=False))
    assert again == point
    assert space.contains(again)
    unit = space.to_unit(again)
    assert len(unit) == space.width
    assert all(0 <= item <= 1 for item in unit)
    back = space.from_unit(unit)
    assert space.contains(back)
    for name, value in back.items():
        if isinstance(value, float):
            assert math.isclose(value, point[name], rel_tol=1e-6, abs_tol=1e-6)
        elif name != "matrix":
            assert value == point[name]
            assert type(value) is type(point[name])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=24, max_size=24))
def test_coordinates_outside_the_unit_cube_still_give_a_point_inside(unit: list[float]) -> None:
    space = parse_space(EVERY_METHOD)
    assert space.width == 24 - 1
    assert space.contains(space.from_unit(unit[: space.width]))


@pytest.mark.parametrize(
    ("space", "first", "last"),
    [
        (one("uniform", low=2, high=3), 2.0, 3.0),
        (one("loguniform", low=1e-5, high=1e-1), 1e-5, 1e-1),
        (one("uniformint", low=-3, high=3), -3, 3),
        (one("loguniformint", low=1, high=1000), 1, 1000),
        (one("quniform", low=0.0, high=0.3, q=0.1), 0.0, 0.3),
        (one("quniform", low=1, high=10, q=4), 4, 8),
        (one("qloguniform", low=0.1, high=10, q=0.1), 0.1, 10.0),
        (one("uniform", low=1.5, high=1.5), 1.5, 1.5),
    ],
)
def test_bounds_are_inclusive_and_of_the_right_type(
    space: SearchSpace, first: Any, last: Any
) -> None:
    ends = [space.from_unit([0.0])["x"], space.from_unit([1.0])["x"]]
    assert ends == [first, last]
    assert [type(end) for end in ends] == [type(first), type(last)]


def test_quantised_values_are_the_doubles_a_person_would_write() -> None:
    space = one("quniform", low=0, high=1, q=0.1)
    values = [point["x"] for point in space.grid()]
    assert values == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert not space.contains({"x": 0.1 + 0.2})  # 0.30000000000000004


def test_a_duplicate_category_weighs_twice() -> None:
    space = one("categorical", categories=[1, 1, 2])
    rng = random.Random(1)
    drawn = [space.sample(rng)["x"] for _ in range(3000)]
    assert 0.62 < drawn.count(1) / 3000 < 0.71
    assert list(space.grid()) == [{"x": 1}, {"x": 2}]


def test_weights_set_the_shares() -> None:
    definition = {
        "method": "categorical",
        "dimension": {"categories": ["a", "b"]},
        "weights": [1, 9],
    }
    space = parse_space({"x": definition})
    rng = random.Random(2)
    assert [space.sample(rng)["x"] for _ in range(1000)].count("b") > 850


def test_true_and_one_are_different_categories() -> None:
    space = one("categorical", categories=[1, True, 0, False, None])
    assert [point["x"] for point in space.grid()] == [1, True, 0, False, None]
    assert space.contains({"x": 1.0})
    assert space.grid_size() == 5


def test_an_inactive_parameter_is_absent_and_refused() -> None:
    space = parse_space(EVERY_METHOD)
    rng = random.Random(3)
    points = [space.sample(rng) for _ in range(50)]
    assert {("momentum" in point, point["optimizer"]) for point in points} == {
        (True, "sgd"),
        (False, "adam"),
    }
    adam = next(point for point in points if point["optimizer"] == "adam")
    assert not space.contains({**adam, "momentum": 0.5})
    assert not space.is_active("momentum", adam)
    assert space.is_active("momentum", {**adam, "optimizer": "sgd"})


def test_conditions_chain_through_inactive_parents() -> None:
    space = parse_space(
        {
            "c": {
                "method": "uniformint",
                "dimension": {"low": 1, "high": 2},
                "condition": {"b": ["on"]},
            },
            "b": {
                "method": "categorical",
                "dimension": {"categories": ["on", "off"]},
                "condition": {"a": [1]},
            },
            "a": {"method": "categorical", "dimension": {"categories": [0, 1]}},
        }
    )
    assert [json.dumps(point, sort_keys=True) for point in space.grid()] == [
        '{"a": 0}',
        '{"a": 1, "b": "on", "c": 1}',
        '{"a": 1, "b": "off"}',
        '{"a": 1, "b": "on", "c": 2}',
    ]


def test_points_do_not_share_mutable_categories() -> None:
    space = one("categorical", categories=[[1, 2]])
    first = space.sample(random.Random(0))
    first["x"].append(3)
    assert space.sample(random.Random(0)) == {"x": [1, 2]}


def test_default_point_needs_a_default_for_every_active_parameter() -> None:
    definition = {
        "x": {"method": "uniform", "dimension": {"low": 0, "high": 1}, "default": 0.25},
        "k": {"method": "fixed", "dimension": {"value": "k"}},
    }
    assert parse_space(definition).default_point() == {"x": 0.25, "k": "k"}
    definition["y"] = {"method": "uniform", "dimension": {"low": 0, "high": 1}}
    assert parse_space(definition).default_point() is None


def test_nearest_brings_a_sloppy_point_inside() -> None:
    space = parse_space(EVERY_METHOD)
    point = space.sample(random.Random(5))
    sloppy = {**point, "lr": 1.0, "layers": 2.9999, "dropout": 0.3000004, "batch": 513}
    assert not space.contains(sloppy)
    mended = space.nearest(sloppy)
    assert space.contains(mended)
    assert mended["lr"] == 0.1
    assert mended["dropout"] == 0.3
    assert mended["batch"] == 512


def test_to_json_reads_as_the_same_space() -> None:
    space = parse_space(EVERY_METHOD)
    assert space.to_json() == EVERY_METHOD
    assert parse_space(space.to_json()) == space


@pytest.mark.parametrize(
    ("definition", "key", "words"),
    [
        ([], "", "expected an object"),
        ({}, "", "expected an object"),
        ({"x": 3}, "x", "expected"),
        ({"x": {}}, "x.method", "is missing"),
        ({"x": {"method": "unifrom", "dimension": {}}}, "x.method", "did you mean 'uniform'?"),
        ({"x": {"method": ["uniform"]}}, "x.method", "not a known method"),
        ({"x": {"method": "uniform", "dimension": 3}}, "x.dimension", "expected an object"),
        ({"x": {"metod": "uniform"}}, "x.metod", "did you mean 'method'?"),
        (
            {"lr": {"method": "uniform", "dimension": {"low": 2, "high": 1}}},
            "lr.dimension.low",
            "above high (1)",
        ),
        (
            {"x": {"method": "uniform", "dimension": {"low": 0, "hihg": 1}}},
            "x.dimension.hihg",
            "did you mean 'high'?",
        ),
        (
            {"x": {"method": "uniform", "dimension": {"low": 0}}},
            "x.dimension.high",
            "is missing; uniform needs it",
        ),
        (
            {"x": {"method": "uniform", "dimension": {"low": math.nan, "high": 1}}},
            "x.dimension.low",
            "got NaN; expected a finite number",
        ),
        (
            {"x": {"method": "uniform", "dimension": {"low": 0, "high": True}}},
            "x.dimension.high",
            "got true; expected a finite number",
        ),
        (
            {"x": {"method": "uniform", "dimension": {"low": 0, "high": 10**400}}},
            "x.dimension.high",
            "expected a finite number",
        ),
        (
            {"x": {"method": "uniform", "dimension": {"low": -1.7e308, "high": 1.7e308}}},
            "x.dimension.high",
            "too far apart",
        ),
        (
            {"x": {"method": "loguniform", "dimension": {"low": 0, "high": 1}}},
            "x.dimension.low",
            "low above 0",
        ),
        (
            {"x": {"method": "uniformint", "dimension": {"low": 0.5, "high": 1}}},
            "x.dimension.low",
            "whole number",
        ),
        (
            {"x": {"method": "quniform", "dimension": {"low": 0.11, "high": 0.19, "q": 0.1}}},
            "x.dimension.q",
            "no multiple of it",
        ),
        (
            {"x": {"method": "quniform", "dimension": {"low": 0, "high": 1, "q": 0}}},
            "x.dimension.q",
            "above 0",
        ),
        (
            {"x": {"method": "normal", "dimension": {"mu": 0, "sigma": -1}}},
            "x.dimension.sigma",
            "above 0",
        ),
        (
            {"x": {"method": "lognormal", "dimension": {"mu": 400, "sigma": 1}}},
            "x.dimension.mu",
            "beyond the range of a double",
        ),
        (
            {"x": {"method": "loguniform", "dimension": {"low": 1, "high": 2, "base": 1}}},
            "x.dimension.base",
            "other than 1",
        ),
        (
            {"x": {"method": "categorical", "dimension": {"categories": []}}},
            "x.dimension.categories",
            "expected a list of 1 to 10000 values",
        ),
        (
            {"x": {"method": "categorical", "dimension": {"categories": [1, math.inf]}}},
            "x.dimension.categories[1]",
            "finite numbers",
        ),
        (
            {"x": {"method": "categorical", "dimension": {"categories": [1], "grid_search": 2}}},
            "x.dimension.grid_search",
            "expected 0 or 1",
        ),
        (
            {"x": {"method": "categorical", "dimension": {"categories": [1]}, "weights": [1, 2]}},
            "x.weights",
            "expected a list of 1 numbers",
        ),
        (
            {"x": {"method": "uniform", "dimension": {"low": 0, "high": 1}, "weights": [1]}},
            "x.weights",
            "only a categorical",
        ),
        (
            {"x": {"method": "uniform", "dimension": {"low": 0, "high": 1}, "default": 2}},
            "x.default",
            "not a value of this parameter",
        ),
        (
            {"x": {"method": "fixed", "dimension": {"value": 1}, "condition": {"y": [1]}}},
            "x.condition.y",
            "no such parameter",
        ),
        (
            {"x": {"method": "fixed", "dimension": {"value": 1}, "condition": {"x": [1]}}},
            "x.condition",
            "depends on itself",
        ),
        ({"x": {"type": "Choise", "params": {}}}, "x.type", "did you mean 'Choice'?"),
        ({"x": {"type": "Choice"}}, "x.params.choices", "expected a list"),
        (
            {"x": {"type": "Choice", "params": {"choices": [1], "repetitions": 2}}},
            "x.params.repetitions",
            "only 1 is implemented",
        ),
        ({"x": {"type": "Scalar", "bounds": [1]}}, "x.bounds", "expected [low, high]"),
        ({"x": {"type": "Scalar", "bounds": ["a", 1]}}, "x.bounds[0]", "finite number"),
        ({"x": {"type": "Scalar", "bounds": [3, 1]}}, "x.bounds.low", "above high"),
        ({"x": {"type": "Log", "params": {"lower": 1}}}, "x.params.lower", "needs both"),
        ({"x": {"type": "Array", "params": {"shape": [0]}}}, "x.params.shape", "positive whole"),
    ],
)
def test_a_bad_definition_is_named_by_key_value_and_expectation(
    definition: Any, key: str, words: str
) -> None:
    found = problems_of(definition)
    assert key in found
    assert words in found[key]


@pytest.mark.parametrize("name", ["", "  ", "a\0b", "a\nb", "\ud800", "x" * 201])
def test_a_parameters_name_is_short_and_printable(name: str) -> None:
    found = problems_of({name: {"method": "fixed", "dimension": {"value": 1}}})
    assert "expected a name of 1 to 200 printable characters" in found[""]
    assert found[""].isprintable()


@pytest.mark.parametrize(
    "definition",
    [
        {"method": "fixed", "dimension": {"value": "x" * 62_000}},
        {"method": "categorical", "dimension": {"categories": ["a", "\u00e9" * 10_300]}},
        {"type": "Array", "params": {"shape": [1000]}, "bounds": [0, 1]},
    ],
)
def test_points_that_fit_no_record_of_the_file_protocol_are_refused(definition: Any) -> None:
    more = {f"p{n}": {"type": "Array", "params": {"shape": [999]}} for n in range(2)}
    found = problems_of({"large": definition, **(more if "type" in definition else {})})
    assert "bytes long; expected at most 61440" in found["large"]


def test_a_condition_on_a_value_the_parent_never_has_is_refused() -> None:
    found = problems_of(
        {
            "a": {"method": "categorical", "dimension": {"categories": ["x", "y"]}},
            "b": {"method": "fixed", "dimension": {"value": 1}, "condition": {"a": ["z"]}},
        }
    )
    assert found == {"b.condition.a": 'space.json: b.condition.a: got "z"; a never has this value'}


def test_all_problems_come_at_once() -> None:
    found = problems_of(
        {
            "a": {"method": "uniform", "dimension": {"low": 2, "high": 1}},
            "b": {"method": "nope"},
            "c": {"method": "categorical", "dimension": {"categories": []}, "extra": 1},
        }
    )
    assert set(found) == {"a.dimension.low", "b.method", "c.dimension.categories", "c.extra"}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["method", "dimension", "low", "high", "q", "categories", "type", "params", "bounds",
             "choices", "condition", "default", "weights", "mu", "sigma", "base", "value", "shape"]
        ),
        inner | st.sampled_from(["uniform", "quniform", "categorical", "normal", "Array", "Log"]),
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.text(max_size=3), _JSON, max_size=3) | _JSON)
def test_any_json_is_read_or_refused_as_input(value: Any) -> None:
    try:
        space = parse_space(value)
    except InputError:
        return
    assert space.contains(space.sample(random.Random(0)))
