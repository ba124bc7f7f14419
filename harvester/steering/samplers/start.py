"""The first points of a search: the user's defaults, then evenly spread ones.

Model-based samplers need some losses before they know more than chance. The start runs on the
standard library alone, so that the first points of a search are there at once.
"""

from __future__ import annotations

from typing import Any

from harvester.steering.samplers.ask import Ask
from harvester.steering.samplers.quasirandom import halton_point

_MODEL_BASED = ("auto", "skopt")


def start_points(ask: Ask) -> list[dict[str, Any]]:
    """The leading ones of the ``ask.n`` points that need no model; often none."""
    points: list[dict[str, Any]] = []
    if not ask.history and ask.sampler != "grid":
        default = ask.space.default_point()
        points = [] if default is None else [default]
    if ask.sampler not in _MODEL_BASED:
        return points[: ask.n]
    wanted = min(ask.n, n_start(ask) - len(ask.history))
    if all(trial.value is None for trial in ask.history):
        wanted = ask.n  # nothing to learn from yet
    return (points + spread(ask, max(0, wanted - len(points)), len(points)))[: ask.n]


def n_start(ask: Ask) -> int:
    """How many points come before the model: 8 to 12 measured best."""
    default = min(12, max(8, ask.space.width + 4))
    return int(ask.options.get("n_start", default))


def spread(ask: Ask, n: int, skip: int = 0) -> list[dict[str, Any]]:
    """``n`` evenly spread points that continue where the history ends (``skip`` further on)."""
    first = len(ask.history) + skip
    width = ask.space.width
    return [
        ask.space.from_unit(halton_point(width, index, ask.seed))
        for index in range(first, first + n)
    ]
