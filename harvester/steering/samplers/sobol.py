"""``sobol``: a scrambled Sobol sequence (scipy), continued from the length of the history."""

from __future__ import annotations

import warnings
from typing import Any

from scipy.stats import qmc

from harvester.steering.samplers.ask import Ask


def propose(ask: Ask) -> list[dict[str, Any]]:
    """The next ``ask.n`` points of the sequence that belongs to the seed."""
    width = ask.space.width
    if width == 0:
        return [ask.space.from_unit(())]
    sequence = qmc.Sobol(d=width, scramble=True, seed=ask.seed % 2**32)
    if ask.history:  # scipy cannot go forward by nothing
        sequence.fast_forward(len(ask.history))
    with warnings.catch_warnings():
        # "balance properties require n to be a power of 2": true of the whole, not of one ask.
        warnings.simplefilter("ignore", UserWarning)
        rows = sequence.random(ask.n)
    return [ask.space.from_unit([float(item) for item in row]) for row in rows]
