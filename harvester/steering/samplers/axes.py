"""A space as the numerical libraries see it: numbers of [0, 1] and unordered choices.

Every library gets the same few kinds of axes, whatever the method of a parameter was, and what
it answers goes through ``SearchSpace.from_unit``: rounding, logarithms and conditions are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harvester.steering.dimensions import Categorical
from harvester.steering.space import SearchSpace

_EDGE = 1e-9  # some libraries refuse their own bounds after a round trip


@dataclass(frozen=True, slots=True)
class Axis:
    """One unit coordinate. ``centres``: those of its choices when it is an unordered choice."""

    centres: tuple[float, ...] | None = None


def axes_of(space: SearchSpace) -> list[Axis]:
    """One axis per unit coordinate, in their order."""
    axes: list[Axis] = []
    for parameter in space.parameters:
        dimension = parameter.dimension
        if isinstance(dimension, Categorical) and not dimension.ordered:
            centres = tuple(dimension.to_unit(choice)[0] for choice in dimension.choices)
            axes.append(Axis(centres))
        else:
            axes.extend([Axis()] * dimension.width)
    return axes


def encode(space: SearchSpace, axes: Sequence[Axis], point: Mapping[str, Any]) -> list[float | int]:
    """A point as numbers of (0, 1) and positions of choices; inactive ones at a fixed place."""
    row: list[float | int] = []
    for axis, unit in zip(axes, space.to_unit(point), strict=True):
        if axis.centres is None:
            row.append(min(1 - _EDGE, max(_EDGE, unit)))
        else:
            row.append(_nearest(axis.centres, unit))
    return row


def decode(space: SearchSpace, axes: Sequence[Axis], row: Sequence[Any]) -> dict[str, Any]:
    """The point of such a row; numpy scalars are welcome."""
    unit = [
        float(item) if axis.centres is None else axis.centres[int(item)]
        for axis, item in zip(axes, row, strict=True)
    ]
    return space.from_unit(unit)


def _nearest(centres: Sequence[float], unit: float) -> int:
    return min(range(len(centres)), key=lambda index: abs(centres[index] - unit))
