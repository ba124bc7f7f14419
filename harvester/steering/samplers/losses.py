"""Losses as models want them: everything that ended has one, and outliers are tamed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from harvester.steering.samplers.ask import Trial

_SPREAD = 2.5  # of (median - best) above the median: measured better than a logarithm


def finished(history: Sequence[Trial]) -> tuple[list[Trial], list[float]]:
    """The trials that ended, in order, with their losses; a failure counts as the worst seen."""
    known = [trial.value for trial in history if trial.value is not None]
    worst = max(known, default=0.0)
    trials = [trial for trial in history if not trial.is_pending]
    losses = [worst if trial.value is None else trial.value for trial in trials]
    return trials, losses


def winsorised(losses: Sequence[float]) -> list[float]:
    """Losses cut off above: a diverged training says no more than a bad one."""
    median = statistics.median(losses)
    cut = median + _SPREAD * (median - min(losses))
    # Half of them equal to the best: a cut at the median would hide all that is worse.
    return list(losses) if cut <= median else [min(loss, cut) for loss in losses]


def most_telling(losses: Sequence[float], n_best: int, n_recent: int) -> list[int]:
    """Positions of the best and the most recent losses, ascending; all if they are few enough."""
    if len(losses) <= n_best + n_recent:
        return list(range(len(losses)))
    ranked = sorted(range(len(losses)), key=lambda index: losses[index])
    return sorted({*ranked[:n_best], *range(len(losses) - n_recent, len(losses))})
