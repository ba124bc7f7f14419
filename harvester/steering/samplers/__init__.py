"""Samplers: which points to try next. One pure function over all of them, ``suggest``.

A sampler keeps nothing between asks: it sees the search space and the whole history every time,
so a search is rebuilt from the database by asking again. Importing this package imports no
numerical library; a sampler brings its own when it is asked.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from harvester.steering.samplers.ask import Past, Trial, make_ask
from harvester.steering.samplers.distinct import distinct
from harvester.steering.samplers.registry import SAMPLERS
from harvester.steering.samplers.start import start_points
from harvester.steering.space import SearchSpace

__all__ = ["Trial", "runs_in_process", "suggest"]


def suggest(
    name: str,
    space: SearchSpace | Mapping[str, Any],
    history: Sequence[Past],
    n: int,
    seed: int,
    n_asks: int,
    options: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """``n`` new points by the sampler ``name``; pure and deterministic in its arguments.

    Points are plain JSON values inside the space, and none stands in the history as long as the
    space has others. Fewer than ``n`` (or none) come from ``grid`` only: it is exhausted.

    Args:
        space: a parsed space, or its JSON form.
        history: every earlier trial in the order it was asked for, pending ones included: trials,
            mappings with ``parameters``, ``loss`` and perhaps ``state``, or pairs of parameters
            and loss; without a loss a point is pending. The loss is minimised.
        seed: of the search. The same seed and history give the same points.
        n_asks: how many asks came before; makes repeated asks over one history differ.
        options: of the sampler, see ``registry``.

    Raises:
        InputError: an unknown sampler, or a space that cannot be read.
    """
    ask = make_ask(name, space, history, n, seed, n_asks, options)
    if n <= 0:
        return []
    points = start_points(ask)
    entry = SAMPLERS[name]
    if len(points) < n:
        module = importlib.import_module(f"{__name__}.{entry.module}")
        with contextlib.nullcontext() if entry.light else _one_thread():
            points += module.propose(ask.after(points))
    return distinct(ask, points, refill=not entry.exhausts)


def runs_in_process(
    name: str,
    space: SearchSpace,
    history: Sequence[Trial],
    n: int,
    options: Mapping[str, Any] | None = None,
) -> bool:
    """Whether ``suggest`` would be quick and import nothing heavy for these arguments."""
    ask = make_ask(name, space, history, n, 0, 0, options)
    return SAMPLERS[name].light or len(start_points(ask)) >= n


def _one_thread() -> contextlib.AbstractContextManager[object]:
    """Linear algebra on one core: small matrices lose by more, and sums come out the same."""
    from threadpoolctl import threadpool_limits

    limits: contextlib.AbstractContextManager[object] = threadpool_limits(1)
    return limits
