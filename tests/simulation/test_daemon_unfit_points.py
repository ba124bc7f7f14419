"""Points that no record can hold: they fail with the reason, and the search goes on."""

from __future__ import annotations

from pathlib import Path

from harvester.model import PayloadSpec
from harvester.simulation.world import parameters_of
from tests.simulation.daemon_world import DAY_S, problems_of, small_world

TOO_LARGE = {"x": "a" * 70_000}


def test_a_point_whose_parameters_fit_no_record_fails_and_is_not_leased_for_ever(
    tmp_path: Path,
) -> None:
    parameters = [*parameters_of(3), TOO_LARGE]
    world = small_world(tmp_path, parameters=parameters)
    world.run(world.daemon(), world.is_over, limit_s=DAY_S)
    large = world.central.points["3"]
    assert (large.state, large.own_failures) == ("failed", 3)
    told = [
        result
        for result in world.central.books.results.values()
        if result.lease.split(".")[1] == "3"
    ]
    assert {(result.state, result.blame) for result in told} == {("failed", "point")}
    assert "70" in str(told[0].reason)


def test_a_payload_that_fits_no_record_is_a_problem_not_the_daemons_end(tmp_path: Path) -> None:
    world = small_world(tmp_path, payload=PayloadSpec("p1", "true " + "x" * 70_000))
    daemon = world.daemon()

    leased = world.central.books.calls
    world.run(daemon, lambda: leased["lease"] > 0, limit_s=DAY_S)
    world.run(daemon, lambda: bool(problems_of(world)), limit_s=DAY_S)
    assert any("too large to be ordered" in what for what in problems_of(world))
    assert world.central.books.calls["lease"] < 10
    daemon.close()
