"""Keeps points from being tried twice, as long as the space has others."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harvester.steering.samplers.ask import Ask
from harvester.steering.samplers.quasirandom import halton_point

_ENUMERATED_MAX = 20_000  # points of a finite space that are listed to find the unused ones
_TRIES_PER_POINT = 50


def point_key(point: Mapping[str, Any]) -> str:
    """Equal for equal points, whatever the order of their keys."""
    return json.dumps(point, sort_keys=True)


def distinct(
    ask: Ask, proposals: Sequence[Mapping[str, Any]], *, refill: bool
) -> list[dict[str, Any]]:
    """The proposals that are new, topped up to ``ask.n`` with unused, evenly spread points.

    Without ``refill`` nothing is added. When the space has no unused point left, used ones repeat.
    """
    seen = {point_key(trial.parameters) for trial in ask.history}
    points = _unseen(proposals, seen, ask.n)
    if refill and len(points) < ask.n:
        points += _unseen(_others(ask, seen), seen, ask.n - len(points))
        rng = ask.rng("repeats")
        points += [ask.space.sample(rng) for _ in range(ask.n - len(points))]
    return points


def _unseen(candidates: Any, seen: set[str], n: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for point in candidates:
        if len(found) == n:
            break
        key = point_key(point)
        if key not in seen:
            seen.add(key)
            found.append(dict(point))
    return found


def _others(ask: Ask, seen: set[str]) -> Iterator[Mapping[str, Any]]:
    first, width = len(ask.history), ask.space.width
    seed = ask.number("others")
    for index in range(first, first + ask.n * _TRIES_PER_POINT):
        yield ask.space.from_unit(halton_point(width, index, seed))
    size = ask.space.grid_size()
    if size is not None and (size <= _ENUMERATED_MAX or size <= len(seen) + ask.n):
        left = list(itertools.islice(ask.space.grid(), size))
        ask.rng("grid").shuffle(left)
        yield from left
