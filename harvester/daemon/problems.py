"""What is wrong now, since when, and what to do: the first thing that a status view shows."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from harvester.clock import Clock

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Trouble:
    """One thing that is wrong."""

    what: str
    cure: str
    since: float  # wall clock
    count: int = 1


class Problems:
    """The troubles of now by key; each is logged when it begins and when it is over."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._now: dict[str, Trouble] = {}

    def report(self, key: str, what: str, cure: str, *, since: float | None = None) -> None:
        """Something is wrong; reporting it again counts.

        Where ``since`` (wall clock) is told it is one thing that lasts, however often it is told.
        """
        known = self._now.get(key)
        if known is None:
            self._now[key] = Trouble(what, cure, self._clock.now() if since is None else since)
            log.warning("Trouble begins: %s. To do: %s. problem=%s", what, cure, key)
            return
        known.what = what
        known.count += since is None

    def clear(self, key: str) -> None:
        """It is right again. Clearing what was never wrong is fine."""
        known = self._now.pop(key, None)
        if known is not None:
            log.info("Trouble is over. problem=%s count=%s", key, known.count)

    def clear_prefix(self, prefix: str, keep: frozenset[str]) -> None:
        """Clear the troubles of a family that are not among those to keep."""
        for key in [key for key in self._now if key.startswith(prefix) and key not in keep]:
            self.clear(key)

    def all(self) -> tuple[Trouble, ...]:
        """The troubles of now, oldest first."""
        return tuple(sorted(self._now.values(), key=lambda trouble: trouble.since))
