"""What goes up while a payload runs: its reports, and its checkpoints as they are saved."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, Callable, Optional

from payload_runner.archives import TooLarge
from payload_runner.checkpoints import Keeper, Refused, Taken
from payload_runner.commits import Broken
from payload_runner.loop import Timer
from payload_runner.node import Node
from payload_runner.protocol import (
    INLINE_LIMIT_BYTES,
    CheckpointRefused,
    CheckpointSaved,
    Reports,
)
from payload_runner.watching import MetricsTail

WATCH_AFTER_S = 2.0  # shorter payloads are read at their end (rule 23)
LOOK_S = 1.0  # between looks, and between events of reports
LOOK_MAX_S = 5.0
HINT_FILE = ".harvester-checkpoint"  # client.py writes it when a checkpoint is whole
HINT_PAUSE_S = 30.0  # hints come as often as the payload likes; saves do not
_BACK_OFF = 1.5
_SKIPPED_SHOWN = 10
_log = logging.getLogger(__name__)


class Reporter:
    """Relays the lines of one attempt's metrics file, at most one event a second."""

    def __init__(self, node: Node, attempt: str, workdir: Path, looked: Callable[[], None]) -> None:
        """``looked`` is called at every look, for what else is to be looked at."""
        self._node = node
        self._looked = looked
        self._attempt = attempt
        self._workdir = workdir
        self._tail = MetricsTail(workdir)
        self._pause_s = LOOK_S
        self._looked_at = 0.0
        self._watching = False
        self._timer: Optional[Timer] = None

    def start(self) -> None:
        """Begin to look after two seconds."""
        self._timer = self._node.loop.call_in(WATCH_AFTER_S, self._begin)

    def touched(self) -> None:
        """Something was written: look now, if the last look was long enough ago."""
        if self._watching and self._node.loop.now() - self._looked_at >= LOOK_S:
            self._pause_s = LOOK_S
            self._look()

    def end(self) -> None:
        """The payload is gone: relay what is left."""
        if self._timer is not None:
            self._timer.cancel()
        if self._watching:
            self._watching = False
            self._node.wake().remove(self._workdir)
        self._tail.end()
        self._emit()
        if self._tail.bad_lines:
            _log.warning(
                "Ignored lines that are no reports attempt=%s n=%d",
                self._attempt,
                self._tail.bad_lines,
            )

    def _begin(self) -> None:
        self._watching = True
        self._node.wake().add(self._workdir)
        self._look_again()

    def _look_again(self) -> None:
        fresh = self._look()
        self._looked()
        self._pause_s = LOOK_S if fresh else min(self._pause_s * _BACK_OFF, LOOK_MAX_S)
        self._timer = self._node.loop.call_in(self._pause_s, self._look_again)

    def _look(self) -> bool:
        self._looked_at = self._node.loop.now()
        fresh = self._tail.look()
        if fresh:
            self._emit()
        return fresh

    def _emit(self) -> None:
        values = self._tail.reports()
        if values:
            self._node.emit(Reports(self._attempt, values))


class Saver:
    """Saves one attempt's checkpoints in a worker thread, one at a time, and says so."""

    def __init__(self, node: Node, attempt: str, keeper: Optional[Keeper]) -> None:
        """``keeper`` None: nothing is ever saved, and every call goes straight through."""
        self._node = node
        self._attempt = attempt
        self._keeper = keeper
        self._busy = False
        self._then: Optional[Callable[[], None]] = None
        self._timer: Optional[Timer] = None
        self._refused = ""
        self._hint_seen = 0
        self._hint_taken = -HINT_PAUSE_S

    @property
    def progress(self) -> bool:
        """Whether anything newer than what it began with was committed."""
        return self._keeper is not None and self._keeper.saved > 0

    def start(self, interval_s: float) -> None:
        """Look every ``interval_s``, at most once a second."""
        if self._keeper is not None:
            pause_s = max(1.0, interval_s)
            self._timer = self._node.loop.call_in(pause_s, lambda: self._periodically(pause_s))

    def stop(self) -> None:
        """No more periodic looks."""
        if self._timer is not None:
            self._timer.cancel()

    def look_for_hint(self, workdir: Path) -> None:
        """Save now if the payload says that its checkpoint is whole, at most every 30 s."""
        now = self._node.loop.now()
        if self._keeper is None or self._busy or now - self._hint_taken < HINT_PAUSE_S:
            return
        try:
            hint = os.stat(workdir / HINT_FILE).st_mtime_ns
        except OSError:
            return
        if hint != self._hint_seen:
            self._hint_seen, self._hint_taken = hint, now
            self.save_then(_nothing)

    def save_then(self, call: Callable[[], None]) -> None:
        """Save what is new, then ``call``. The latest ``call`` replaces one still waiting."""
        if self._keeper is None:
            call()
        elif self._busy:
            # What is being saved may be older than what is wanted.
            self._then = lambda: self.save_then(call)
        else:
            self._busy, self._then = True, call
            self._node.loop.worker.submit(self._keeper.take, self._saved)

    def when_idle(self, call: Callable[[], None]) -> None:
        """``call`` when no save is in progress, so that no event follows the outcome."""
        if self._busy:
            self._then = call
        else:
            call()

    def refuse(self, reason: str) -> None:
        """Tell why there is no checkpoint; once, not at every look."""
        if reason != self._refused:
            self._refused = reason
            self._node.emit(CheckpointRefused(self._attempt, reason[:INLINE_LIMIT_BYTES]))

    def _periodically(self, pause_s: float) -> None:
        if not self._busy:
            self.save_then(_nothing)
        self._timer = self._node.loop.call_in(pause_s, lambda: self._periodically(pause_s))

    def _saved(self, result: Any) -> None:  # Any: what take returns or raised
        self._busy = False
        if isinstance(result, Taken):
            self._node.emit(CheckpointSaved(self._attempt, result.file))
            if result.skipped:
                names = ", ".join(result.skipped[:_SKIPPED_SHOWN])
                self.refuse(f"left out of the checkpoint: {names}")
        elif isinstance(result, (Refused, Broken, TooLarge, OSError)):
            self.refuse(str(result))
        elif result is not None:
            _log.error("Could not save a checkpoint attempt=%s", self._attempt, exc_info=result)
            self.refuse(f"the checkpoint could not be saved: {result!r}")
        call, self._then = self._then, None
        if call is not None:
            call()


def _nothing() -> None:
    """A periodic save has nobody waiting for it."""
