"""Reads one hyperparameter's definition: hpogrid's methods and the nevergrad form of iDDS.

hpogrid 1.3.3 writes ``{"method": M, "dimension": {...}}``, where low and high are values (not
exponents) and inclusive. The iDDS nevergrad container writes ``{"type": T, "params": {...},
"bounds": [low, high]}`` and hands them to ``nevergrad.p``. Problems are collected with their key
path; a definition with problems reads as None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from harvester.steering.dimensions import Categorical, Dimension, Fixed, Normal, Numeric, Vector
from harvester.steering.dimensions import same_value as _same
from harvester.steering.problems import Problems, is_clean_json, is_number, nearest

_CATEGORIES_MAX = 10_000
_VECTOR_MAX = 1_000
_INT_MAX = 2**53  # beyond it doubles skip integers
_DEFAULT_BASE = 10.0  # hpogrid's

# method -> keys of its dimension; the required ones first, the optional ones after "|"
METHOD_KEYS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "categorical": (frozenset({"categories"}), frozenset({"grid_search"})),
    "uniform": (frozenset({"low", "high"}), frozenset()),
    "uniformint": (frozenset({"low", "high"}), frozenset()),
    "quniform": (frozenset({"low", "high", "q"}), frozenset()),
    "loguniform": (frozenset({"low", "high"}), frozenset({"base"})),
    "loguniformint": (frozenset({"low", "high"}), frozenset({"base"})),
    "qloguniform": (frozenset({"low", "high", "q"}), frozenset({"base"})),
    "normal": (frozenset({"mu", "sigma"}), frozenset()),
    "qnormal": (frozenset({"mu", "sigma", "q"}), frozenset()),
    "lognormal": (frozenset({"mu", "sigma"}), frozenset({"base"})),
    "qlognormal": (frozenset({"mu", "sigma", "q"}), frozenset({"base"})),
    "fixed": (frozenset({"value"}), frozenset()),
}
TYPES = ("Choice", "TransitionChoice", "Scalar", "Log", "Array")
EXTENSIONS = ("condition", "default", "weights")

_Fields = Mapping[str, Any]


def read_dimension(problems: Problems, key: str, definition: _Fields) -> Dimension | None:
    """The dimension that ``definition`` describes, or None with its problems noted."""
    if "method" in definition:
        problems.unknown_keys(key, definition, ("method", "dimension", *EXTENSIONS))
        return _read_method(problems, key, definition)
    if "type" in definition:
        problems.unknown_keys(key, definition, ("type", "params", "bounds", *EXTENSIONS))
        return _read_type(problems, key, definition)
    problems.unknown_keys(key, definition, ("method", "dimension", *EXTENSIONS))
    problems.missing(f"{key}.method", f"give one of {', '.join(METHOD_KEYS)}")
    return None


def is_marked_for_grid(definition: _Fields) -> bool | None:
    """What ``grid_search`` says: swept, not swept, or None where it is not given."""
    dimension = definition.get("dimension")
    if not isinstance(dimension, Mapping) or "grid_search" not in dimension:
        return None
    return bool(dimension["grid_search"])


# --- hpogrid ---


def _read_method(problems: Problems, key: str, definition: _Fields) -> Dimension | None:
    method = definition["method"]
    if not isinstance(method, str) or method not in METHOD_KEYS:
        problems.add(
            f"{key}.method", method, f"is not a known method{nearest(method, METHOD_KEYS)}"
        )
        return None
    fields = definition.get("dimension", {})
    if not isinstance(fields, Mapping):
        problems.add(f"{key}.dimension", fields, "expected an object")
        return None
    if "weights" in definition and method != "categorical":
        problems.add(f"{key}.weights", definition["weights"], "only a categorical takes weights")
    where = f"{key}.dimension"
    required, optional = METHOD_KEYS[method]
    problems.unknown_keys(where, fields, required | optional)
    absent = sorted(required - set(fields))
    for name in absent:
        problems.missing(f"{where}.{name}", f"{method} needs it")
    if absent:
        return None
    if method == "categorical":
        return _read_categorical(problems, key, definition, fields)
    if method == "fixed":
        return _read_fixed(problems, where, fields["value"])
    reader = _read_normal if method.endswith("normal") else _read_uniform
    return reader(problems, where, method, fields)


def _read_categorical(
    problems: Problems, key: str, definition: _Fields, fields: _Fields
) -> Dimension | None:
    grid = fields.get("grid_search")
    if not (grid is None or isinstance(grid, bool) or (is_number(grid) and grid in (0, 1))):
        problems.add(f"{key}.dimension.grid_search", grid, "expected 0 or 1")
    where = f"{key}.dimension.categories"
    return _choices(
        problems, where, fields["categories"], f"{key}.weights", definition.get("weights")
    )


def _read_fixed(problems: Problems, where: str, value: Any) -> Dimension | None:
    if not is_clean_json(value):
        problems.add(f"{where}.value", value, "expected JSON with finite numbers")
        return None
    return Fixed(value)


def _read_uniform(problems: Problems, where: str, method: str, fields: _Fields) -> Dimension | None:
    whole = method.endswith("int")
    low = _read_number(problems, f"{where}.low", fields["low"], whole=whole)
    high = _read_number(problems, f"{where}.high", fields["high"], whole=whole)
    step = 1 if whole else _read_step(problems, where, fields)
    if "base" in fields:
        # It moves no probability: low and high are values. Wrong ones are still told.
        _read_base(problems, where, fields)
    if low is None or high is None or (step is None and "q" in fields):
        return None
    return _bounded(problems, where, Numeric(low=low, high=high, log="log" in method, step=step))


def _read_normal(problems: Problems, where: str, method: str, fields: _Fields) -> Dimension | None:
    mu = _read_number(problems, f"{where}.mu", fields["mu"])
    sigma = _read_positive(problems, f"{where}.sigma", fields["sigma"])
    step = _read_step(problems, where, fields)
    base = _read_base(problems, where, fields) if "log" in method else None
    if mu is None or sigma is None or (step is None and "q" in fields):
        return None
    dimension = Normal(mu=mu, sigma=sigma, base=base, step=step)
    if not _stays_finite(dimension):
        problems.add(f"{where}.mu", fields["mu"], "gives values beyond the range of a double")
        return None
    return dimension


def _stays_finite(dimension: Normal) -> bool:
    try:
        tails = [dimension.from_unit([0.0]), dimension.from_unit([1.0])]
    except OverflowError:
        return False
    if dimension.base is not None and dimension.step is None and 0.0 in tails:
        return False
    return all(is_number(value) for value in tails)


def _bounded(problems: Problems, where: str, dimension: Numeric) -> Numeric | None:
    """``dimension`` if its bounds make sense together."""
    low, high = dimension.low, dimension.high
    if low > high:
        problems.add(f"{where}.low", low, f"is above high ({high}); swap them")
        return None
    if dimension.log and low <= 0:
        problems.add(f"{where}.low", low, "a logarithmic scale needs low above 0")
        return None
    if not math.isfinite(float(high) - float(low)):
        problems.add(f"{where}.high", high, "low and high are too far apart for a double")
        return None
    if dimension.step is not None and dimension.last < dimension.first:
        problems.add(
            f"{where}.q", dimension.step, f"no multiple of it lies between {low} and {high}"
        )
        return None
    return dimension


def _read_number(
    problems: Problems, key: str, value: Any, *, whole: bool = False
) -> float | int | None:
    if not is_number(value):
        problems.add(key, value, "expected a finite number")
        return None
    if not whole:
        return value  # type: ignore[no-any-return]  # an int or a float
    if value != int(value) or abs(value) > _INT_MAX:
        problems.add(key, value, "expected a whole number up to 2**53")
        return None
    return int(value)


def _read_positive(problems: Problems, key: str, value: Any) -> float | int | None:
    number = _read_number(problems, key, value)
    if number is not None and number <= 0:
        problems.add(key, value, "expected a number above 0")
        return None
    return number


def _read_step(problems: Problems, where: str, fields: _Fields) -> float | int | None:
    return _read_positive(problems, f"{where}.q", fields["q"]) if "q" in fields else None


def _read_base(problems: Problems, where: str, fields: _Fields) -> float | None:
    base = _read_positive(problems, f"{where}.base", fields.get("base", _DEFAULT_BASE))
    if base == 1:
        problems.add(f"{where}.base", base, "expected a number other than 1")
        return None
    return base


def _choices(
    problems: Problems,
    where: str,
    categories: Any,
    weights_key: str,
    weights: Any,
    *,
    ordered: bool = False,
) -> Categorical | None:
    if not isinstance(categories, list) or not 0 < len(categories) <= _CATEGORIES_MAX:
        problems.add(where, categories, f"expected a list of 1 to {_CATEGORIES_MAX} values")
        return None
    sound = True
    for index, value in enumerate(categories):
        if not is_clean_json(value):
            problems.add(f"{where}[{index}]", value, "expected JSON with finite numbers")
            sound = False
    shares = _read_weights(problems, weights_key, weights, len(categories))
    if not sound or shares is None:
        return None
    return _merge(categories, shares, ordered=ordered)


def _read_weights(problems: Problems, key: str, weights: Any, n: int) -> list[float] | None:
    if weights is None:
        return [1.0] * n
    if not isinstance(weights, list) or len(weights) != n:
        problems.add(key, weights, f"expected a list of {n} numbers, one per category")
        return None
    found = [
        _read_positive(problems, f"{key}[{index}]", item) for index, item in enumerate(weights)
    ]
    if any(item is None for item in found):
        return None
    largest = max(float(item) for item in found if item is not None)
    return [float(item) / largest for item in found if item is not None]


def _merge(categories: list[Any], shares: list[float], *, ordered: bool) -> Categorical:
    """Distinct values; one that stands there twice weighs twice ([1, 1, 2] of PanDA's example)."""
    choices: list[Any] = []
    weights: list[float] = []
    for value, share in zip(categories, shares, strict=True):
        at = next((i for i, known in enumerate(choices) if _same(known, value)), None)
        if at is None:
            choices.append(value)
            weights.append(share)
        else:
            weights[at] += share
    total = sum(weights)
    return Categorical(tuple(choices), tuple(item / total for item in weights), ordered)


# --- the nevergrad form of iDDS ---


def _read_type(problems: Problems, key: str, definition: _Fields) -> Dimension | None:
    kind = definition["type"]
    reader = _TYPE_READERS.get(kind) if isinstance(kind, str) else None
    if reader is None:
        problems.add(f"{key}.type", kind, f"is not a known type{nearest(kind, TYPES)}")
        return None
    params = definition.get("params", {})
    if not isinstance(params, Mapping):
        problems.add(f"{key}.params", params, "expected an object")
        return None
    if "weights" in definition and "Choice" not in kind:
        problems.add(f"{key}.weights", definition["weights"], "only a choice takes weights")
    return reader(problems, key, definition, params)


def _read_choice(
    problems: Problems, key: str, definition: _Fields, params: _Fields
) -> Dimension | None:
    known = ("choices", "repetitions", "deterministic", "transitions")
    problems.unknown_keys(f"{key}.params", params, known)
    if params.get("repetitions", 1) not in (None, 1):
        problems.add(f"{key}.params.repetitions", params["repetitions"], "only 1 is implemented")
        return None
    if definition.get("bounds"):
        problems.add(f"{key}.bounds", definition["bounds"], "a choice has no bounds")
        return None
    return _choices(
        problems,
        f"{key}.params.choices",
        params.get("choices"),
        f"{key}.weights",
        definition.get("weights"),
        ordered=definition["type"] == "TransitionChoice",
    )


def _read_scalar(
    problems: Problems, key: str, definition: _Fields, params: _Fields
) -> Dimension | None:
    known = ("init", "lower", "upper", "mutable_sigma")
    problems.unknown_keys(f"{key}.params", params, known)
    bounds = _read_bounds(problems, key, definition, params)
    init = _read_number(problems, f"{key}.params.init", params.get("init") or 0)
    if bounds is None or init is None:
        return None
    if bounds == (None, None):
        return Normal(mu=init, sigma=1.0)  # nevergrad's own spread of an unbounded Scalar
    low, high = bounds
    if low is None or high is None:
        problems.add(key, list(bounds), "expected both a lower and an upper bound, or neither")
        return None
    return _bounded(problems, f"{key}.bounds", Numeric(low=low, high=high))


def _read_log(
    problems: Problems, key: str, definition: _Fields, params: _Fields
) -> Dimension | None:
    known = ("init", "exponent", "lower", "upper", "mutable_sigma")
    problems.unknown_keys(f"{key}.params", params, known)
    bounds = _read_bounds(problems, key, definition, params)
    if bounds is None:
        return None
    low, high = bounds
    if low is None or high is None:
        problems.missing(f"{key}.params.lower", "Log needs both lower and upper here")
        return None
    return _bounded(problems, f"{key}.params", Numeric(low=low, high=high, log=True))


def _read_array(
    problems: Problems, key: str, definition: _Fields, params: _Fields
) -> Dimension | None:
    known = ("shape", "init", "lower", "upper", "mutable_sigma")
    problems.unknown_keys(f"{key}.params", params, known)
    shape = params.get("shape")
    if "init" in params and shape is None:
        shape = _shape_of(params["init"])
    if shape is None or not _is_shape(shape):
        expected = f"expected a list of positive whole numbers, {_VECTOR_MAX} cells at most"
        problems.add(f"{key}.params.shape", shape, expected)
        return None
    flat = {name: params[name] for name in ("lower", "upper") if name in params}
    element = _read_scalar(problems, key, definition, flat)
    if not isinstance(element, (Numeric, Normal)):
        return None
    return Vector(element, tuple(shape))


_TYPE_READERS: Mapping[str, Callable[[Problems, str, _Fields, _Fields], Dimension | None]] = {
    "Choice": _read_choice,
    "TransitionChoice": _read_choice,
    "Scalar": _read_scalar,
    "Log": _read_log,
    "Array": _read_array,
}


def _read_bounds(
    problems: Problems, key: str, definition: _Fields, params: _Fields
) -> tuple[float | None, float | None] | None:
    """Lower and upper from ``bounds`` or ``params``; None when one of them is no number."""
    given = definition.get("bounds") or []
    if not isinstance(given, list) or len(given) not in (0, 2):
        problems.add(f"{key}.bounds", given, "expected [low, high]")
        return None
    low_key, high_key = f"{key}.bounds[0]", f"{key}.bounds[1]"
    if not given:
        low_key, high_key = f"{key}.params.lower", f"{key}.params.upper"
        given = [params.get("lower"), params.get("upper")]
    n_before = len(problems.found)
    low = None if given[0] is None else _read_number(problems, low_key, given[0])
    high = None if given[1] is None else _read_number(problems, high_key, given[1])
    return None if len(problems.found) > n_before else (low, high)


def _shape_of(init: Any) -> list[int]:
    shape: list[int] = []
    while isinstance(init, list) and init and len(shape) < 8:
        shape.append(len(init))
        init = init[0]
    return shape


def _is_shape(shape: Any) -> bool:
    if not isinstance(shape, list) or not shape:
        return False
    if not all(isinstance(item, int) and not isinstance(item, bool) for item in shape):
        return False
    return all(item > 0 for item in shape) and math.prod(shape) <= _VECTOR_MAX
