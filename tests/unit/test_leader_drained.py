"""Drains: one without hurry does not outlive the walltime, and none cuts a last checkpoint."""

from __future__ import annotations

import pytest

from payload_runner.protocol import PayloadSpec, Shape
from tests.leader_desk import Desk, ids, working

GROUP = PayloadSpec(
    "p1", "true", shape=Shape(nodes_min=2, nodes_max=2, gpus_per_node=2, start="processes")
)


def test_what_runs_on_through_a_quiet_drain_is_ended_before_the_walltime() -> None:
    desk = working()
    desk.order(*ids(1))
    desk.turn()
    assert len(desk.runs()) == 1
    desk.conductor.start_drain("there is a STOP file in the spool", desk.now, within_s=None)
    assert not [kind for _, kind, _ in desk.sent if kind == "drain"]

    desk.turn(desk.conductor.drain_point() - desk.now)

    told = [fields for _, kind, fields in desk.sent if kind == "drain"]
    assert told
    assert {fields["outcome"] for fields in told} == {"timed_out"}
    assert 0.0 <= desk.conductor.wait_s(desk.now) <= 10.0


def grouped() -> Desk:
    """A payload that runs on both nodes."""
    desk = working(GROUP)
    desk.order(*ids(1), expected_s=10.0)
    desk.turn()
    return desk


def last_words(desk: Desk) -> list[tuple[int, str]]:
    return [(node, kind) for node, kind, _ in desk.sent if kind in ("stop", "give_back")]


def test_part_that_leaves_at_the_drain_costs_the_others_nothing_of_their_time() -> None:
    desk = grouped()
    desk.turn(desk.conductor.drain_point() - desk.now)
    desk.end(1, "1.1.1.1", "timed_out", blame="walltime", reason="exit code 3")
    assert last_words(desk) == []
    desk.end(0, "1.1.1.1", "timed_out", blame="walltime", progress=True)
    (ended,) = desk.of("attempt_ended")
    assert (ended["state"], ended["progress"]) == ("timed_out", True)


def test_node_lost_in_the_drain_costs_the_others_nothing_of_their_time() -> None:
    desk = grouped()
    desk.turn(desk.conductor.drain_point() - desk.now)
    desk.conductor.node_lost(1, "it was switched off", desk.now)
    assert last_words(desk) == []


@pytest.mark.parametrize("state", ["preempted", "timed_out"])
def test_part_that_was_warned_elsewhere_has_the_others_warned_too(state: str) -> None:
    """A batch system may signal the agents before the leader, and clocks of limits differ."""
    desk = grouped()
    desk.end(1, "1.1.1.1", state, blame="site", reason="the step was ended")
    assert last_words(desk) == [(0, "give_back")]
    desk.end(0, "1.1.1.1", "preempted", blame="site", progress=True)
    (ended,) = desk.of("attempt_ended")
    assert (ended["state"], ended["progress"]) == (state, True)
