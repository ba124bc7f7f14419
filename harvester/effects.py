"""Effects on the outside that may hang: started by the tick, finished elsewhere, taken by the tick.

The tick never waits for one. Each kind of outside (batch, central, staging, files) is a lane: the
effects of a lane run one after the other, so that a hang delays its own lane only.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from harvester.clock import Clock

log = logging.getLogger(__name__)

LANES = ("batch", "central", "staging", "files")
Work = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Finished:
    """An effect's end: its result, or the exception that it raised."""

    name: str
    result: object = None
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Overdue:
    """An effect that has not come back within its deadline; it may still do so."""

    name: str
    lane: str
    seconds: float  # since it was started


class Effects(Protocol):
    """Runs effects for the tick. All methods are called from the tick's thread."""

    def start(self, name: str, function: Work, *, lane: str, deadline_s: float = 120.0) -> None:
        """Queue an effect on a lane. ``name`` is unique among the unfinished ones."""

    def finished(self) -> list[Finished]:
        """Effects that ended since the last call, in the order of their ends. Never blocks."""

    def unfinished(self) -> int:
        """How many have been started and not been taken by ``finished`` yet."""

    def overdue(self) -> tuple[Overdue, ...]:
        """Those past their deadline. A late end is still reported by ``finished``."""

    def notify(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` (from any thread) whenever an effect ends."""

    def close(self) -> None:
        """Take no more work; what hangs is left behind. Calling twice is safe."""


class InlineEffects:
    """Runs each effect at once in the caller's thread: deterministic, for simulation and tests.

    ``BaseException`` beyond ``Exception`` passes through, so that a simulated crash stays one.
    """

    def __init__(self) -> None:
        self._ended: list[Finished] = []
        self._wake: Callable[[], None] = _nothing

    def start(self, name: str, function: Work, *, lane: str, deadline_s: float = 120.0) -> None:
        del lane, deadline_s  # nothing overlaps here
        self._ended.append(_run(name, function))
        self._wake()

    def finished(self) -> list[Finished]:
        ended, self._ended = self._ended, []
        return ended

    def unfinished(self) -> int:
        return len(self._ended)

    def overdue(self) -> tuple[Overdue, ...]:
        return ()

    def notify(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def close(self) -> None:
        self._ended.clear()


@dataclass(frozen=True, slots=True)
class _Started:
    lane: str
    at: float
    deadline_s: float


class ThreadEffects:
    """One daemon thread per lane, started when the lane is first used."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lanes: dict[str, queue.SimpleQueue[tuple[str, Work] | None]] = {}
        self._ended: queue.SimpleQueue[Finished] = queue.SimpleQueue()
        self._started: dict[str, _Started] = {}
        self._wake: Callable[[], None] = _nothing

    def start(self, name: str, function: Work, *, lane: str, deadline_s: float = 120.0) -> None:
        if name in self._started:
            raise ValueError(f"effect {name} has been started already")
        self._started[name] = _Started(lane, self._clock.monotonic(), deadline_s)
        self._lane(lane).put((name, function))

    def finished(self) -> list[Finished]:
        ended = []
        while not self._ended.empty():
            item = self._ended.get()
            del self._started[item.name]
            ended.append(item)
        return ended

    def unfinished(self) -> int:
        return len(self._started)

    def overdue(self) -> tuple[Overdue, ...]:
        now = self._clock.monotonic()
        return tuple(
            Overdue(name, item.lane, now - item.at)
            for name, item in self._started.items()
            if now - item.at > item.deadline_s
        )

    def notify(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def close(self) -> None:
        for lane in self._lanes.values():
            lane.put(None)
        self._lanes.clear()

    def _lane(self, name: str) -> queue.SimpleQueue[tuple[str, Work] | None]:
        if name not in self._lanes:
            work: queue.SimpleQueue[tuple[str, Work] | None] = queue.SimpleQueue()
            self._lanes[name] = work
            # A daemon thread: one that hangs in a dead file system must not keep us from leaving.
            threading.Thread(
                target=self._serve, args=(work,), name=f"effects-{name}", daemon=True
            ).start()
        return self._lanes[name]

    def _serve(self, work: queue.SimpleQueue[tuple[str, Work] | None]) -> None:
        while (item := work.get()) is not None:
            self._ended.put(_run(*item))
            self._wake()


def _run(name: str, function: Work) -> Finished:
    try:
        return Finished(name, function())
    except Exception as error:  # noqa: BLE001  # the edge of a lane: the tick judges the error
        log.debug("Effect failed. name=%s error=%s", name, error)
        return Finished(name, error=error)


def _nothing() -> None:
    return None
