"""The leader's decisions on elastic payloads, without files, agents or a clock."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from payload_runner.protocol import CheckpointRule, PayloadSpec, Shape, to_fields
from tests.leader_desk import Desk, ids, working

ELASTIC = PayloadSpec(
    "p1",
    "true",
    shape=Shape(nodes_min=1, nodes_max=2, gpus_per_node=2, start="elastic"),
    checkpoint=CheckpointRule(("ckpt",)),
)
SMALL = PayloadSpec("p2", "true", shape=Shape(gpus_per_node=2))


def borrowing() -> Desk:
    """An elastic payload on both nodes."""
    desk = working(ELASTIC)
    desk.tell("define", **to_fields(SMALL))
    desk.order(*ids(1))
    desk.turn()
    assert desk.runs() == [(0, "1.1.1.1"), (1, "1.1.1.1")]
    return desk


def told(desk: Desk, kind: str) -> list[tuple[int, Any]]:
    return [(node, fields.get("hosts")) for node, found, fields in desk.sent if found == kind]


def test_a_loan_is_taken_back_with_notice_and_lent_again() -> None:
    desk = borrowing()
    desk.order(*ids(2), payload="p2", expected_s=10.0)
    desk.turn()
    assert told(desk, "give_back") == [(1, None)]
    assert told(desk, "hosts") == [(0, ["n0"])]
    assert desk.of("attempt_resized")[0]["nodes"] == ["n0"]
    desk.end(1, "1.1.1.1", "preempted", blame="site")
    desk.turn()
    assert desk.runs()[-1] == (1, "1.2.1.1")
    desk.end(1, "1.2.1.1")
    desk.turn(10.0)
    assert desk.runs()[-1] == (1, "1.1.1.1")
    assert told(desk, "hosts")[-2:] == [(0, ["n0", "n1"]), (1, ["n0", "n1"])]
    desk.end(0, "1.1.1.1", loss=0.5)
    assert [(n, kind) for n, kind, _ in desk.sent][-1] == (1, "stop")
    desk.end(1, "1.1.1.1", "cancelled")
    assert [fields["state"] for fields in desk.of("attempt_ended")] == ["succeeded", "succeeded"]


def test_a_node_that_joins_begins_with_the_newest_checkpoint() -> None:
    desk = borrowing()
    desk.end(1, "1.1.1.1", "preempted")
    file = {"path": "a/b", "size": 3, "sha256": "0" * 64}
    desk.conductor.message(0, "checkpoint", {"attempt": "1.1.1.1", "file": file}, desk.now)
    desk.join(2)
    desk.turn(20.0)
    run = [f for n, kind, f in desk.sent if kind == "run" and n == 2]
    assert [fields["order"]["checkpoint"] for fields in run] == [file]


@pytest.mark.fault("node lost")
def test_a_lost_node_makes_it_smaller_and_the_loss_of_the_first_ends_it() -> None:
    desk = borrowing()
    desk.conductor.node_lost(1, "gone", desk.now)
    desk.turn()
    assert desk.of("attempt_ended") == []
    assert told(desk, "hosts") == [(0, ["n0"])]
    desk = borrowing()
    desk.conductor.node_lost(0, "gone", desk.now)
    desk.end(1, "1.1.1.1", "cancelled")
    (ended,) = desk.of("attempt_ended")
    assert (ended["state"], ended["blame"]) == ("failed", "node")


def test_with_fewer_nodes_than_it_needs_it_ends_with_the_reason() -> None:
    shape = replace(ELASTIC.shape, nodes_min=2, nodes_max=3)
    desk = working(replace(ELASTIC, shape=shape))
    desk.order(*ids(1))
    desk.turn()
    desk.end(1, "1.1.1.1", "failed", blame="point", reason="exit code 3")
    assert [(n, kind) for n, kind, _ in desk.sent][-1] == (0, "stop")
    desk.end(0, "1.1.1.1", "cancelled")
    (ended,) = desk.of("attempt_ended")
    assert (ended["state"], ended["reason"]) == ("failed", "exit code 3")


def test_a_part_that_ends_well_before_the_first_is_not_missed() -> None:
    desk = borrowing()
    desk.end(1, "1.1.1.1")
    assert desk.of("attempt_ended") == []
    desk.end(0, "1.1.1.1", loss=0.25)
    assert [fields["loss"] for fields in desk.of("attempt_ended")] == [0.25]


def test_when_the_walltime_ends_the_first_has_its_time_whatever_the_others_do() -> None:
    desk = borrowing()
    desk.turn(900.0)
    desk.end(1, "1.1.1.1", "timed_out", blame="walltime")
    assert "stop" not in [kind for _, kind, _ in desk.sent]
    desk.end(0, "1.1.1.1", "timed_out", blame="walltime", progress=True)
    (ended,) = desk.of("attempt_ended")
    assert (ended["state"], ended["progress"]) == ("timed_out", True)
