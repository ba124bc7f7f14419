"""The daemon's public face: the tick, the loop around it and the single round for cron."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import select
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from harvester.batch.port import BatchSystem
from harvester.central.port import CentralService
from harvester.clock import Clock
from harvester.daemon.deliver import Deliver
from harvester.daemon.desk import Desk, Step
from harvester.daemon.events import TakeEvents
from harvester.daemon.inputs import FetchInputs
from harvester.daemon.opening import Grounds, Ports, prepare, take_in_hand
from harvester.daemon.plan_step import MakePlan
from harvester.daemon.points import LeasePoints
from harvester.daemon.settle import Settle
from harvester.daemon.submit import Submit
from harvester.daemon.watch_batch import WatchBatch
from harvester.effects import Effects, Finished
from harvester.errors import Fenced, StorageUnavailable
from harvester.planning.facts import Plan, PlanInput
from harvester.planning.planner import plan as default_plan
from harvester.site import Site
from harvester.status import build_status
from payload_runner.files import Files

log = logging.getLogger(__name__)

PUBLISH_APART_S = {"local": 0.5, "shared": 10.0}
# Even a quiet daemon shows that it lives.
PUBLISH_AT_LEAST_S = 30.0
STOP_LOOK_S = {"local": 1.0, "shared": 10.0}
RETRY_STORAGE_S = 5.0
_LOOKS = frozenset({"poll", "lease", "observe", "renew"})
# What a single round would do this soon belongs to it.
AT_ONCE_S = 0.1
# A single round waits this long at most for the last events of a job that has ended.
SETTLE_WITHIN_S = 5.0
# How long the loop sleeps at most before it looks whether it is to stop.
_SLICE_S = 1.0
# What hangs longer than this when we leave is settled by the next start.
LEAVE_WITHIN_S = 5.0


class StopSignal(Protocol):
    """What the loop asks whether it should leave; ``threading.Event`` is one."""

    def is_set(self) -> bool:
        """Whether to finish the step in hand and leave."""


@dataclass(frozen=True, slots=True)
class TickOutcome:
    """What a tick did."""

    next_in_s: float  # when there is something to do again at the latest
    changed: bool  # whether anything moved


class Daemon:
    """Drives one spool for one site.

    ``tick`` never waits; ``run`` loops until stopped; ``run_once`` does one round for cron. All
    raise ``Fenced`` when another process drives the spool, naming it, and
    ``ConfigurationError`` for a spool that is not ours to use. One thread only, except ``wake``.
    """

    def __init__(
        self,
        site: Site,
        *,
        batch: BatchSystem,
        central: CentralService,
        files: Files,
        clock: Clock,
        effects: Effects,
        plan: Callable[[PlanInput], Plan] = default_plan,
        seed: int | None = None,
    ) -> None:
        self._ports = Ports(
            site=site, batch=batch, central=central, files=files, clock=clock, effects=effects
        )
        self._clock = clock
        self._plan = plan
        self._rng = random.Random(seed)
        self._kind = "local" if site.filesystem == "local" else "shared"
        self._started = clock.now()
        self._mode = "loop"
        self._grounds: Grounds | None = None
        self._round: Round | None = None
        self._index_lost = False
        self._wake_reader, self._wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        effects.notify(self.wake)

    def tick(self) -> TickOutcome:
        """Do everything that is due and come back at once.

        A file system that refuses is reported in the status and tried again later.
        """
        try:
            if self._round is None:
                wait = self._open()
                if wait > 0:
                    return TickOutcome(wait, changed=False)
            assert self._round is not None
            return self._round.go()
        except sqlite3.Error as error:
            self._drop_index(error)
            return TickOutcome(0.0, changed=True)
        except StorageUnavailable as error:
            log.warning("A file system refuses; trying again. error=%s", error)
            if self._round is not None:
                self._round.refused(error)
            return TickOutcome(RETRY_STORAGE_S, changed=False)

    def run(self, stop: StopSignal) -> None:
        """Tick until ``stop`` is set, then leave cleanly. Call ``wake`` after setting it."""
        try:
            while not stop.is_set():
                outcome = self.tick()
                until = self._clock.monotonic() + outcome.next_in_s
                while not stop.is_set() and (left := until - self._clock.monotonic()) > 0:
                    if self._sleep(min(left, _SLICE_S)):
                        break
        finally:
            self.close()

    def run_once(self, deadline_s: float = 240.0, stop: StopSignal | None = None) -> None:
        """One full round: until nothing is left to do at once, the deadline or ``stop``."""
        self._mode = "once"
        until = self._clock.monotonic() + deadline_s
        try:
            while (left := until - self._clock.monotonic()) > 0:
                if stop is not None and stop.is_set():
                    break
                outcome = self.tick()
                in_flight = self._ports.effects.unfinished()
                if outcome.changed:
                    continue
                if in_flight and outcome.next_in_s > AT_ONCE_S:
                    self._sleep(min(left, _SLICE_S))
                elif self._is_round_over(outcome):
                    break
                else:
                    self._sleep(min(left, outcome.next_in_s))
        finally:
            self.close()

    def wake(self) -> None:
        """End the loop's sleep. Safe from any thread and from signal handlers."""
        # A full pipe wakes as well; a closed one has nobody to wake.
        with contextlib.suppress(OSError):
            os.write(self._wake_writer, b"w")

    def close(self) -> None:
        """Leave cleanly: logs committed and closed, status published, lease released."""
        if self._round is not None:
            self._await_effects(self._round)
            self._round.leave()
            self._round = None
        self._ports.effects.close()
        for fd in (self._wake_reader, self._wake_writer):
            with contextlib.suppress(OSError):
                os.close(fd)
        self._wake_reader = self._wake_writer = -1

    def _is_round_over(self, outcome: TickOutcome) -> bool:
        """Whether nothing is left that a single round should stay for."""
        if self._round is None or outcome.next_in_s <= AT_ONCE_S:
            return False
        return not self._round.is_settling()

    def _await_effects(self, driving: Round) -> None:
        """Let what is under way come back: its outcome is worth a few seconds of leaving."""
        until = self._clock.monotonic() + LEAVE_WITHIN_S
        while driving.take_effects() and (left := until - self._clock.monotonic()) > 0:
            self._sleep(min(left, _SLICE_S))

    def _open(self) -> float:
        """Take the spool in hand; seconds to wait for the lease, 0.0 when it is done."""
        if self._grounds is None:
            self._grounds = prepare(self._ports, self._rng)
        wait = self._grounds.lease.acquire()
        if wait > 0:
            log.info("Wait for the lease of %s. seconds=%.0f", self._ports.site.spool, wait)
            return wait
        # Whatever an abandoned round had begun is settled by looking; its answers come to nobody.
        self._ports.effects.finished()
        if self._ports.effects.unfinished():
            return _SLICE_S
        desk = take_in_hand(
            self._ports,
            self._grounds,
            self._rng,
            single_round=self._mode == "once",
            rebuild=self._index_lost,
        )
        self._index_lost = False
        self._round = Round(desk, self._plan, mode=self._mode, started=self._started)
        return 0.0

    def _drop_index(self, error: sqlite3.Error) -> None:
        """The index is damaged: close everything over it and build it anew from the logs."""
        log.error("The index is damaged and is rebuilt from the logs. error=%s", error)
        self._index_lost = True
        driving, self._round = self._round, None
        if driving is not None:
            driving.abandon()

    def _sleep(self, seconds: float) -> bool:
        """Sleep until woken; True if something woke us."""
        descriptors = [self._wake_reader]
        events = None if self._round is None else self._round.events_fileno()
        if events is not None:
            descriptors.append(events)
        ready, _, _ = select.select(descriptors, [], [], seconds)
        if self._wake_reader in ready:
            os.read(self._wake_reader, 65536)
        if events is not None and events in ready and self._round is not None:
            self._round.clear_changes()
        return bool(ready)


