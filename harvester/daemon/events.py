"""The step that takes in what the runners say, acknowledges it and asks for what is missing."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from harvester.daemon.budgets import Rest
from harvester.daemon.desk import Desk, Heard
from harvester.effects import Finished
from harvester.errors import StorageUnavailable
from harvester.fold.logs import apply_event_records
from harvester.model import AllocationState, Tag
from harvester.spool.intake import Polled, writer_of

log = logging.getLogger(__name__)

# A late word about a lost attempt still counts: ended allocations are watched a while longer.
LATE_WATCH_S = 900.0
RESEND_AGAIN_S = 30.0
_TELLS_TIME = ("heartbeat", "allocation_started")
# Where the kernel tells of each record: on a shared file system polls are far apart anyway.
REST_PER_RECORD_S = 0.01
REST_AT_MOST_S = 0.25


class TakeEvents:
    """Polls the event logs, in the tick on a local file system, in a worker on a shared one."""

    effects = ("poll",)

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._polling = False
        self._polled: list[Polled] = []
        self._rest = Rest(per_item_s=REST_PER_RECORD_S, at_most_s=REST_AT_MOST_S)

    def take(self, finished: Finished) -> None:
        self._polling = False
        if finished.error is not None:
            self._desk.problems.report(
                "spool", f"the event logs cannot be read: {finished.error}", "look at the spool"
            )
        elif isinstance(finished.result, list):
            self._polled.extend(finished.result)

    def step(self) -> bool:
        desk = self._desk
        if desk.is_local:
            if self.rests_for() > 0.0:
                return False
            self._polled.extend(desk.events.poll(self._watched()))
            self._note_work()
        elif not self._polling and (desk.events.due_in() or 0.0) <= 0.0:
            tags, expecting = self._watched(), self._expecting()
            if not tags:
                desk.events.poll(tags)  # follows none from now on, or it would seem due for ever
                return False
            self._polling = True
            desk.effects.start("poll", lambda: desk.events.poll(tags, expecting), lane="files")
        polled, self._polled = self._polled, []
        return self._apply(polled)

    def due_in(self) -> float | None:
        if self._desk.is_local:
            # The kernel wakes the loop; without inotify this is the latency.
            watching = self._desk.store.allocations.not_ended()
            pause = 0.5 if self._desk.events.fileno() is not None else 0.03
            return (self.rests_for() or pause) if watching else None
        return None if self._polling else self._desk.events.due_in()

    def rests_for(self) -> float:
        """Seconds for which new events are left alone, whatever the kernel says of them."""
        return self._rest.due_in(self._desk.clock.monotonic())

    def _note_work(self) -> None:
        # A single round goes on until it has read everything.
        if not self._desk.single_round:
            records = sum(len(item.batch.records) for item in self._polled)
            self._rest.worked(records, self._desk.clock.monotonic())

    def _watched(self) -> tuple[Tag, ...]:
        allocations = self._desk.store.allocations
        live = [
            row.tag for row in allocations.not_ended() if row.state is not AllocationState.PLANNED
        ]
        late = allocations.ended_since(self._desk.clock.now() - LATE_WATCH_S)
        return (*live, *(row.tag for row in late))

    def _expecting(self) -> frozenset[Tag]:
        """Allocations whose job goes on after their runner's last word: it was requeued."""
        live = self._desk.store.allocations.not_ended()
        return frozenset(row.tag for row in live if row.runner == "ended")

    def _apply(self, polled: Sequence[Polled]) -> bool:
        changed = False
        for n, item in enumerate(polled):
            try:
                changed = self._apply_one(item) or changed
            except StorageUnavailable:
                # The readers stand behind all of it already; nobody else will bring it again.
                self._go_back(polled[n:])
                raise
        return changed

    def _go_back(self, polled: Iterable[Polled]) -> None:
        for item in polled:
            self._desk.events.go_back(item.log, self._desk.store.positions.get(item.log).offset)

    def _apply_one(self, item: Polled) -> bool:
        desk = self._desk
        if item.batch.gaps:
            log.warning("Skip an unreadable stretch. log=%s bytes=%s", item.log, item.batch.gaps)
            desk.store.count("log_gaps", len(item.batch.gaps))
        fresh = apply_event_records(desk.store, item.log, item.batch.records, item.batch.offset)
        desk.journal.record_read(item.log, item.batch.offset)
        self._hear(item)
        self._answer(item)
        if fresh:
            desk.plan_wanted = True
        return fresh > 0

    def _hear(self, item: Polled) -> None:
        for record in reversed(item.batch.records):
            remaining = record.fields.get("remaining_s")
            if record.kind in _TELLS_TIME and isinstance(remaining, (int, float)):
                self._desk.heard[item.tag] = Heard(self._desk.clock.monotonic(), float(remaining))
                return

    def _answer(self, item: Polled) -> None:
        """What is in the index may be forgotten by the runner; what is missing is asked for."""
        position = self._desk.store.positions.get(item.log)
        writer = writer_of(item.log)
        orders = self._desk.orders
        orders.ack(item.tag, writer, position.contiguous)
        for missing in position.missing:
            orders.resend(item.tag, writer, missing, again_after_s=RESEND_AGAIN_S)
