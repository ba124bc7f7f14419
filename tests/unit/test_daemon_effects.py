"""Effects: off the tick's thread, one lane not hindering another, each end reported once."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from harvester.clock import FakeClock
from harvester.effects import Finished, InlineEffects, ThreadEffects
from tests.support import wait_until


def _fail() -> object:
    raise ValueError("no")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def effects(clock: FakeClock) -> Iterator[ThreadEffects]:
    made = ThreadEffects(clock)
    yield made
    made.close()


@pytest.mark.fault("shared file system stalled")
def test_a_hang_delays_only_its_own_lane(effects: ThreadEffects) -> None:
    release = threading.Event()
    effects.start("slow", release.wait, lane="batch")
    effects.start("behind", lambda: 1, lane="batch")
    effects.start("free", lambda: 2, lane="central")
    assert wait_until(effects.finished) == [Finished("free", 2)]
    release.set()
    ended = wait_until(effects.finished)
    if len(ended) == 1:
        ended += wait_until(effects.finished)
    assert [item.name for item in ended] == ["slow", "behind"]
    assert effects.unfinished() == 0


def test_a_failure_comes_back_as_a_value(effects: ThreadEffects) -> None:
    effects.start("bad", _fail, lane="batch")
    (ended,) = wait_until(effects.finished)
    assert isinstance(ended.error, ValueError)


def test_what_does_not_come_back_is_reported_and_still_taken_later(
    effects: ThreadEffects, clock: FakeClock
) -> None:
    release = threading.Event()
    effects.start("slow", release.wait, lane="files", deadline_s=30.0)
    clock.advance(31)
    assert [(item.name, item.lane, item.seconds) for item in effects.overdue()] == [
        ("slow", "files", 31.0)
    ]
    release.set()
    wait_until(effects.finished)
    assert effects.overdue() == ()


def test_an_end_wakes_the_loop(effects: ThreadEffects) -> None:
    woken = threading.Event()
    effects.notify(woken.set)
    effects.start("x", lambda: None, lane="batch")
    assert woken.wait(60)


def test_the_same_effect_is_not_started_twice_at_once(effects: ThreadEffects) -> None:
    release = threading.Event()
    effects.start("slow", release.wait, lane="batch")
    with pytest.raises(ValueError, match="slow"):
        effects.start("slow", lambda: None, lane="batch")
    release.set()


def test_inline_effects_end_at_once_and_are_taken_once() -> None:
    effects = InlineEffects()
    effects.start("x", lambda: 1, lane="batch")
    effects.start("bad", _fail, lane="batch")
    assert effects.unfinished() == 2
    first, second = effects.finished()
    assert (first, str(second.error)) == (Finished("x", 1), "no")
    assert effects.finished() == []
