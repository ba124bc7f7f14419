"""The daemon dies before or after each of its effects; the books must be equal all the same.

The quick sweep takes each kind of effect once at its beginning and once in the middle of the
search; the slow one takes every effect. Before an effect only the process dies; after one its
host dies as well, with everything that was not synced.
"""

from __future__ import annotations

import contextlib
import re
import resource
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harvester.model import AttemptState
from harvester.simulation.crashes import Crash, CrashPoint
from harvester.simulation.world import Scenario, World, parameters_of
from harvester.site import Queue, WalltimeBin
from tests.simulation.reference import check_books, reference_scenario, reference_site

DAY_S = 86_400.0


def small_scenario(index: Path) -> Scenario:
    """Eight points on two short allocations at a time: everything happens, but soon."""
    queue = Queue(name="batch", bins=(WalltimeBin(nodes_min=1, nodes_max=1, walltime_max_s=900.0),))
    site = reference_site(index, queues=(queue,))
    site = replace(site, budgets=replace(site.budgets, jobs_in_flight=2))
    return reference_scenario(index, site=site, parameters=parameters_of(8))


def kind_of(effect: str) -> str:
    """The effect without what differs from one allocation to the next; a write is half a sync."""
    return re.sub(r"h[a-z2-7]{5}-[a-z2-7]{6}", "TAG", effect).replace("write ", "sync ")


def chosen_effects(effects: list[str]) -> list[int]:
    """Of each kind of effect the first and, if there are more than two, the middle one."""
    found: dict[str, list[int]] = defaultdict(list)
    for number, effect in enumerate(effects, start=1):
        found[kind_of(effect)].append(number)
    chosen = {numbers[0] for numbers in found.values()}
    chosen |= {numbers[len(numbers) // 2] for numbers in found.values() if len(numbers) > 2}
    return sorted(chosen)


def undisturbed_effects(tmp_path: Path) -> list[str]:
    """Every effect of a search in which nothing goes wrong."""
    point = CrashPoint()
    world = World(small_scenario(tmp_path / "undisturbed"))
    world.run(world.daemon(point), world.is_over, limit_s=DAY_S)
    check_books(world)
    states = {result.state for result in world.central.books.results.values()}
    assert states == {state.value for state in (AttemptState.SUCCEEDED, AttemptState.FAILED)} | {
        AttemptState.TIMED_OUT.value
    }
    return point.effects


def crash_at(index: Path, number: int, *, after: bool) -> None:
    """The search, its first daemon killed at one effect and followed by a second."""
    world = World(small_scenario(index))
    point = CrashPoint(number, after=after)
    with contextlib.suppress(Crash):
        world.run(world.daemon(point), world.is_over, limit_s=DAY_S)
    if after:
        world.lose_login_host()
    try:
        world.run(world.daemon(seed=2), world.is_over, limit_s=DAY_S)
        check_books(world)
    except Exception as error:
        side = "after" if after else "before"
        raise AssertionError(f"crash {side} effect {number} ({point.effects[-1]})") from error


@pytest.mark.fault("daemon killed")
@pytest.mark.timeout(600)  # 40 s alone, three times that on a busy machine
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_crash_at_any_kind_of_effect_changes_no_result(
    tmp_path: Path, after: bool, record_property: Callable[[str, object], None]
) -> None:
    chosen = chosen_effects(undisturbed_effects(tmp_path))
    for tries, number in enumerate(chosen, start=1):
        record_property("tries", tries)
        crash_at(tmp_path / f"index-{number}", number, after=after)


@pytest.mark.fault("daemon killed")
@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_crash_at_every_effect_changes_no_result(
    tmp_path: Path, after: bool, record_property: Callable[[str, object], None]
) -> None:
    # A killed daemon closes nothing, and here they all live in one process.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for number in range(1, len(undisturbed_effects(tmp_path)) + 1):
        record_property("tries", number)
        crash_at(tmp_path / f"index-{number}", number, after=after)
