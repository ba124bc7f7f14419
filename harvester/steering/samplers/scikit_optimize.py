"""``skopt``: scikit-optimize with a Gaussian process, a random forest or extra trees.

Around its faults: only unit coordinates and positions are told (values out of bounds, ``Integer(3,
3)`` and numpy scalars never arise), failures enter as the worst loss seen (NaN raises), pending
points are told as lies (an ask knows only its own batch), each asked point is told before the next
ask (else the same one comes again), and long histories are thinned (a fit at 400 takes 10 s).
"""

from __future__ import annotations

import statistics
import warnings
from typing import Any

from skopt import Optimizer
from skopt.space import Categorical, Real

from harvester.steering.samplers.ask import Ask
from harvester.steering.samplers.axes import Axis, axes_of, decode, encode
from harvester.steering.samplers.losses import finished, most_telling, winsorised

_BEST, _RECENT = 80, 80


def propose(ask: Ask) -> list[dict[str, Any]]:
    """``ask.n`` points, one after another, each pending for those after it."""
    axes = axes_of(ask.space)
    if not axes:
        return []
    with warnings.catch_warnings():
        # Convergence and "point has been evaluated before": nobody can act on them.
        warnings.simplefilter("ignore")
        return _propose(ask, axes)


def _propose(ask: Ask, axes: list[Axis]) -> list[dict[str, Any]]:
    optimizer = Optimizer(
        [_dimension(axis) for axis in axes],
        base_estimator=ask.options.get("base_estimator", "GP"),
        n_initial_points=1,
        acq_func="EI",
        random_state=ask.number("skopt"),
    )
    trials, losses = finished(ask.history)
    chosen = most_telling(losses, _BEST, _RECENT)
    rows = [encode(ask.space, axes, trials[index].parameters) for index in chosen]
    tamed = winsorised(losses)
    optimizer.tell(rows, [tamed[index] for index in chosen])
    pending = [t.parameters for t in ask.history if t.is_pending]
    if pending:
        waiting = [encode(ask.space, axes, point) for point in pending]
        optimizer.tell(waiting, _lies(ask, optimizer, waiting))
    points: list[dict[str, Any]] = []
    while True:
        points.append(decode(ask.space, axes, optimizer.ask()))
        if len(points) == ask.n:
            return points
        row = encode(ask.space, axes, points[-1])
        optimizer.tell(row, _lies(ask, optimizer, [row])[0])


def _dimension(axis: Axis) -> Any:
    if axis.centres is None:
        return Real(0.0, 1.0)
    return Categorical(list(range(len(axis.centres))))


def _lies(ask: Ask, optimizer: Any, rows: list[list[float | int]]) -> list[float]:
    """What pending points are taken to yield: the model's own belief, or a constant."""
    lie = ask.options.get("lie", "believer")
    if lie == "believer":
        believed = optimizer.models[-1].predict(optimizer.space.transform(rows))
        return [float(value) for value in believed]
    return [_constant(lie, [float(value) for value in optimizer.yi])] * len(rows)


def _constant(lie: str, losses: list[float]) -> float:
    if lie == "cl_mean":
        return statistics.fmean(losses)
    return min(losses) if lie == "cl_min" else max(losses)
