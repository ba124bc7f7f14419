"""``grid``: every combination once.

Swept are the parameters that ``grid_search`` marks, or all finite ones where nothing is marked.
The others are drawn anew for each combination. When everything is swept the grid ends; else it
begins again with other draws.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harvester.steering.dimensions import Fixed
from harvester.steering.samplers.ask import Ask
from harvester.steering.samplers.distinct import point_key
from harvester.steering.samplers.quasirandom import halton_point
from harvester.steering.space import SearchSpace


def propose(ask: Ask) -> list[dict[str, Any]]:
    """The next combinations; fewer than ``ask.n`` when they come to an end."""
    return list(itertools.islice(_points(ask), ask.n))


def swept_axes(space: SearchSpace) -> dict[str, Sequence[Any]]:
    """The parameters that the grid sweeps, with their values."""
    marked = any(parameter.grid_search for parameter in space.parameters)
    axes: dict[str, Sequence[Any]] = {}
    for parameter in space.parameters:
        values = parameter.dimension.values()
        if values is not None and (parameter.grid_search or not marked):
            axes[parameter.name] = values
    return axes


def _points(ask: Ask) -> Iterator[dict[str, Any]]:
    axes = swept_axes(ask.space)
    used = Counter(_projected(trial.parameters, axes) for trial in ask.history)
    index = len(ask.history)
    for turn in itertools.count() if _has_draws(ask.space, axes) else (0,):
        for combination in ask.space.combinations(axes):
            point = _complete(ask, combination, index)
            key = _projected(point, axes)
            if used[key] <= turn:
                used[key] += 1
                index += 1
                yield point


def _has_draws(space: SearchSpace, axes: Mapping[str, Any]) -> bool:
    return any(
        parameter.name not in axes and not isinstance(parameter.dimension, Fixed)
        for parameter in space.parameters
    )


def _complete(ask: Ask, combination: Mapping[str, Any], index: int) -> dict[str, Any]:
    """The combination with everything that is not swept drawn for it."""
    drawn = halton_point(ask.space.width, index, ask.seed)
    at = 0
    for parameter in ask.space.parameters:
        width = parameter.dimension.width
        if parameter.name in combination:
            drawn[at : at + width] = parameter.dimension.to_unit(combination[parameter.name])
        at += width
    return ask.space.from_unit(drawn)


def _projected(point: Mapping[str, Any], axes: Mapping[str, Any]) -> str:
    return point_key({name: point[name] for name in axes if name in point})
