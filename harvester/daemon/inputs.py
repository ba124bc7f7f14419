"""The step that brings the payloads' input files into the spool before the first order."""

from __future__ import annotations

from pathlib import Path

from harvester.daemon.budgets import Backoff
from harvester.daemon.desk import Desk
from harvester.effects import Finished
from harvester.model import PayloadSpec


class FetchInputs:
    """Fetches each file once, one after the other, to ``inputs/<sha256>``."""

    effects = ("fetch",)

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._fetching = False
        self._backoff = Backoff(desk.rng, base_s=1.0, ceiling_s=300.0)
        self._here: set[str] = set()
        self._ready: set[str] = set()

    def is_ready(self, payload: PayloadSpec) -> bool:
        """Whether all of a payload's files lie in the spool."""
        if payload.payload_id not in self._ready:
            if not all(self._is_here(item.sha256) for item in payload.files):
                return False
            self._ready.add(payload.payload_id)
        return True

    def take(self, finished: Finished) -> None:
        self._fetching = False
        sha256 = finished.name.split(":", 1)[1]
        if finished.error is None:
            self._here.add(sha256)
            self._backoff.succeeded()
            self._desk.problems.clear("inputs")
            self._desk.plan_wanted = True
            return
        self._backoff.failed(self._desk.clock.monotonic())
        what = f"input file {sha256[:12]} cannot be fetched: {finished.error}"
        self._desk.problems.report("inputs", what, "see whether the central service has the file")

    def step(self) -> bool:
        if self._fetching or not self._desk.inputs_wanted:
            return False
        if self._backoff.due_in(self._desk.clock.monotonic()) > 0:
            return False
        for payload in self._desk.store.leases.payloads_in_use():
            if not self.is_ready(payload):
                missing = next(i.sha256 for i in payload.files if not self._is_here(i.sha256))
                self._fetch(missing)
                return True
        self._desk.inputs_wanted = False
        return False

    def due_in(self) -> float | None:
        wait = self._backoff.due_in(self._desk.clock.monotonic())
        return wait if wait > 0 and not self._fetching else None

    def _is_here(self, sha256: str) -> bool:
        if sha256 not in self._here and self._desk.files.exists(self._desk.spool.input(sha256)):
            self._here.add(sha256)
        return sha256 in self._here

    def _fetch(self, sha256: str) -> None:
        target = self._desk.spool.input(sha256)
        self._fetching = True
        self._desk.effects.start(
            f"fetch:{sha256}", lambda: self._bring(sha256, target), lane="staging", deadline_s=600.0
        )

    def _bring(self, sha256: str, target: Path) -> None:
        part = target.with_name(f"{sha256}.part")
        self._desk.files.remove(part)  # of a run that was cut short
        self._desk.central.fetch_input(sha256, part)
        self._desk.files.rename(part, target)
