"""The step that tells the central service what came of the attempts: files, results, metrics."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from harvester.central.port import Receipt, Report, Result, ResultFile
from harvester.clock import iso
from harvester.daemon.aside import ASIDE_AT_MOST_S, SetAside
from harvester.daemon.budgets import Backoff
from harvester.daemon.desk import Desk
from harvester.daemon.points import LeasePoints, report_central, stop_leases
from harvester.effects import Finished
from harvester.errors import CentralRefused, Fenced, StorageUnavailable
from harvester.ids import try_of
from harvester.model import Attempt, AttemptId, AttemptState, Blame, LeaseId
from payload_runner.protocol import BadRecord, FileRef, from_fields

log = logging.getLogger(__name__)

RESULTS_AT_ONCE = 500
# Captured output makes results large; the service takes bodies of 10 MB.
BATCH_BYTES = 4_000_000
REPORTS_AT_ONCE = 2000
REPORTS_APART_S = {"local": 0.5, "shared": 5.0}

Told = tuple[tuple[AttemptId, dict[str, Any]], ...]


class Deliver:
    """One call of each kind at a time; what failed is told again, under the same attempt id."""

    effects = ("deliver", "report", "upload")

    def __init__(self, desk: Desk, points: LeasePoints) -> None:
        self._desk = desk
        self._points = points
        self._backoff = Backoff(desk.rng, base_s=1.0, ceiling_s=300.0)
        self._upload_backoff = Backoff(desk.rng, base_s=1.0, ceiling_s=300.0)
        self._delivering: tuple[AttemptId, ...] = ()
        self._told: Told = ()
        self._uploading = False
        self._aside = SetAside()
        self._reported_at = float("-inf")
        self._at_once = RESULTS_AT_ONCE

    def take(self, finished: Finished) -> None:
        kind = finished.name.partition(":")[0]
        if kind == "deliver":
            self._take_delivery(finished)
        elif kind == "report":
            self._take_report(finished)
        else:
            self._take_upload(finished)

    def step(self) -> bool:
        now = self._desk.clock.monotonic()
        changed = False
        if not self._uploading and self._upload_backoff.due_in(now) <= 0:
            changed = self._upload()
        if self._backoff.due_in(now) > 0:
            return changed
        if not self._delivering:
            changed = self._deliver() or changed
        if not self._told and self._report_left(now) <= 0:
            self._report(now)
        return changed

    def due_in(self) -> float | None:
        now = self._desk.clock.monotonic()
        wait = max(self._backoff.due_in(now), self._upload_backoff.due_in(now))
        if wait > 0:
            return wait
        left = self._report_left(now)
        return left if left > 0 else None

    # --- results ---

    def _deliver(self) -> bool:
        desk = self._desk
        attempts = desk.store.attempts.deliverable(self._at_once)
        if not attempts:
            return False
        results = tuple(_bounded([self._result(attempt) for attempt in attempts]))
        names = tuple(result.attempt for result in results)
        desk.journal.record("delivering", {"attempts": list(names)})
        desk.journal.commit()
        self._delivering = names  # only now: a disk that refuses must not make us wait for nothing

        def deliver() -> tuple[Receipt, ...]:
            desk.lease.check()
            return desk.central.deliver(results)

        desk.effects.start("deliver", deliver, lane="central")
        return True

    def _take_delivery(self, finished: Finished) -> None:
        desk = self._desk
        attempts, self._delivering = self._delivering, ()
        if isinstance(finished.error, CentralRefused):
            self._take_refusal(attempts, finished.error)
        elif finished.error is not None:
            self._backoff.failed(desk.clock.monotonic())
            if not isinstance(finished.error, Fenced):
                report_central(desk, finished.error)
        elif isinstance(finished.result, tuple):
            self._at_once = RESULTS_AT_ONCE
            self._take_receipts(finished.result)

    def _take_refusal(self, attempts: Sequence[AttemptId], error: CentralRefused) -> None:
        """One bad result must not hold up the others: narrow down to it."""
        if len(attempts) > 1:
            self._at_once = max(1, len(attempts) // 2)
            return
        self._at_once = RESULTS_AT_ONCE
        self._take_receipts(tuple(Receipt(name, "refused", str(error)) for name in attempts))

    def _take_receipts(self, receipts: Sequence[Receipt]) -> None:
        desk = self._desk
        self._backoff.succeeded()
        desk.problems.clear("central")
        for receipt in receipts:
            if receipt.verdict == "refused":
                log.error(
                    "The service refuses a result for good. attempt=%s reason=%s",
                    receipt.attempt,
                    receipt.reason,
                )
        rows = [[item.attempt, item.verdict, item.reason[:300]] for item in receipts]
        for start in range(0, len(rows), 100):  # a record holds 64 KiB
            desk.journal.record("delivered", {"receipts": rows[start : start + 100]})
        self._points.delivered()
        desk.plan_wanted = True

    def _result(self, attempt: Attempt) -> Result:
        store = self._desk.store
        outcome = store.attempts.outcome(attempt.attempt)
        lease = store.leases.get(attempt.lease)
        final = lease.settled_by == attempt.attempt
        gave_up = final and attempt.blame is Blame.WALLTIME
        return Result(
            attempt=attempt.attempt,
            lease=attempt.lease,
            # A point that walltime cut off three times has timed out, whatever its last run was.
            state=(AttemptState.TIMED_OUT if gave_up else attempt.state).value,
            final=final,
            blame=None if attempt.blame is None else attempt.blame.value,
            reason=attempt.reason,
            loss=attempt.loss,
            message=outcome.get("message"),
            metadata=outcome.get("metadata"),
            files=tuple(
                ResultFile(
                    role=role,
                    name=result_file_name(role, attempt, lease.segment, ref),
                    size=ref.size,
                    sha256=ref.sha256,
                )
                for role, ref in _files(outcome)
            ),
            allocation=attempt.tag,
            node=attempt.node,
            started=None if attempt.started_at is None else iso(attempt.started_at),
            ended=None if attempt.ended_at is None else iso(attempt.ended_at),
            resumed_from=attempt.resumed_from,
            stdout=outcome.get("stdout"),
            stderr=outcome.get("stderr"),
        )

    # --- files ---

    def _upload(self) -> bool:
        desk = self._desk
        attempt = desk.store.attempts.to_upload(self._aside.now(desk.clock.monotonic()))
        if attempt is None:
            return False
        files = _files(desk.store.attempts.outcome(attempt.attempt))
        try:
            paths = [(desk.spool.committed(ref), ref) for _, ref in files]
        except BadRecord as error:
            self._give_up_files(attempt.attempt, error)
            return True

        def upload() -> None:
            for path, ref in paths:
                desk.central.upload(path, ref.sha256, ref.size)

        self._uploading = True
        desk.effects.start(f"upload:{attempt.attempt}", upload, lane="staging", deadline_s=600.0)
        return True

    def _take_upload(self, finished: Finished) -> None:
        self._uploading = False
        attempt = AttemptId(finished.name.partition(":")[2])
        if finished.error is None:
            self._upload_backoff.succeeded()
            self._aside.forget(attempt)
            self._desk.problems.clear("upload")
            self._desk.journal.record("uploaded", {"attempt": attempt})
        elif isinstance(finished.error, (CentralRefused, FileNotFoundError)):
            self._give_up_files(attempt, finished.error)
        elif isinstance(finished.error, StorageUnavailable):
            self._set_aside(attempt, finished.error)
        else:
            self._upload_backoff.failed(self._desk.clock.monotonic())
            what = f"the files of attempt {attempt} cannot be uploaded: {finished.error}"
            self._desk.problems.report("upload", what, "see whether the central service runs")

    def _set_aside(self, attempt: AttemptId, error: StorageUnavailable) -> None:
        """Its files cannot be read here: those of others may, and the service is not to blame."""
        now = self._desk.clock.monotonic()
        if self._aside.add(attempt, now):
            self._give_up_files(attempt, error)
            return
        # One unreadable file costs others a second; a file system that is away is asked seldom.
        self._upload_backoff.failed(now)
        what = f"the files of attempt {attempt} cannot be read: {error}"
        cure = f"mend that within {ASIDE_AT_MOST_S / 3600:g} h, or its result is told without them"
        self._desk.problems.report("upload", what, cure)

    def _give_up_files(self, attempt: AttemptId, error: Exception) -> None:
        """A loss is worth more than its archive: deliver without."""
        log.error("Deliver without files. attempt=%s reason=%s", attempt, error)
        self._aside.forget(attempt)
        store = self._desk.store
        outcome = store.attempts.outcome(attempt)
        kept = {name: value for name, value in outcome.items() if not name.endswith("_file")}
        with store.transaction():
            store.attempts.keep_outcome(attempt, kept)
        self._desk.journal.record("uploaded", {"attempt": attempt})

    # --- metrics ---

    def _report(self, now: float) -> None:
        desk = self._desk
        self._told = desk.store.attempts.pending_reports(REPORTS_AT_ONCE)
        if not self._told:
            return
        self._reported_at = now
        reports = tuple(_reports(self._told))
        desk.effects.start("report", lambda: desk.central.report(reports), lane="central")

    def _take_report(self, finished: Finished) -> None:
        told, self._told = self._told, ()
        refused = isinstance(finished.error, CentralRefused)
        if finished.error is not None and not refused:
            self._backoff.failed(self._desk.clock.monotonic())
            report_central(self._desk, finished.error)
            return
        with self._desk.store.transaction():
            self._desk.store.attempts.drop_reports(told)
        if refused:
            log.warning("The service refuses metrics. reason=%s", finished.error)
        elif isinstance(finished.result, Mapping):
            stop_leases(self._desk, finished.result)

    def _report_left(self, now: float) -> float:
        apart = REPORTS_APART_S["local" if self._desk.is_local else "shared"]
        return self._reported_at + apart - now


def _files(outcome: Mapping[str, Any]) -> list[tuple[str, FileRef]]:
    roles = ("metrics", "metadata")
    found = [(role, outcome.get(f"{role}_file")) for role in roles]
    return [(role, from_fields(FileRef, fields)) for role, fields in found if fields]


def result_file_name(role: str, attempt: Attempt, segment: str | None, ref: FileRef) -> str:
    """The name under which a result's file goes out.

    Metrics archives are named as PanDA does, ``[segment.]<task>.metrics.<serial>.tgz``, with the
    point's own serial number of six digits; others keep the name that they have in the spool.
    """
    if role != "metrics":
        return ref.path.rsplit("/", 1)[-1]
    prefix = "" if segment is None else f"{segment}."
    return f"{prefix}{attempt.task}.metrics.{attempt.point.zfill(6)}.tgz"


def _bounded(results: Sequence[Result]) -> Sequence[Result]:
    """As many of the first results as fit one body, at least one."""
    total = 0
    for index, result in enumerate(results):
        total += 1000 + sum(len(text or "") for text in (result.stdout, result.stderr))
        total += len(str(result.metadata)) if result.metadata else 0
        if total > BATCH_BYTES and index:
            return results[:index]
    return results


def _reports(told: Told) -> list[Report]:
    by_attempt: dict[AttemptId, list[dict[str, Any]]] = {}
    for attempt, value in told:
        by_attempt.setdefault(attempt, []).append(value)
    return [
        Report(_lease_of(attempt), attempt, tuple(values)) for attempt, values in by_attempt.items()
    ]


def _lease_of(attempt: AttemptId) -> LeaseId:
    return LeaseId(attempt.removesuffix(f".{try_of(attempt)}"))
