"""How long payloads take: learned from those that ran, declared, or assumed. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from harvester.planning.facts import WaitingAttempt

# A declared duration counts as one run: after a few real ones it no longer matters.
NEWEST_SAMPLES = 200
# Without a spread of its own, a payload may take a quarter longer than its median.
MARGIN = 1.25
# A payload with checkpoints is worth starting when this share of it can be done: shorter runs may
# end without a new checkpoint, and three of those count as a point that makes no progress.
WORTHWHILE_SHARE = 0.25
WORTHWHILE_MAX_S = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DurationEstimate:
    """What is known of a task's payloads: the median, and what nine in ten stay below."""

    median_s: float
    high_s: float
    samples: int


def estimate_duration(
    samples: Sequence[float], declared_s: float | None = None, cut_s: Sequence[float] = ()
) -> DurationEstimate | None:
    """The estimate from finished runs (oldest first), what the user declared, and cut-off runs.

    ``cut_s`` are runs that walltime ended: each is known to take at least that long, so it only
    counts where it lies above the median of the others. None when nothing is known.
    """
    finished = list(samples[-NEWEST_SAMPLES:])
    known = finished if declared_s is None else [*finished, declared_s]
    middle = statistics.median(known) if known else 0.0
    known += [length for length in cut_s[-NEWEST_SAMPLES:] if length > middle]
    if not known:
        return None
    median = statistics.median(known)
    high = statistics.quantiles(known, n=10, method="inclusive")[-1] if len(known) > 1 else 0.0
    # Few samples underestimate a tail.
    high = max(high, median * (MARGIN if len(known) < 10 else 1.0))
    return DurationEstimate(median_s=median, high_s=high, samples=len(finished))


@dataclass(frozen=True, slots=True)
class Estimator:
    """Judges how long attempts take; ``default_s`` stands in where nobody knows."""

    default_s: float

    def expected_s(self, attempt: WaitingAttempt) -> float:
        """How long the attempt will probably run, in seconds."""
        guess = self.default_s if attempt.expected_s is None else attempt.expected_s
        return guess if attempt.limit_s is None else min(guess, attempt.limit_s)

    def needed_s(self, attempt: WaitingAttempt) -> float:
        """Time within which the attempt finishes almost surely."""
        if attempt.expected_s is None:
            return self.expected_s(attempt)
        needed = attempt.expected_s * MARGIN
        return needed if attempt.limit_s is None else min(needed, attempt.limit_s)

    def worthwhile_s(self, attempt: WaitingAttempt) -> float:
        """The least time in an allocation that is worth starting the attempt for.

        One that cannot save its progress must be able to finish. Where nobody knows its duration,
        half of the guess will do: a guess must not keep it from running.
        """
        if attempt.checkpointable:
            return min(self.expected_s(attempt) * WORTHWHILE_SHARE, WORTHWHILE_MAX_S)
        if attempt.expected_s is None:
            return self.expected_s(attempt) / 2
        return self.needed_s(attempt)
