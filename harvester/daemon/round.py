"""One tick over a spool in hand: the steps in their order, and what they share."""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from harvester.daemon.adopt import Adopt
from harvester.daemon.deliver import Deliver
from harvester.daemon.desk import Desk, Step
from harvester.daemon.events import TakeEvents
from harvester.daemon.inputs import FetchInputs
from harvester.daemon.keeping import Keep
from harvester.daemon.plan_step import MakePlan
from harvester.daemon.points import LeasePoints
from harvester.daemon.settle import Settle
from harvester.daemon.submit import Submit
from harvester.daemon.watch_batch import WatchBatch
from harvester.daemon.watch_link import watch_way
from harvester.daemon.windows import WatchWindows
from harvester.effects import Finished
from harvester.errors import Fenced, StorageUnavailable
from harvester.planning.facts import Plan, PlanInput
from harvester.status import build_status

log = logging.getLogger(__name__)

PUBLISH_APART_S = {"local": 0.5, "shared": 10.0}
# Even a quiet daemon shows that it lives.
PUBLISH_AT_LEAST_S = 30.0
STOP_LOOK_S = {"local": 1.0, "shared": 10.0}
_LOOKS = frozenset({"poll", "lease", "observe", "renew", "windows"})
# A single round waits this long at most for the last events of a job that has ended.
SETTLE_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True)
class TickOutcome:
    """What a tick did."""

    next_in_s: float  # when there is something to do again at the latest
    changed: bool  # whether anything moved


