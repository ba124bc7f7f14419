"""The search space of a task: named dimensions with conditions, read from JSON.

Owns the format (hpogrid's ``{"name": {"method", "dimension"}}``, the nevergrad form of iDDS, and
this project's ``condition``, ``default`` and ``weights``). Which points to try next is the
samplers' business.
"""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harvester.steering.dimensions import (
    LEVELS_MAX,
    Categorical,
    Dimension,
    Fixed,
    same_value,
)
from harvester.steering.problems import (
    PART_MAX_BYTES,
    Problems,
    is_clean_json,
    json_bytes,
    nearest,
)
from harvester.steering.space_methods import is_marked_for_grid, read_dimension

PARAMETERS_MAX = 1_000
NAME_MAX = 200  # characters of a parameter's name
_NUMBER_BYTES = 25  # the longest double, and a comma


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One hyperparameter. It is active when every parent is and has one of the listed values."""

    name: str
    dimension: Dimension
    condition: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    has_default: bool = False
    default: Any = None
    grid_search: bool | None = None  # None: the definition does not say


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """All hyperparameters in the order of the file. Points hold the active ones only."""

    parameters: tuple[Parameter, ...]
    parents_first: tuple[Parameter, ...]
    source: Mapping[str, Any]

    @property
    def width(self) -> int:
        """How many unit coordinates a point has."""
        return sum(parameter.dimension.width for parameter in self.parameters)

    def sample(self, rng: random.Random) -> dict[str, Any]:
        """A point drawn from the space's own distribution."""
        return self.from_unit([rng.random() for _ in range(self.width)])

    def from_unit(self, unit: Sequence[float]) -> dict[str, Any]:
        """The point at these ``width`` coordinates; those of inactive parameters are ignored."""
        values: dict[str, Any] = {}
        at = 0
        for parameter in self.parameters:
            width = parameter.dimension.width
            # Copied, so that a list among the categories is never shared between points.
            values[parameter.name] = _own(parameter.dimension.from_unit(unit[at : at + width]))
            at += width
        return self._only_active(values)

    def to_unit(self, point: Mapping[str, Any]) -> list[float]:
        """Coordinates of ``point``, 0.5 for what is missing or inactive. Never raises."""
        unit: list[float] = []
        for parameter in self.parameters:
            dimension = parameter.dimension
            if parameter.name in point:
                unit.extend(dimension.to_unit(point[parameter.name]))
            else:
                unit.extend([0.5] * dimension.width)
        return unit

    def contains(self, point: object) -> bool:
        """Whether ``point`` has exactly the active parameters, each with one of its values."""
        if not isinstance(point, Mapping):
            return False
        active = self._active(point)
        if active != set(point):
            return False
        return all(
            item.dimension.contains(point[item.name])
            for item in self.parameters
            if item.name in active
        )

    def nearest(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """The point of the space next to one that a sampler got slightly wrong."""
        return self.from_unit(self.to_unit(point))

    def is_active(self, name: str, point: Mapping[str, Any]) -> bool:
        """Whether the parameter belongs into a point with these values.

        Raises:
            KeyError: the space has no such parameter.
        """
        if all(parameter.name != name for parameter in self.parameters):
            raise KeyError(name)
        return name in self._active(point)

    def default_point(self) -> dict[str, Any] | None:
        """The point of all defaults, or None unless every active parameter has one."""
        values = {}
        for parameter in self.parameters:
            if isinstance(parameter.dimension, Fixed):
                values[parameter.name] = parameter.dimension.value
            elif parameter.has_default:
                values[parameter.name] = _own(parameter.default)
        point = self._only_active(values)
        declared = any(parameter.has_default for parameter in self.parameters)
        return point if declared and self.contains(point) else None

    def grid_size(self) -> int | None:
        """How many points there are at most (conditions may make them fewer); None: infinite."""
        counts = [parameter.dimension.values() for parameter in self.parameters]
        if any(values is None for values in counts):
            return None
        return math.prod(len(values) for values in counts if values is not None)

    def grid(self) -> Iterator[dict[str, Any]]:
        """Every point once, the last parameter changing fastest.

        Raises:
            ValueError: the space is continuous, or finer than 1,000 values in one parameter.
        """
        axes = [parameter.dimension.values() for parameter in self.parameters]
        if any(axis is None for axis in axes):
            raise ValueError(f"a parameter has more than {LEVELS_MAX} values: no grid")
        return self.combinations(
            {p.name: axis or () for p, axis in zip(self.parameters, axes, strict=True)}
        )

    def combinations(self, axes: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
        """Every combination of some parameters' values, without what conditions switch off.

        A parameter is judged by its conditions on those in ``axes`` only. Lazy: a grid of any
        size may be looked into.
        """
        names = list(axes)
        firsts = {name: axes[name][0] for name in names if axes[name]}
        for choice in itertools.product(*axes.values()):
            values = dict(zip(names, choice, strict=True))
            active = self._active(values, given_parents_only=True)
            # An inactive parameter's other values would only repeat the same point.
            if all(name in active or values[name] is firsts[name] for name in names):
                yield {name: _own(values[name]) for name in names if name in active}

    def to_json(self) -> dict[str, Any]:
        """The definition as it was given, which ``parse_space`` reads again."""
        return copy.deepcopy(dict(self.source))

    def _only_active(self, values: Mapping[str, Any]) -> dict[str, Any]:
        active = self._active(values)
        return {name: value for name, value in values.items() if name in active}

    def _active(self, values: Mapping[str, Any], *, given_parents_only: bool = False) -> set[str]:
        active: set[str] = set()
        for parameter in self.parents_first:
            if all(
                _holds(parent, allowed, values, active)
                for parent, allowed in parameter.condition.items()
                if parent in values or not given_parents_only
            ):
                active.add(parameter.name)
        return active


def parse_space(value: Any, file: str = "search space") -> SearchSpace:
    """The search space that a JSON value describes; ``file`` names it in errors.

    Raises:
        InputError: everything that is wrong with it, each with its key path.
    """
    problems = Problems(file)
    if not isinstance(value, Mapping) or not value:
        problems.add("", value, 'expected an object {"name": {"method", "dimension"}, ...}')
        problems.check()
    if len(value) > PARAMETERS_MAX:
        problems.add("", len(value), f"expected at most {PARAMETERS_MAX} hyperparameters")
        problems.check()
    parameters = [_read_parameter(problems, name, item, value) for name, item in value.items()]
    problems.check()
    sound = tuple(parameter for parameter in parameters if parameter is not None)
    _check_condition_values(problems, sound)
    ordered = _parents_first(problems, sound)
    _check_size(problems, sound)
    problems.check()
    return SearchSpace(sound, ordered, copy.deepcopy(dict(value)))


def _read_parameter(
    problems: Problems, name: Any, definition: Any, space: Mapping[str, Any]
) -> Parameter | None:
    if not isinstance(name, str) or not _is_name(name):
        expected = f"expected a name of 1 to {NAME_MAX} printable characters"
        problems.add("", name, f"{expected} for every hyperparameter")
        return None
    if not isinstance(definition, Mapping):
        problems.add(name, definition, 'expected {"method": ..., "dimension": {...}}')
        return None
    dimension = read_dimension(problems, name, definition)
    condition = _read_condition(problems, name, definition, space)
    if dimension is None:
        return None
    if "default" in definition and not dimension.contains(definition["default"]):
        problems.add(f"{name}.default", definition["default"], "is not a value of this parameter")
    return Parameter(
        name=name,
        dimension=dimension,
        condition=condition,
        has_default="default" in definition,
        default=definition.get("default"),
        grid_search=is_marked_for_grid(definition),
    )


def _read_condition(
    problems: Problems, name: str, definition: Mapping[str, Any], space: Mapping[str, Any]
) -> dict[str, tuple[Any, ...]]:
    given = definition.get("condition", {})
    key = f"{name}.condition"
    if not isinstance(given, Mapping):
        problems.add(key, given, 'expected {"parent": [values]}')
        return {}
    condition = {}
    for parent, allowed in given.items():
        if parent not in space:
            problems.add(f"{key}.{parent}", allowed, f"no such parameter{nearest(parent, space)}")
        elif not isinstance(allowed, list) or not allowed or not is_clean_json(allowed):
            problems.add(f"{key}.{parent}", allowed, "expected a list of the parent's values")
        else:
            condition[parent] = tuple(allowed)
    return condition


def _check_condition_values(problems: Problems, parameters: Sequence[Parameter]) -> None:
    dimensions = {parameter.name: parameter.dimension for parameter in parameters}
    for parameter in parameters:
        for parent, allowed in parameter.condition.items():
            for value in allowed:
                if not dimensions[parent].contains(value):
                    key = f"{parameter.name}.condition.{parent}"
                    problems.add(key, value, f"{parent} never has this value")


def _parents_first(problems: Problems, parameters: tuple[Parameter, ...]) -> tuple[Parameter, ...]:
    ordered: list[Parameter] = []
    done: set[str] = set()
    waiting = list(parameters)
    while waiting:
        ready = [item for item in waiting if done.issuperset(item.condition)]
        if not ready:
            names = " -> ".join(sorted(item.name for item in waiting))
            key = f"{waiting[0].name}.condition"
            problems.add(key, dict(waiting[0].condition), f"depends on itself through {names}")
            return ()
        ordered += ready
        done.update(item.name for item in ready)
        waiting = [item for item in waiting if item.name not in done]
    return tuple(ordered)


def _is_name(name: str) -> bool:
    return bool(name.strip()) and name.isprintable() and len(name) <= NAME_MAX


def _check_size(problems: Problems, parameters: Sequence[Parameter]) -> None:
    """Refuse points that would not fit a record of the file protocol."""
    sizes = {item.name: json_bytes(item.name) + _most_bytes(item) for item in parameters}
    total = sum(sizes.values())
    if total > PART_MAX_BYTES:
        largest = max(sizes, key=lambda name: sizes[name])
        problems.tell(
            largest,
            f"makes a point's parameters up to {total} bytes long; expected at most "
            f"{PART_MAX_BYTES}: put long values into a file and search over their names",
        )


def _most_bytes(parameter: Parameter) -> int:
    match parameter.dimension:
        case Fixed(value=value):
            return json_bytes(value)
        case Categorical(choices=choices):
            return max(map(json_bytes, choices))
        case other:
            return _NUMBER_BYTES * max(1, other.width)


def _holds(
    parent: str, allowed: Sequence[Any], values: Mapping[str, Any], active: set[str]
) -> bool:
    if parent not in active or parent not in values:
        return False
    return any(same_value(values[parent], value) for value in allowed)


def _own(value: Any) -> Any:
    return copy.deepcopy(value) if isinstance(value, (list, dict)) else value
