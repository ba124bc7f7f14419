"""The agent's event loop: descriptors, timers, signals and finished background work. One thread."""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import select
import signal
import time
from typing import Callable, Dict, List, Optional, Tuple

from payload_runner.worker import Worker

Call = Callable[[], None]
_log = logging.getLogger(__name__)


class Timer:
    """A call that is due later; ``cancel`` takes it back."""

    __slots__ = ("call",)

    def __init__(self, call: Call) -> None:
        self.call: Optional[Call] = call

    def cancel(self) -> None:
        """Calling twice, or after it ran, is safe."""
        self.call = None


class Loop:
    """Waits for whatever comes first and calls what was registered for it."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.now = monotonic
        self.worker = Worker()
        self._epoll = select.epoll()
        self._calls: Dict[int, Call] = {}
        self._timers: List[Tuple[float, int, Timer]] = []
        self._numbers = itertools.count()
        self._signals: Dict[int, Call] = {}
        self._wake_end, self._write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.watch(self._wake_end, self._take_signals)
        self.watch(self.worker.fileno(), self._take_finished)

    def watch(self, fd: int, call: Call) -> None:
        """Call when ``fd`` is readable or closed by its other side."""
        self._epoll.register(fd, select.EPOLLIN)
        self._calls[fd] = call

    def unwatch(self, fd: int) -> None:
        self._epoll.unregister(fd)
        del self._calls[fd]

    def call_at(self, when: float, call: Call) -> Timer:
        """Call once at ``when`` on the loop's monotonic clock."""
        timer = Timer(call)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    def call_in(self, delay_s: float, call: Call) -> Timer:
        return self.call_at(self.now() + delay_s, call)

    def on_signal(self, number: int, call: Call) -> None:
        """Call, from the loop, when a signal came. Main thread only."""
        self._signals[number] = call
        signal.signal(number, _noted)
        signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)

    def turn(self, timeout_s: Optional[float] = None) -> None:
        """Wait for at most ``timeout_s`` (None: as long as nothing happens), then call once."""
        calls = self._calls
        for fd, call in [(fd, calls[fd]) for fd, _ in self._epoll.poll(self._wait_s(timeout_s))]:
            # An earlier call of this turn may have closed it, and its number may be another's.
            if calls.get(fd) is call:
                _run(call)
        self._run_timers()

    def close(self) -> None:
        """Give signals and descriptors back."""
        if self._signals:
            signal.set_wakeup_fd(-1)
        for number in self._signals:
            signal.signal(number, signal.SIG_DFL)
        self._epoll.close()
        for fd in (self._wake_end, self._write_end):
            os.close(fd)

    def _wait_s(self, timeout_s: Optional[float]) -> Optional[float]:
        while self._timers and self._timers[0][2].call is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return timeout_s
        due_in = max(0.0, self._timers[0][0] - self.now())
        return due_in if timeout_s is None else min(due_in, timeout_s)

    def _run_timers(self) -> None:
        now = self.now()
        while self._timers and self._timers[0][0] <= now:
            call = heapq.heappop(self._timers)[2].call
            if call is not None:
                _run(call)

    def _take_signals(self) -> None:
        try:
            numbers = set(os.read(self._wake_end, 4096))
        except BlockingIOError:
            return
        for number in numbers:
            call = self._signals.get(number)
            if call is not None:
                _run(call)

    def _take_finished(self) -> None:
        for call in self.worker.finished():
            _run(call)


def _run(call: Call) -> None:
    try:
        call()
    except Exception:  # noqa: BLE001 - edge of the loop, see below
        # One payload's trouble is not to end the others.
        _log.exception("A call of the loop failed call=%r", call)


def _noted(_number: int, _frame: object) -> None:
    """The wake-up descriptor tells the loop; the handler itself has nothing to do."""
