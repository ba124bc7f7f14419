"""What tests of several floors share."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(predicate: Callable[[], T], timeout: float = 60.0) -> T:
    """The predicate's first true value; fails when there is none within ``timeout`` seconds.

    The deadline ends a test that has failed already; on a busy machine anything may take long.
    """
    until = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > until:
            raise AssertionError(f"nothing after {timeout} s: {predicate}")
        time.sleep(0.01)
