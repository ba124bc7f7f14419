"""The client of the native protocol (docs/native-protocol.md): what a harvester calls."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harvester.central.http import Http, Rejected, encode, expect_object
from harvester.central.port import (
    LeaseReply,
    LeaseRequest,
    LeaseStanding,
    Receipt,
    Report,
    Result,
)
from harvester.central.records import leased_point, result_fields
from harvester.errors import CentralRefused, CentralUnavailable, CredentialsRefused
from harvester.model import AttemptId, LeaseId
from payload_runner.protocol import BadRecord, PayloadSpec, from_fields

RESULTS_AT_ONCE = 1_000
LEASES_AT_ONCE = 10_000
BATCH_BYTES = 4_000_000  # of JSON; the service takes 10 MB


class NativeCentral:
    """:class:`harvester.central.port.CentralService` over the native protocol."""

    def __init__(
        self,
        url: str,
        token_file: Path,
        ca_file: Path | None = None,
        timeout_s: float = 30.0,
        harvester: str = "harvester",
        use_proxy: bool = True,
    ) -> None:
        self._http = Http(url, token_file, ca_file, timeout_s, use_proxy=use_proxy)
        self._harvester = harvester

    def lease(self, request: LeaseRequest) -> LeaseReply:
        """Points for this harvester; the same key gets the same points."""
        body = {
            "key": request.key,
            "harvester": request.harvester,
            "site": request.site,
            "points": min(request.points, LEASES_AT_ONCE),
            "known_payloads": list(request.known_payloads),
        }
        answer = self._post("/leases", body)
        try:
            return LeaseReply(
                points=tuple(leased_point(item) for item in _list(answer, "points")),
                payloads=tuple(
                    from_fields(PayloadSpec, item) for item in _list(answer, "payloads")
                ),
                more=answer.get("more") is True,
                waiting=int(answer.get("waiting", 0)),
            )
        except (BadRecord, KeyError, TypeError, ValueError) as error:
            raise CentralUnavailable(f"the answer to a lease request is wrong: {error}") from error

    def renew(self, leases: Sequence[LeaseId]) -> LeaseStanding:
        """Prolong leases."""
        gone: list[LeaseId] = []
        stop: dict[LeaseId, str] = {}
        expires_s: float | None = None
        for start in range(0, len(leases), LEASES_AT_ONCE):
            some = list(leases[start : start + LEASES_AT_ONCE])
            answer = self._post("/leases/renew", {"harvester": self._harvester, "leases": some})
            gone += [LeaseId(str(item)) for item in _list(answer, "gone")]
            stop |= _stops(answer)
            expires_s = _positive(answer.get("expires_s"))
        return LeaseStanding(gone=tuple(gone), stop=stop, expires_s=expires_s)

    def deliver(self, results: Sequence[Result]) -> tuple[Receipt, ...]:
        """Tell outcomes; one that the service cannot read does not hold up the others."""
        receipts: list[Receipt] = []
        for batch in _batches(results):
            receipts += self._deliver(batch)
        return tuple(receipts)

    def report(self, reports: Sequence[Report]) -> Mapping[LeaseId, str]:
        """Tell metrics."""
        fields = [
            {"lease": item.lease, "attempt": item.attempt, "values": list(item.values)}
            for item in reports
        ]
        return _stops(self._post("/reports", {"harvester": self._harvester, "reports": fields}))

    def fetch_input(self, sha256: str, target: Path) -> None:
        """Bring one input file to ``target``."""
        self._http.download(sha256, target)

    def upload(self, path: Path, sha256: str, size: int) -> None:
        """Bring a result's file to the service."""
        self._http.upload(path, sha256, size)

    def tasks(self) -> Sequence[Mapping[str, Any]]:
        """Summaries of the tasks that this token may see."""
        answer = expect_object(self._http.call("GET", "/tasks"), self._http.url)
        return [item for item in _list(answer, "tasks") if isinstance(item, dict)]

    def _deliver(self, batch: Sequence[Result]) -> list[Receipt]:
        try:
            return self._tell(batch)
        except Rejected as error:
            if error.status == 403:
                raise CredentialsRefused(str(error)) from error
            if error.status not in (400, 413, 422):
                # A refusal of the call is none of its results, which would be told no more.
                raise CentralUnavailable(str(error)) from error
            if len(batch) > 1:
                # One of them is unreadable: halving finds it in a few calls.
                half = len(batch) // 2
                return self._deliver(batch[:half]) + self._deliver(batch[half:])
            return self._deliver_bare(batch[0], error)

    def _deliver_bare(self, result: Result, error: CentralRefused) -> list[Receipt]:
        """A loss is worth more than what a payload wrote around it."""
        bare = dataclasses.replace(
            result, metadata=None, message=None, stdout=None, stderr=None, files=()
        )
        if bare == result:
            return [Receipt(result.attempt, "refused", str(error))]
        try:
            return self._tell([bare])
        except Rejected as still:
            return [Receipt(result.attempt, "refused", str(still))]

    def _tell(self, batch: Sequence[Result]) -> list[Receipt]:
        body = {"harvester": self._harvester, "results": [result_fields(item) for item in batch]}
        answer = self._post("/results", body)
        receipts = [
            Receipt(AttemptId(str(item["attempt"])), str(item["verdict"]), str(item["reason"]))
            for item in _list(answer, "receipts")
            if isinstance(item, dict) and {"attempt", "verdict", "reason"} <= item.keys()
        ]
        if [item.attempt for item in receipts] != [item.attempt for item in batch]:
            raise CentralUnavailable("the receipts do not match the results that were told")
        return receipts

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        answer = self._http.call("POST", path, body=encode(body))
        return expect_object(answer, self._http.url)


def _batches(results: Sequence[Result]) -> Iterator[list[Result]]:
    batch: list[Result] = []
    size = 0
    for result in results:
        own = len(encode(result_fields(result)))
        if batch and (len(batch) >= RESULTS_AT_ONCE or size + own > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(result)
        size += own
    if batch:
        yield batch


def _list(answer: Mapping[str, Any], name: str) -> list[Any]:
    value = answer.get(name, [])
    if not isinstance(value, list):
        raise CentralUnavailable(f"the service answers with {name} that is no list")
    return value


def _positive(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and 0 < value < math.inf else None


def _stops(answer: Mapping[str, Any]) -> dict[LeaseId, str]:
    stop = answer.get("stop", {})
    if not isinstance(stop, dict):
        raise CentralUnavailable("the service answers with stop that is no object")
    return {LeaseId(str(lease)): str(reason) for lease, reason in stop.items()}
