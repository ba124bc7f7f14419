"""The step that asks for backfill windows before a submission, within the budget of queries.

They are worth waiting for a little and never a condition: what cannot be had soon, or fails, is
done without, after a failure once the batch system has answered soundly for our jobs. One answer
serves one planning that wants to submit.
"""

from __future__ import annotations

import logging

from harvester.daemon.budgets import Backoff
from harvester.daemon.desk import Desk, Windows
from harvester.daemon.watch_batch import WatchBatch
from harvester.effects import Finished
from harvester.model import BackfillWindow

log = logging.getLogger(__name__)

# A submission waits for them this many query intervals at most; the look it rests on stays fresh.
PATIENCE_INTERVALS = 2.0


class WatchWindows:
    """Asks when ``hold_back`` was told of a submission."""

    effects = ("windows",)

    def __init__(self, desk: Desk, watch: WatchBatch) -> None:
        self._desk = desk
        self._watch = watch
        self._interval_s = desk.site.budgets.query_interval_s
        self._failed = Backoff(desk.rng, base_s=self._interval_s, ceiling_s=3600.0)
        self._wanted_at: float | None = None
        self._taken_at = float("-inf")
        self._in_flight = False

    def usable(self) -> tuple[BackfillWindow, ...]:
        """The windows that the next submission may go by."""
        return self._desk.windows.found if self._is_fresh() else ()

    def spent(self) -> None:
        """A submission went by them: they are not what they were."""
        self._taken_at = float("-inf")

    def hold_back(self) -> bool:
        """Whether a submission that is wanted now should wait for the windows."""
        now = self._desk.clock.monotonic()
        if not self._may_ask(now) or self._is_fresh():
            self._want(None)
            return False
        if self._wanted_at is None:
            self._want(now)
        assert self._wanted_at is not None
        if now - self._wanted_at < PATIENCE_INTERVALS * self._interval_s:
            return True
        self._want(None)
        return False

    def take(self, finished: Finished) -> None:
        desk = self._desk
        self._in_flight = False
        self._want(None)
        desk.plan_wanted = True
        if finished.error is None and isinstance(finished.result, tuple):
            desk.windows = Windows(desk.clock.now(), finished.result)
            self._taken_at = desk.clock.monotonic()
            self._failed.succeeded()
        else:
            self._failed.failed(desk.clock.monotonic())
            log.warning("Plan without backfill windows. error=%s", finished.error)
            if not desk.single_round:  # that would never submit where this always fails
                self._watch.doubt()

    def step(self) -> bool:
        if self._watch.breaker.open_since is not None:
            self._want(None)  # nothing is submitted now
        commands = self._desk.batch.capabilities.window_commands
        wanted = self._wanted_at is not None and not self._in_flight
        if not wanted or not self._watch.may_query(commands):
            return False
        self._in_flight = True
        self._watch.spend(commands)
        deadline = (1 + commands) * self._desk.site.budgets.command_timeout_s
        work = self._desk.batch.backfill_windows
        self._desk.effects.start("windows", work, lane="batch", deadline_s=deadline)
        return True

    def due_in(self) -> float | None:
        waits = self._wanted_at is not None and not self._in_flight
        return self._watch.budget_pause_s if waits else None

    def _may_ask(self, now: float) -> bool:
        commands = self._desk.batch.capabilities.window_commands
        # What is held starts when somebody releases it, whatever is idle now.
        if not commands or self._desk.site.submission.held or self._failed.due_in(now) > 0:
            return False
        # A single round does not wait for what its budget allows in a minute.
        return self._in_flight or not self._desk.single_round or self._watch.may_query(commands)

    def _is_fresh(self) -> bool:
        return self._desk.clock.monotonic() - self._taken_at < self._interval_s

    def _want(self, since: float | None) -> None:
        self._wanted_at = since
        # Meanwhile no other look takes the budget.
        self._desk.windows_wanted = since is not None
