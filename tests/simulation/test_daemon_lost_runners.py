"""Runners that die while their jobs go on to the walltime."""

from __future__ import annotations

from pathlib import Path

from harvester.simulation.world import World, parameters_of
from tests.simulation.daemon_world import DAY_S, running_jobs, small_world, status_of


def test_runs_whose_runner_died_early_do_not_count_as_cut_off_by_walltime(tmp_path: Path) -> None:
    world = small_world(tmp_path, parameters=parameters_of(1))
    daemon = world.daemon()
    for _ in range(4):
        world.run(daemon, lambda: is_running(world), limit_s=DAY_S)
        for name in running_jobs(world):
            runner = world.cluster.jobs[name].runner
            assert runner is not None
            runner.kill()
        world.run(daemon, lambda: not running_jobs(world), limit_s=DAY_S)
        world.run(daemon, lambda: not is_running(world), limit_s=DAY_S)

    world.run(daemon, world.is_over, limit_s=DAY_S)

    (point,) = world.central.points.values()
    assert (point.state, point.own_failures) == ("done", 0)
    ends = {(result.state, result.blame) for result in world.central.books.results.values()}
    assert ends == {("lost", "site"), ("succeeded", None)}


def is_running(world: World) -> bool:
    return bool(running_jobs(world)) and bool(status_of(world)["attempts"].get("running"))
