"""SIGINT, SIGTERM and SIGHUP as one KeyboardInterrupt that comes at a good moment."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Raises KeyboardInterrupt once, for the first signal; those that follow do nothing.

    They are not set to be ignored: Python prints an error when the second signal of a burst
    arrives while the first one's handler does that.
    """

    def __init__(self) -> None:
        self._held = False
        self._came = False
        self._over = False

    def watch(self) -> None:
        """From now on."""
        for number in SIGNALS:
            signal.signal(number, self._interrupt)

    def stop(self) -> None:
        """No more: there is nothing left to interrupt."""
        self._over = True

    @contextmanager
    def held(self) -> Iterator[None]:
        """A stretch that is not to be cut in two; a signal counts at its end."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._came and not self._over:
            self._raise()

    def _interrupt(self, *_: object) -> None:
        self._came = True
        if not self._held and not self._over:
            self._raise()

    def _raise(self) -> None:
        self._over = True
        raise KeyboardInterrupt