class Round:
    """The steps of a tick over one desk, in the order of DESIGN.md section 6."""

    def __init__(
        self, desk: Desk, plan: Callable[[PlanInput], Plan], *, mode: str, started: float
    ) -> None:
        self._desk = desk
        self._mode = mode
        self._started = started
        self._kind = "local" if desk.is_local else "shared"
        self._watch = WatchBatch(desk)
        points = LeasePoints(desk)
        inputs = FetchInputs(desk)
        submit = Submit(desk, self._watch)
        self._steps: tuple[Step, ...] = (
            TakeEvents(desk),
            self._watch,
            Settle(desk),
            points,
            inputs,
            MakePlan(desk, plan, points, inputs, submit),
            submit,
            Deliver(desk, points),
        )
        self._owners = {kind: step for step in self._steps for kind in step.effects}
        self._published_at = float("-inf")
        self._published: dict[str, Any] = {}
        self._dirty = True
        self._stop_looked_at = float("-inf")

    def go(self) -> TickOutcome:
        """One tick. Raises StorageUnavailable (try again later) and Fenced (give up)."""
        desk = self._desk
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
        """Readable when an event log may have grown."""
        return self._desk.events.fileno()

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
        ended = self._desk.effects.finished()
        for finished in ended:
            self._take(finished)
        # A look that found nothing new is no change.
        return any(finished.name not in _LOOKS for finished in ended)

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
