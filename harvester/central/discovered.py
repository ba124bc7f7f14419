"""A central service that is looked for anew before each call.

The service on this machine says in a file where it listens. It may start after the daemon, move to
another port, or be away for a week; until it is found again every call is "unavailable".
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harvester.central.port import (
    CentralService,
    LeaseReply,
    LeaseRequest,
    LeaseStanding,
    Receipt,
    Report,
    Result,
)
from harvester.errors import CentralUnavailable, ConfigurationError, NotFound
from harvester.model import LeaseId

Place = tuple[str, Path]  # URL and token file


class DiscoveredCentral:
    """Implements ``CentralService`` over the client for wherever the service is now."""

    def __init__(
        self, discover: Callable[[], Place], connect: Callable[[str, Path], CentralService]
    ) -> None:
        self._discover = discover
        self._connect = connect
        self._place: Place | None = None
        self._client: CentralService | None = None
        self._lock = threading.Lock()  # calls come from several lanes

    def lease(self, request: LeaseRequest) -> LeaseReply:
        return self._now().lease(request)

    def renew(self, leases: Sequence[LeaseId]) -> LeaseStanding:
        return self._now().renew(leases)

    def deliver(self, results: Sequence[Result]) -> tuple[Receipt, ...]:
        return self._now().deliver(results)

    def report(self, reports: Sequence[Report]) -> Mapping[LeaseId, str]:
        return self._now().report(reports)

    def fetch_input(self, sha256: str, target: Path) -> None:
        self._now().fetch_input(sha256, target)

    def upload(self, path: Path, sha256: str, size: int) -> None:
        self._now().upload(path, sha256, size)

    def tasks(self) -> Sequence[Mapping[str, Any]]:
        return self._now().tasks()

    def _now(self) -> CentralService:
        try:
            place = self._discover()
        except (NotFound, ConfigurationError) as error:
            raise CentralUnavailable(str(error)) from error
        with self._lock:
            if self._client is None or place != self._place:
                self._place, self._client = place, self._connect(*place)
            return self._client
