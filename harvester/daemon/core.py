"""The daemon's public face: the loop around the tick, and the single round for cron."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import select
import sqlite3
from collections.abc import Callable
from typing import Protocol

from harvester.batch.port import BatchSystem
from harvester.central.port import CentralService
from harvester.clock import Clock
from harvester.daemon.opening import Grounds, Ports, prepare, take_in_hand
from harvester.daemon.round import Round, TickOutcome
from harvester.daemon.watch_link import Way
from harvester.effects import Effects
from harvester.errors import StorageUnavailable
from harvester.planning.facts import Plan, PlanInput
from harvester.planning.planner import plan as default_plan
from harvester.site import Site
from payload_runner.files import Files

log = logging.getLogger(__name__)

RETRY_STORAGE_S = 5.0
# What a single round would do this soon belongs to it.
AT_ONCE_S = 0.1
# How long the loop sleeps at most before it looks whether it is to stop.
_SLICE_S = 1.0
# What hangs longer than this when we leave is settled by the next start.
LEAVE_WITHIN_S = 5.0


class StopSignal(Protocol):
    """What the loop asks whether it should leave; ``threading.Event`` is one."""

    def is_set(self) -> bool:
        """Whether to finish the step in hand and leave."""


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
        way: Way | None = None,
        seed: int | None = None,
    ) -> None:
        self._ports = Ports(
            site=site,
            batch=batch,
            central=central,
            files=files,
            clock=clock,
            effects=effects,
            way=way,
        )
        self._clock = clock
        self._plan = plan
        self._rng = random.Random(seed)
        self._started = clock.now()
        self._mode = "loop"
        self._grounds: Grounds | None = None
        self._round: Round | None = None
        self._index_lost = False
        self._refusal: StorageUnavailable | None = None  # of a file system, the last one
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
            self._refusal = error
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
        """One full round: until nothing is left to do at once, the deadline or ``stop``.

        Raises:
            StorageUnavailable: the spool could not be taken in hand all the while.
        """
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
            if self._round is None and self._refusal is not None:
                raise self._refusal
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
