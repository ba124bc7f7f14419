"""``nevergrad``: any optimiser of its registry, rebuilt from the history by telling.

Points are told as unit coordinates and positions, a little inside the bounds: values of nevergrad
do not survive a round trip exactly, and an upper edge may raise. Rank-based optimisers take every
loss as it is; failures are told as the worst one seen.
"""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import nevergrad as ng
import numpy as np
from nevergrad.common.errors import TellNotAskedNotSupportedError

from harvester.errors import InputError, Problem
from harvester.steering.problems import nearest
from harvester.steering.samplers.ask import Ask
from harvester.steering.samplers.axes import Axis, axes_of, decode, encode
from harvester.steering.samplers.distinct import point_key
from harvester.steering.samplers.losses import finished

DEFAULT = "OnePlusOne"
_ASKS_PER_POINT = 20


def propose(ask: Ask) -> list[dict[str, Any]]:
    """``ask.n`` points.

    Raises:
        InputError: nevergrad has no optimiser of the name in the options.
    """
    axes = axes_of(ask.space)
    if not axes:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about budgets and inefficient settings of its own
        optimizer = _optimizer(ask, axes)
        trials, losses = finished(ask.history)
        for trial, loss in zip(trials, losses, strict=True):
            row = tuple(encode(ask.space, axes, trial.parameters))
            candidate = optimizer.parametrization.spawn_child(new_value=row)
            # A few optimisers learn from their own points only: they begin anew.
            with contextlib.suppress(TellNotAskedNotSupportedError):
                optimizer.tell(candidate, loss)
        return _new_points(ask, axes, optimizer)


def _new_points(ask: Ask, axes: list[Axis], optimizer: Any) -> list[dict[str, Any]]:
    """Asks past what was tried: a rebuilt optimiser begins with its starting point once more."""
    seen = {point_key(trial.parameters) for trial in ask.history}
    points: list[dict[str, Any]] = []
    for _ in range(ask.n * _ASKS_PER_POINT):
        point = decode(ask.space, axes, optimizer.ask().value)
        if point_key(point) not in seen:
            seen.add(point_key(point))
            points.append(point)
        if len(points) == ask.n:
            break
    return points


def _optimizer(ask: Ask, axes: list[Axis]) -> Any:
    name = ask.options.get("optimizer", DEFAULT)
    if name not in ng.optimizers.registry:
        known = nearest(name, tuple(ng.optimizers.registry))
        raise InputError(
            Problem("sampler", "options.optimizer", name, f"is no optimiser of nevergrad{known}")
        )
    parametrization = ng.p.Tuple(*[_parameter(axis) for axis in axes])
    parametrization.random_state = np.random.RandomState(ask.number("nevergrad"))
    pending = sum(trial.is_pending for trial in ask.history)
    return ng.optimizers.registry[name](
        parametrization=parametrization,
        budget=max(int(ask.options.get("budget", 100)), len(ask.history) + ask.n),
        num_workers=pending + ask.n,
    )


def _parameter(axis: Axis) -> Any:
    if axis.centres is None:
        return ng.p.Scalar(lower=0.0, upper=1.0)
    return ng.p.Choice(list(range(len(axis.centres))))
