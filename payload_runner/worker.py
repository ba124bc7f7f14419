"""Threads for what must not block the agent's loop: copying, compressing, hashing, removing.

A payload has one task here at a time; those of different payloads run side by side.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from typing import Any, Callable, List, Tuple

THREADS = 3  # zlib and file I/O release the lock of the interpreter; more would take payload cores


class Worker:
    """Runs functions in a few daemon threads and hands their results back to the loop.

    ``fileno`` is readable when ``finished`` has something. Threads start when first needed.
    """

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[_Task] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._read_end, self._write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._threads = 0
        self._pending = 0

    def fileno(self) -> int:
        return self._read_end

    @property
    def idle(self) -> bool:
        """Whether everything given has been handed back."""
        return self._pending == 0

    def submit(self, function: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Run ``function`` in a thread; ``then`` gets its value or its exception, in the loop."""
        self._pending += 1
        self._waiting.put((function, then))
        if self._threads < min(THREADS, self._pending):
            self._threads += 1
            threading.Thread(target=self._serve, name="worker", daemon=True).start()

    def finished(self) -> List[Callable[[], None]]:
        """What to call in the loop: each ``then`` with its result."""
        try:
            os.read(self._read_end, 4096)
        except BlockingIOError:
            return []
        calls = []
        while not self._done.empty():
            calls.append(self._done.get())
            self._pending -= 1
        return calls

    def _serve(self) -> None:
        while True:
            function, then = self._waiting.get()
            result: Any
            try:
                result = function()
            except Exception as error:  # noqa: BLE001 - edge of a thread: the loop decides
                result = error
            self._done.put(_bind(then, result))
            with contextlib.suppress(BlockingIOError):  # full of wake-ups already
                os.write(self._write_end, b".")


_Task = Tuple[Callable[[], Any], Callable[[Any], None]]


def _bind(then: Callable[[Any], None], result: Any) -> Callable[[], None]:
    return lambda: then(result)
