"""A drain without hurry (a STOP file, an order) does not outlive the walltime."""

from __future__ import annotations

from tests.leader_desk import ids, working


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
