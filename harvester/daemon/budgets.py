"""Restraint: back-off after failures, rest after work, and the breaker that stops submissions in
an outage.
"""

from __future__ import annotations

import random

SOUND_ANSWERS_TO_CLOSE = 2


class Backoff:
    """Waits after failures, doubling with jitter up to a ceiling; reset by a success."""

    def __init__(self, rng: random.Random, *, base_s: float, ceiling_s: float) -> None:
        self._rng = rng
        self._base_s = base_s
        self._ceiling_s = ceiling_s
        self._failures = 0
        self._until = 0.0

    def failed(self, now: float) -> None:
        """Wait longer before the next try."""
        # The exponent is bounded: a week of failures must not overflow a float.
        wait = min(self._ceiling_s, self._base_s * 2.0 ** min(self._failures, 30))
        self._failures += 1
        self._until = now + wait * self._rng.uniform(0.5, 1.0)

    @property
    def is_failing(self) -> bool:
        """Whether the last thing known is a failure."""
        return self._failures > 0

    def succeeded(self) -> None:
        """Forget the failures."""
        self._failures = 0
        self._until = 0.0

    def due_in(self, now: float) -> float:
        """Seconds until the next try is allowed."""
        return max(0.0, self._until - now)


class Rest:
    """Rests after work, the longer the more there was: a flood comes in batches, one item at once.

    A batch costs a fraction of its items one by one. Up to ``1 / per_item_s`` items a second, rests
    shrink to that of a single item; above, they grow to ``at_most_s``.
    """

    def __init__(self, *, per_item_s: float, at_most_s: float) -> None:
        self._per_item_s = per_item_s
        self._at_most_s = at_most_s
        self._until = float("-inf")

    def worked(self, items: int, now: float) -> None:
        """So many items were done just now; none change nothing."""
        if items:
            self._until = now + min(self._at_most_s, items * self._per_item_s)

    def due_in(self, now: float) -> float:
        """Seconds until there may be work again."""
        return max(0.0, self._until - now)


class Breaker:
    """Open after an error, a time-out or a suspiciously empty answer of the batch system.

    While it is open nothing is submitted; two sound answers close it. At the start it wants one.
    """

    def __init__(self, backoff: Backoff) -> None:
        self.open_since: float | None = None  # wall clock
        self._backoff = backoff
        self._sound_needed = 1

    @property
    def allows_submission(self) -> bool:
        """Whether the batch system has answered soundly enough."""
        return self._sound_needed == 0

    def failed(self, now: float, wall: float) -> None:
        """An answer was missing or unsound."""
        if self.open_since is None:
            self.open_since = wall
        self._sound_needed = SOUND_ANSWERS_TO_CLOSE
        self._backoff.failed(now)

    def doubted(self) -> None:
        """Another question failed than that for our jobs: a sound answer to that one is wanted."""
        self._sound_needed = max(1, self._sound_needed)

    def answered(self) -> None:
        """A sound answer came."""
        self._backoff.succeeded()
        self._sound_needed = max(0, self._sound_needed - 1)
        if self._sound_needed == 0:
            self.open_since = None

    def due_in(self, now: float) -> float:
        """Seconds until the batch system may be asked again."""
        return self._backoff.due_in(now)
