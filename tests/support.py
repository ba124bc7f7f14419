"""What tests of several floors share."""

from __future__ import annotations

import linecache
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_LONGEST_PAUSE_S = 0.1  # many a look starts a process: a tighter loop slows what it waits for


def wait_until(
    predicate: Callable[[], T], timeout: float = 60.0, describe: Callable[[], object] | None = None
) -> T:
    """The predicate's first true value; fails when there is none within ``timeout`` seconds.

    The deadline ends a test that has failed already; on a busy machine anything may take long.
    The failure names the predicate's place, its last value and what ``describe`` then returns.
    """
    seen = _look_until(predicate, bool, timeout)
    if seen:
        return seen
    more = "" if describe is None else f"; then there was: {describe()}"
    raise AssertionError(f"nothing after {timeout:g} s of {_place(predicate)}: {seen!r}{more}")


def wait_to_see(look: Callable[[], T], accept: Callable[[T], object], timeout: float = 60.0) -> T:
    """The first value seen that is accepted; the failure names the last that was not."""
    seen = _look_until(look, accept, timeout)
    if accept(seen):
        return seen
    raise AssertionError(f"not accepted by {_place(accept)} after {timeout:g} s: {seen!r}")


def _look_until(look: Callable[[], T], accept: Callable[[T], object], timeout: float) -> T:
    """The first accepted value, or the last value of all."""
    until, pause = time.monotonic() + timeout, 0.01
    while not accept(seen := look()) and time.monotonic() <= until:
        time.sleep(pause)
        pause = min(1.2 * pause, _LONGEST_PAUSE_S)
    return seen


def _place(function: Callable[..., object]) -> str:
    """Where a function begins, and that line; its representation where it has none."""
    code = getattr(function, "__code__", None)
    if code is None:
        return repr(function)
    line = linecache.getline(code.co_filename, code.co_firstlineno).strip()
    return f"{code.co_filename}:{code.co_firstlineno} ({line})"
