"""How long payloads take: learned from those that ran, declared, or assumed. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from harvester.planning.facts import WaitingAttempt
from payload_runner.waiting import MARGIN as RUNNER_MARGIN
from payload_runner.waiting import USEFUL_S

# Of few runs the tail is not known yet: a payload may take half as long again as their median.
MARGIN = 1.5
ENOUGH_SAMPLES = 20
# So many successes must say that payloads are shorter than declared before that is believed: the
# first ones to succeed are the short ones.
BELIEVED_SAMPLES = 3
# A run that was cut off says that its point needs more: at least this, and surely this.
MORE_THAN_CUT = 1.2
SURELY_MORE_THAN_CUT = 2.0
# A payload with checkpoints is worth starting when this share of it can be done: shorter runs may
# end without a new checkpoint, and three of those count as a point that makes no progress.
WORTHWHILE_SHARE = 0.25
WORTHWHILE_MAX_S = 1800.0


@dataclass(frozen=True, slots=True)
class DurationEstimate:
    """What is known of a task's payloads: the median, and what nine in ten stay below."""

    median_s: float
    high_s: float
    samples: int

    def expected_s(self, declared_s: float | None) -> float:
        """How long a payload probably takes, given what was declared, in seconds."""
        if declared_s is None or self.samples >= BELIEVED_SAMPLES:
            return self.median_s
        return max(self.median_s, declared_s)


def estimate_duration(samples: Sequence[float]) -> DurationEstimate:
    """The estimate from the durations of runs that finished; there must be one at least."""
    median = statistics.median(samples)
    if len(samples) < ENOUGH_SAMPLES:
        high = max(median * MARGIN, *samples)
    else:
        high = statistics.quantiles(samples, n=10, method="inclusive")[-1]
    return DurationEstimate(median, high, len(samples))


@dataclass(frozen=True, slots=True)
class Estimator:
    """Judges how long attempts take.

    ``default_s`` stands in where nobody knows; ``longest_s`` is the most time that any allocation
    of the site gives, so that a doubt never asks for more than there is.
    """

    default_s: float
    longest_s: float = math.inf

    def expected_s(self, attempt: WaitingAttempt) -> float:
        """How long the attempt will probably run, in seconds."""
        guess = self.default_s if attempt.expected_s is None else attempt.expected_s
        cut = min(attempt.cut_s * MORE_THAN_CUT, self.longest_s / RUNNER_MARGIN)
        return _within(max(guess, cut), attempt.limit_s)

    def needed_s(self, attempt: WaitingAttempt) -> float:
        """Time within which the attempt finishes almost surely."""
        expected = self.expected_s(attempt)
        high = attempt.high_s
        if high is None:
            high = expected if attempt.expected_s is None else expected * MARGIN
        return _within(max(high, expected, attempt.cut_s * SURELY_MORE_THAN_CUT), attempt.limit_s)

    def least_s(self, attempt: WaitingAttempt) -> float:
        """The least time in an allocation that is worth starting the attempt for.

        One that cannot save its progress must be able to finish, with the runner's own margin.
        Where nobody knows its duration, half of the guess will do: a guess must not keep it from
        running.
        """
        expected = self.expected_s(attempt)
        if attempt.checkpointable:
            runners = min(USEFUL_S, expected * RUNNER_MARGIN)
            return max(min(expected * WORTHWHILE_SHARE, WORTHWHILE_MAX_S), runners)
        if attempt.expected_s is None and not attempt.cut_s:
            return expected / 2
        return _within(expected * RUNNER_MARGIN, attempt.limit_s)


def _within(seconds: float, limit_s: float | None) -> float:
    return seconds if limit_s is None else min(seconds, limit_s)
