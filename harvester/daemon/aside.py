"""Uploads that are set aside, because their files cannot be read here, and for how long."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from harvester.model import AttemptId

ASIDE_S = 300.0
ASIDE_AT_MOST_S = (
    4 * 3600.0
)  # an outage of a file system may last hours; a loss should not wait more


@dataclass(slots=True)
class _Waiting:
    since: float
    until: float


@dataclass(slots=True)
class SetAside:
    """What to leave alone for now. Times are monotonic seconds; a restart forgets."""

    _waiting: dict[AttemptId, _Waiting] = field(default_factory=dict)

    def add(self, attempt: AttemptId, now: float) -> bool:
        """Leave it for a while; True if that has gone on for too long."""
        since = self._waiting[attempt].since if attempt in self._waiting else now
        self._waiting[attempt] = _Waiting(since, now + ASIDE_S)
        return now - since >= ASIDE_AT_MOST_S

    def now(self, now: float) -> Collection[AttemptId]:
        """Those that are not to be tried at this time."""
        return [name for name, item in self._waiting.items() if item.until > now]

    def forget(self, attempt: AttemptId) -> None:
        """It is done with."""
        self._waiting.pop(attempt, None)
