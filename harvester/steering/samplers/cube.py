"""A space as arrays: rows of unit coordinates and positions of choices, many at a time.

What ``SearchSpace`` does for one point, vectorised for the thousands of candidates that a model
looks at: rounding to the values that exist, conditions, mutation, distances.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harvester.steering.dimensions import Vector
from harvester.steering.samplers.axes import axes_of, decode, encode
from harvester.steering.space import Parameter, SearchSpace

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

_FLIP = 0.2  # chance that a mutation changes a choice


class Cube:
    """Rows of one number per axis: [0, 1], or the position of an unordered choice."""

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._axes = axes_of(space)
        self._first = _first_axes(space)
        self._levels = _levels(space)
        # Where inactive coordinates are put, so that they make no distance between rows.
        self._rest = np.array(encode(space, self._axes, {}), dtype=float)
        self.n_choices = np.array([len(axis.centres or ()) for axis in self._axes])
        self.is_choice: Mask = self.n_choices > 0

    @property
    def width(self) -> int:
        """How many axes there are."""
        return len(self._axes)

    def encode(self, points: Sequence[Mapping[str, Any]]) -> Array:
        """The rows of points; foreign values go to the nearest ones."""
        rows = [encode(self._space, self._axes, point) for point in points]
        return np.array(rows, dtype=float).reshape(len(rows), self.width)

    def decode(self, row: Array) -> dict[str, Any]:
        """The point of a row."""
        return decode(self._space, self._axes, row.tolist())

    def draw(self, rng: np.random.Generator, n: int) -> Array:
        """``n`` uniform rows."""
        rows = rng.random((n, self.width))
        rows[:, self.is_choice] = np.floor(rows[:, self.is_choice] * self.n_choices[self.is_choice])
        return self.snap(rows)

    def mutate(self, rng: np.random.Generator, rows: Array, scale: Array | float) -> Array:
        """Rows moved a little in some of their coordinates (in one at least)."""
        shape = rows.shape
        chosen = rng.random(shape) < max(0.3, 1.0 / self.width)
        chosen[np.arange(shape[0]), rng.integers(0, self.width, shape[0])] = True
        moved = rows + np.where(chosen & ~self.is_choice, rng.normal(size=shape) * scale, 0.0)
        moved = np.abs(moved)  # reflected at the lower edge, then at the upper
        moved = np.where(self.is_choice, rows, 1.0 - np.abs(1.0 - np.minimum(moved, 2.0)))
        flipped = chosen & self.is_choice & (rng.random(shape) < _FLIP)
        other = np.floor(rng.random(shape) * np.maximum(self.n_choices, 1))
        return self.snap(np.where(flipped, other, moved))

    def snap(self, rows: Array) -> Array:
        """Rows at the values that exist, inactive coordinates at rest."""
        rows = np.where(self.is_choice, rows, np.clip(rows, 0.0, 1.0))
        for axis, levels in self._levels.items():
            rows[:, axis] = levels[_nearest(levels, rows[:, axis])]
        active: dict[str, Mask] = {}
        for parameter in self._space.parents_first:
            active[parameter.name] = self._activity(parameter, rows, active)
            first = self._first[parameter.name]
            for axis in range(first, first + parameter.dimension.width):
                rows[:, axis] = np.where(active[parameter.name], rows[:, axis], self._rest[axis])
        return rows

    def distances(self, left: Array, right: Array) -> Array:
        """Squared distance per axis, shape (axes, left, right); 1 between different choices."""
        difference = left.T[:, :, None] - right.T[:, None, :]
        squared: Array = np.square(difference)
        squared[self.is_choice] = (difference[self.is_choice] != 0).astype(float)
        return squared

    def _activity(self, parameter: Parameter, rows: Array, active: Mapping[str, Mask]) -> Mask:
        holds = np.ones(len(rows), dtype=bool)
        parameters = {item.name: item for item in self._space.parameters}
        for parent, allowed in parameter.condition.items():
            axis = self._first[parent]
            if parameters[parent].dimension.width == 0:
                continue  # a fixed parent has the value: the reader of the space made sure
            places = self.encode([{parent: value} for value in allowed])[:, axis]
            near = np.abs(rows[:, axis, None] - places[None, :]) < 1e-6
            holds &= active[parent] & near.any(axis=1)
        return holds


def _first_axes(space: SearchSpace) -> dict[str, int]:
    first, at = {}, 0
    for parameter in space.parameters:
        first[parameter.name] = at
        at += parameter.dimension.width
    return first


def _levels(space: SearchSpace) -> dict[int, Array]:
    """The coordinates of the values of each axis that has finitely many, ascending."""
    axes, levels = axes_of(space), {}
    at = 0
    for parameter in space.parameters:
        dimension = parameter.dimension
        element = dimension.element if isinstance(dimension, Vector) else dimension
        values = element.values()
        for axis in range(at, at + dimension.width):
            if values is not None and axes[axis].centres is None:
                levels[axis] = np.sort([element.to_unit(value)[0] for value in values])
        at += dimension.width
    return levels


def _nearest(levels: Array, where: Array) -> NDArray[np.intp]:
    right = np.clip(np.searchsorted(levels, where), 1, len(levels) - 1) if len(levels) > 1 else None
    if right is None:
        return np.zeros(len(where), dtype=np.intp)
    return np.where(where - levels[right - 1] <= levels[right] - where, right - 1, right)