class Round:
    """The steps of a tick over one desk, in the order of DESIGN.md section 6."""

    def __init__(
        self, desk: Desk, plan: Callable[[PlanInput], Plan], *, mode: str, started: float
    ) -> None:
        self._desk = desk
        self._mode = mode
        self._started = started
        self._kind = "local" if desk.is_local else "shared"
        self._take_events = TakeEvents(desk)
        self._watch = WatchBatch(desk)
        points = LeasePoints(desk)
        inputs = FetchInputs(desk)
        windows = WatchWindows(desk, self._watch)
        submit = Submit(desk, self._watch, windows)
        self._steps: tuple[Step, ...] = (
            self._take_events,
            Adopt(desk),
            self._watch,
            Settle(desk),
            points,
            inputs,
            MakePlan(desk, plan, points, inputs, submit),
            windows,
            submit,
            Deliver(desk, points),
            Keep(desk),
        )
        self._owners = {kind: step for step in self._steps for kind in step.effects}
        self._ended: deque[Finished] = deque()  # came back, not taken yet
        self._published_at = float("-inf")
        self._published: dict[str, Any] = {}
        self._dirty = True
        self._stop_looked_at = float("-inf")

    def go(self) -> TickOutcome:
        """One tick. Raises StorageUnavailable (try again later) and Fenced (give up)."""
        desk = self._desk
        watch_way(desk.way, desk.problems)
        desk.lease.renew()
        changed = self._take_effects()
        changed = desk.journal.commit() or changed
        self._look_for_stop()
        for step in self._steps:
            changed = step.step() or changed
            desk.journal.commit()
        desk.journal.commit_orders()
        desk.problems.clear("storage")
        self._report_overdue()
        self._dirty = self._dirty or changed
        self._publish_if_due()
        return TickOutcome(self._next_in_s(), changed)

    def refused(self, error: StorageUnavailable) -> None:
        """A file system refused: say so where people look, if that is still possible."""
        cure = "see whether it is full, over quota or gone; nothing is lost meanwhile"
        self._desk.problems.report("storage", str(error), cure)
        watch_way(self._desk.way, self._desk.problems)
        self._dirty = True
        with contextlib.suppress(StorageUnavailable):
            self._publish_if_due()

    def take_effects(self) -> bool:
        """Take what has come back; whether more is under way."""
        self._take_effects()
        return self._desk.effects.unfinished() > 0

    def is_settling(self) -> bool:
        """Whether a single round should wait a moment more for the last words of a job."""
        left = self._watch.settles_in()
        return left is not None and left <= SETTLE_WITHIN_S

    def events_fileno(self) -> int | None:
        """Readable when an event log may have grown; None where nobody wants to know now."""
        return None if self._take_events.rests_for() > 0.0 else self._desk.events.fileno()

    def clear_changes(self) -> None:
        """Take the kernel's word that something changed."""
        self._desk.events.clear_changes()

    def leave(self) -> None:
        """Commit, close and release; what cannot be written now is settled by the next start."""
        desk = self._desk
        try:
            desk.journal.commit()
            self._publish("stopped")
            desk.journal.close()
        except (StorageUnavailable, Fenced) as error:
            log.warning("Leave without releasing the lease. reason=%s", error)
        else:
            desk.lease.release()
        finally:
            desk.events.close()
            desk.store.close()

    def abandon(self) -> None:
        """Close the logs without looking at the index, which is to be rebuilt from them."""
        desk = self._desk
        try:
            desk.journal.close_logs()
        except StorageUnavailable as error:
            log.warning("Could not close the logs. reason=%s", error)
        desk.events.close()
        with contextlib.suppress(sqlite3.Error):
            desk.store.close()

    def _take_effects(self) -> bool:
        self._ended.extend(self._desk.effects.finished())
        changed = False
        while self._ended:  # one at a time: where one raises, the others are taken the next time
            finished = self._ended.popleft()
            # A look that found nothing new is no change.
            changed = changed or finished.name not in _LOOKS
            self._take(finished)
        return changed

    def _take(self, finished: Finished) -> None:
        kind = finished.name.partition(":")[0]
        self._owners[kind].take(finished)

    def _look_for_stop(self) -> None:
        desk = self._desk
        now = desk.clock.monotonic()
        if now - self._stop_looked_at < STOP_LOOK_S[self._kind]:
            return
        self._stop_looked_at = now
        found = desk.files.exists(desk.spool.stop)
        if found != desk.stopping:
            desk.stopping = found
            desk.plan_wanted = True
            log.info("The STOP file is %s. spool=%s", "there" if found else "gone", desk.spool.root)

    def _report_overdue(self) -> None:
        desk = self._desk
        late = desk.effects.overdue()
        for item in late:
            what = f"{item.name.partition(':')[0]} has not come back for {item.seconds:.0f} s"
            cure = "see whether the other side hangs; only this kind of step waits for it"
            desk.problems.report(f"overdue.{item.lane}", what, cure)
        desk.problems.clear_prefix("overdue.", frozenset(f"overdue.{item.lane}" for item in late))

    def _next_in_s(self) -> float:
        waits = [self._desk.lease.renew_due_in(), PUBLISH_AT_LEAST_S]
        if self._dirty:
            waits.append(self._publish_left())
        ack = self._desk.orders.ack_due_in()
        if ack is not None:
            waits.append(ack)
        waits.extend(wait for step in self._steps if (wait := step.due_in()) is not None)
        return max(0.0, min(waits))

    def _publish_left(self) -> float:
        apart = PUBLISH_APART_S[self._kind]
        return max(0.0, self._published_at + apart - self._desk.clock.monotonic())

    def _publish_if_due(self) -> None:
        age = self._desk.clock.monotonic() - self._published_at
        if age >= PUBLISH_AT_LEAST_S or (self._dirty and self._publish_left() <= 0):
            self._publish("draining" if self._desk.stopping else "running")

    def _publish(self, state: str) -> None:
        desk = self._desk
        now = desk.clock.monotonic()
        self._dirty = False
        status = build_status(
            desk,
            mode=self._mode,
            state=state,
            started=self._started,
            breaker_since=self._watch.breaker.open_since,
        )
        told, self._published = self._published, {**status, "updated": ""}
        if told == self._published and now - self._published_at < PUBLISH_AT_LEAST_S:
            return  # a name and two syncs on the file system for nothing but the time of day
        self._published_at = now
        try:
            desk.files.replace(desk.spool.status, (json.dumps(status) + "\n").encode())
        except OSError as error:
            raise StorageUnavailable(f"{desk.spool.status}: {error}") from error
