"""The leader's decisions, without files, agents or a clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from payload_runner.attempts import LaunchEnd
from payload_runner.incarnation import History
from payload_runner.protocol import (
    PayloadSpec,
    Shape,
    to_fields,
)
from tests.leader_desk import SPEC, Desk, ids, working


def test_the_definition_goes_to_a_node_once_and_before_its_first_run() -> None:
    desk = working()
    desk.order(*ids(1, 2, 3))
    desk.turn()
    assert [(node, kind) for node, kind, _ in desk.sent] == [
        (0, "define"),
        (0, "run"),
        (0, "run"),
        (1, "define"),
        (1, "run"),
    ]
    assert desk.sent[1][2]["remaining_s"] == pytest.approx(1000 - 60 - 40)


def test_work_begins_when_all_have_joined_or_five_seconds_after_the_first() -> None:
    desk = Desk()
    desk.tell("define", **to_fields(SPEC))
    desk.order(*ids(1))
    desk.join(1)
    desk.turn()
    assert desk.runs() == []
    desk.turn(5.0)
    assert desk.runs() == [(1, "1.1.1.1")]
    assert desk.of("allocation_started")[0]["nodes"] == ["n1"]
    desk.join(0)
    desk.order(*ids(2, 3))
    desk.turn()
    assert (0, "1.3.1.1") in desk.runs()


@pytest.mark.fault("node lost")
def test_a_node_that_never_comes_is_lost_after_two_minutes() -> None:
    desk = Desk()
    desk.join(0)
    desk.turn(121)
    assert [fields["node"] for fields in desk.of("node_lost")] == ["1"]
    assert desk.leaving() is None


def test_an_ended_attempt_ordered_again_is_answered_with_its_outcome() -> None:
    desk = working()
    desk.order(*ids(1))
    desk.turn()
    desk.end(0, "1.1.1.1", loss=0.5, stdout="much")
    desk.order(*ids(1))
    desk.turn()
    assert len(desk.runs()) == 1
    assert [fields["loss"] for fields in desk.of("attempt_ended")] == [0.5, 0.5]


def test_a_snapshot_repeating_what_waits_or_runs_changes_nothing() -> None:
    desk = working()
    desk.order(*ids(1, 2, 3, 4, 5))
    desk.turn()
    desk.order(*ids(1, 2, 3, 4, 5))
    desk.turn(2)
    assert len(desk.runs()) == 4


def test_what_an_earlier_start_of_the_job_began_is_preempted_and_never_runs_again() -> None:
    history = History({"1.1.1.1": None, "1.2.1.1": None}, {})
    ended = {"attempt": "1.2.1.1", "state": "succeeded", "loss": 1.0}
    history.outcomes["1.2.1.1"] = ("attempt_ended", ended)
    desk = Desk(history=history)
    desk.tell("define", **to_fields(SPEC))
    desk.join(0, 1)
    desk.order(*ids(1, 2, 3))
    desk.turn()
    assert desk.runs() == [(0, "1.3.1.1")]
    states = [(fields["attempt"], fields["state"]) for fields in desk.of("attempt_ended")]
    assert states == [
        ("1.1.1.1", "preempted"),
        ("1.1.1.1", "preempted"),
        ("1.2.1.1", "succeeded"),
    ]


def test_stopping_a_waiting_attempt_ends_it_and_a_running_one_is_told() -> None:
    desk = working()
    desk.order(*ids(1, 2, 3, 4, 5))
    desk.turn()
    for attempt in ids(1, 5):
        desk.tell("stop", attempt=attempt, outcome="pruned", reason="no hope")
    assert desk.of("attempt_ended") == [
        {"attempt": "1.5.1.1", "state": "pruned", "reason": "no hope"}
    ]
    told = [(node, fields["attempt"]) for node, kind, fields in desk.sent if kind == "stop"]
    assert told == [(0, "1.1.1.1")]


@pytest.mark.fault("node lost")
def test_a_lost_node_fails_what_ran_there_and_the_rest_goes_on() -> None:
    desk = working()
    desk.order(*ids(1, 2, 3, 4))
    desk.turn()
    desk.end(0, "1.1.1.1")
    desk.conductor.node_lost(0, "its agent was killed by SIGKILL", desk.now)
    desk.turn()
    assert desk.of("node_lost") == [{"node": "n0", "reason": "its agent was killed by SIGKILL"}]
    (_, lost) = desk.of("attempt_ended")
    assert (lost["attempt"], lost["state"], lost["blame"]) == ("1.2.1.1", "failed", "node")
    desk.end(0, "1.2.1.1")  # a word from beyond
    assert len(desk.of("attempt_ended")) == 2
    desk.end(1, "1.3.1.1")
    assert desk.leaving() is None


@pytest.mark.fault("node lost")
def test_the_loss_of_every_node_is_the_end() -> None:
    desk = working()
    desk.order(*ids(1))
    desk.turn()
    for node in (0, 1):
        desk.conductor.node_lost(node, "gone", desk.now)
    assert desk.leaving() == "every node is lost"


GROUP = PayloadSpec(
    "p1", "true", shape=Shape(nodes_min=2, nodes_max=2, gpus_per_node=2, start="processes")
)


def test_the_ends_of_a_payload_on_two_nodes_become_one() -> None:
    desk = working(GROUP)
    desk.order(*ids(1), expected_s=10.0)
    desk.turn()
    for node in (1, 0):
        started = {"attempt": "1.1.1.1", "nodes": [f"n{node}"]}
        desk.conductor.message(node, "attempt_started", started, desk.now)
    assert desk.of("attempt_started") == [
        {"attempt": "1.1.1.1", "nodes": ["n0", "n1"], "gpus": ["n0:0", "n0:1", "n1:0", "n1:1"]}
    ]
    desk.end(1, "1.1.1.1")
    assert desk.of("attempt_ended") == []
    desk.end(0, "1.1.1.1", loss=0.25)
    assert [fields["loss"] for fields in desk.of("attempt_ended")] == [0.25]


def test_the_first_failure_of_a_payload_on_two_nodes_stops_the_others_and_is_its_end() -> None:
    desk = working(GROUP)
    desk.order(*ids(1), expected_s=10.0)
    desk.turn()
    desk.end(1, "1.1.1.1", "failed", blame="point", reason="exit code 3")
    assert [(n, kind) for n, kind, _ in desk.sent][-1] == (0, "stop")
    desk.end(0, "1.1.1.1", "cancelled", progress=True)
    (ended,) = desk.of("attempt_ended")
    assert (ended["state"], ended["reason"], ended["progress"]) == ("failed", "exit code 3", True)


def test_at_the_drain_point_what_waits_is_handed_back_and_what_runs_is_told_to_stop() -> None:
    desk = working()
    desk.order(*ids(1, 2, 3, 4, 5))
    desk.turn()
    desk.turn(1000 - 60 - 40)
    assert desk.of("draining") == [{"reason": "the walltime ends"}]
    assert desk.of("handed_back") == [{"attempts": ["1.5.1.1"], "reason": "the walltime ends"}]
    drains = [(n, f["outcome"], f["remaining_s"]) for n, k, f in desk.sent if k == "drain"]
    assert sorted(drains) == [(0, "timed_out", 40.0), (1, "timed_out", 40.0)]
    for node, attempt in zip((0, 0, 1, 1), ids(1, 2, 3, 4), strict=True):
        assert desk.leaving() is None
        desk.end(node, attempt, "timed_out", blame="walltime")
    assert desk.leaving() == "the walltime ends"


def test_what_outlasts_the_drain_is_given_up_before_the_job_is_killed() -> None:
    desk = working()
    desk.order(*ids(1))
    desk.turn()
    desk.turn(900)
    desk.turn(44)
    assert desk.of("attempt_ended") == []
    desk.turn(1.1)
    (ended,) = desk.of("attempt_ended")
    assert (ended["state"], ended["blame"]) == ("timed_out", "walltime")
    assert desk.leaving() == "the walltime ends"


def test_an_ordered_drain_lets_what_runs_finish_and_now_ends_it() -> None:
    desk = working()
    desk.order(*ids(1))
    desk.turn()
    desk.tell("drain", reason="maintenance", now=False)
    assert [kind for _, kind, _ in desk.sent if kind == "drain"] == []
    assert desk.leaving() is None
    desk.tell("drain", reason="maintenance", now=True)
    (drain, _) = [fields for _, kind, fields in desk.sent if kind == "drain"]
    assert (drain["outcome"], drain["remaining_s"]) == ("preempted", 40.0)
    desk.order(*ids(2))
    assert desk.of("handed_back") == [{"attempts": ["1.2.1.1"], "reason": "maintenance"}]


def test_it_leaves_when_idle_too_long_or_when_closed_and_done() -> None:
    desk = working()
    desk.turn(49)
    assert desk.leaving() is None
    desk.order(*ids(1))
    desk.turn()
    desk.end(0, "1.1.1.1")
    desk.turn(49)
    assert desk.leaving() is None
    desk.turn(1)
    assert desk.leaving() == "there was nothing to do for 50 s"
    desk = working()
    desk.tell("close")
    assert desk.leaving() == "everything ordered is done and no more orders will come"


@pytest.mark.fault("definition or order wrong")
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"attempt": "1.1.1.1"}, "its order cannot be read"),
        (
            {
                "attempt": "1.1.1.1",
                "task": "1",
                "point": "1",
                "payload_id": "p9",
                "parameters": 1,
            },
            "payload 'p9' was never defined",
        ),
    ],
)
def test_an_order_that_makes_no_sense_fails_and_blames_the_site(
    fields: Mapping[str, Any], reason: str
) -> None:
    desk = working()
    desk.tell("order", **fields)
    (ended,) = desk.of("attempt_ended")
    assert (ended["state"], ended["blame"]) == ("failed", "site")
    assert reason in ended["reason"]


@pytest.mark.fault("definition or order wrong")
@pytest.mark.parametrize(
    "shape", [Shape(nodes_min=0), Shape(nodes_min=2, nodes_max=1), Shape(gpus_per_node=-1.0)]
)
def test_a_shape_that_makes_no_sense_is_refused_and_stops_nothing(shape: Shape) -> None:
    desk = working(replace(SPEC, shape=shape))
    desk.order(*ids(1))
    (ended,) = desk.of("attempt_ended")
    assert (ended["state"], ended["blame"]) == ("failed", "site")
    assert "its shape" in ended["reason"]
    desk.turn()


@pytest.mark.fault("node lost")
def test_a_node_on_which_unlike_points_die_at_once_is_quarantined() -> None:
    desk = working()
    number = 0
    while not desk.of("node_quarantined") and number < 20:
        desk.order(*ids(*range(number, number + 4)))
        number += 4
        desk.turn()
        for node, attempt in desk.runs()[-4:]:
            bad = {"state": "failed", "blame": "point", "reason": "exit code 1"}
            desk.end(node, attempt, **(bad if node == 0 else {}), duration_s=1.0)
        desk.turn()
    (found,) = desk.of("node_quarantined")
    assert found["node"] == "n0"
    before = len(desk.runs())
    desk.order(*ids(100, 101))
    desk.turn()
    assert {node for node, _ in desk.runs()[before:]} == {1}


def test_points_that_fail_everywhere_condemn_no_node() -> None:
    desk = working()
    for number in range(0, 40, 4):
        desk.order(*ids(*range(number, number + 4)))
        desk.turn()
        for node, attempt in desk.runs()[-4:]:
            desk.end(node, attempt, "failed", blame="point", reason="no", duration_s=0.1)
    assert desk.of("node_quarantined") == []


def test_slot_seconds_add_up_what_was_there_and_what_was_used() -> None:
    desk = working()
    desk.order(*ids(1))
    desk.turn()
    desk.turn(10)
    desk.end(0, "1.1.1.1")
    desk.turn(30)
    desk.conductor.finish("done", desk.now)
    assert desk.of("allocation_ended") == [
        {"reason": "done", "slot_seconds": 160.0, "busy_slot_seconds": 10.0}
    ]


def test_output_of_an_ended_attempt_is_relayed_once_when_asked_for() -> None:
    desk = working()
    desk.order(*ids(1))
    desk.turn()
    desk.end(0, "1.1.1.1")
    desk.end(0, "1.1.1.1", stdout="not asked for")
    desk.tell("send_output", attempt="1.1.1.1")
    assert desk.sent[-1] == (0, "send_output", {"attempt": "1.1.1.1"})
    desk.end(0, "1.1.1.1", stdout="here")
    assert [fields.get("stdout") for fields in desk.of("attempt_ended")] == [None, "here"]


MPI = PayloadSpec("mpi", "true", shape=Shape(nodes_min=2, nodes_max=2, start="mpi"))
MPI_ATTEMPT = "1.1.1.1"


def mpi_desk() -> Desk:
    """An MPI payload on two nodes, of which the first has made its place ready."""
    desk = working(MPI)
    desk.order(MPI_ATTEMPT, payload="mpi")
    desk.turn()
    desk.say(0, "ready", attempt=MPI_ATTEMPT)
    return desk


def test_ranks_are_launched_once_and_only_when_every_node_is_ready() -> None:
    desk = mpi_desk()
    assert desk.launcher.started == []
    desk.say(1, "ready", attempt=MPI_ATTEMPT)
    assert desk.launcher.started == [MPI_ATTEMPT]
    desk.conductor.launch_ended(LaunchEnd(MPI_ATTEMPT, 0))
    told = [(node, fields["code"]) for node, kind, fields in desk.sent if kind == "launch_ended"]
    assert told == [(0, 0), (1, 0)]


@pytest.mark.parametrize("word", ["stop", "drain"])
def test_ranks_of_a_stopped_payload_are_never_launched(word: str) -> None:
    desk = mpi_desk()
    if word == "stop":
        desk.tell("stop", attempt=MPI_ATTEMPT, outcome="pruned", reason="enough")
    else:
        desk.tell("drain", reason="enough", now=True)
    desk.say(1, "ready", attempt=MPI_ATTEMPT)
    assert desk.launcher.started == []
    told = [
        (node, fields.get("code")) for node, kind, fields in desk.sent if kind == "launch_ended"
    ]
    assert told == [(0, None), (1, None)]


def test_launcher_is_ended_when_one_of_its_nodes_is_lost() -> None:
    desk = mpi_desk()
    desk.say(1, "ready", attempt=MPI_ATTEMPT)
    desk.conductor.node_lost(1, "it was killed", desk.now)
    assert desk.launcher.aborted == [MPI_ATTEMPT]
    assert (0, "stop") in [(node, kind) for node, kind, _ in desk.sent]


def fail_to_launch(desk: Desk, number: int) -> bool:
    """Order an attempt whose launcher fails before a rank begins; False if it is held back."""
    (attempt,) = ids(number)
    desk.order(attempt, payload="mpi")
    desk.turn()
    if attempt not in {started for _, started in desk.runs()}:
        return False
    for node in (0, 1):
        desk.say(node, "ready", attempt=attempt)
    desk.conductor.launch_ended(LaunchEnd(attempt, 1, "no such partition"))
    for node in (0, 1):
        desk.end(node, attempt, "failed", blame="site", reason="the MPI launcher ended")
    return True


@pytest.mark.fault("launcher broken")
def test_launcher_that_fails_is_called_ever_more_seldom() -> None:
    desk = working(MPI)
    began, called = desk.now, []
    for number in range(120):
        if fail_to_launch(desk, number):
            called.append(desk.now - began)
        else:
            desk.tell("stop", attempt=ids(number)[0], reason="to order another")
        desk.turn(1.0)
    assert called == [0.0, 2.0, 6.0, 14.0, 30.0, 62.0]


@pytest.mark.fault("launcher broken")
def test_what_waits_already_when_the_launcher_fails_is_held_back_as_well() -> None:
    desk = working(MPI)
    desk.order(*ids(1, 2, 3, 4, 5, 6), payload="mpi")  # of which two fit at a time
    desk.turn()
    tried: list[str] = []
    for passed in (0.0, 0.5, 1.5, 0.0, 3.0, 1.0):
        running = [attempt for node, attempt in desk.runs() if node == 0][len(tried) :]
        for attempt in running:
            tried.append(attempt)
            for node in (0, 1):
                desk.say(node, "ready", attempt=attempt)
            desk.conductor.launch_ended(LaunchEnd(attempt, 1, "no such partition"))
            for node in (0, 1):
                desk.end(node, attempt, "failed", blame="site", reason="the MPI launcher ended")
        desk.turn(passed)
    assert tried == list(ids(1, 2, 3, 4))  # at 0 and 2 s; the next after a pause of 4 s, at 6 s
    assert [attempt for node, attempt in desk.runs() if node == 0][4:] == list(ids(5, 6))


@pytest.mark.fault("launcher broken")
def test_what_is_held_back_can_be_stopped() -> None:
    desk = working(MPI)
    desk.order(*ids(1, 2, 3), payload="mpi")
    desk.turn()
    for node in (0, 1):
        desk.say(node, "ready", attempt=ids(1)[0])
    desk.conductor.launch_ended(LaunchEnd(ids(1)[0], 1, "no such partition"))
    for node in (0, 1):
        desk.end(node, ids(1)[0], "failed", blame="site", reason="the MPI launcher ended")
    desk.tell("stop", attempt=ids(3)[0], reason="enough")
    assert desk.of("attempt_ended")[-1]["attempt"] == ids(3)[0]
    desk.turn(3.0)
    assert ids(3)[0] not in {attempt for _, attempt in desk.runs()}


@pytest.mark.fault("launcher broken")
def test_what_is_held_back_runs_after_the_pause_and_a_sound_call_ends_all_pauses() -> None:
    desk = working(MPI)
    for number in (1, 2):
        assert fail_to_launch(desk, number) is (number == 1)
    desk.turn(2.0)
    assert (0, ids(2)[0]) in desk.runs()
    for node in (0, 1):
        desk.say(node, "ready", attempt=ids(2)[0])
    desk.say(0, "attempt_started", attempt=ids(2)[0])
    for node in (0, 1):
        desk.end(node, ids(2)[0])
    assert fail_to_launch(desk, 3)
    desk.turn(2.0)
    assert fail_to_launch(desk, 4), "the pauses begin anew"


@pytest.mark.fault("launcher broken")
def test_what_is_held_back_is_handed_back_by_a_drain_and_others_run_meanwhile() -> None:
    desk = working(MPI)
    desk.tell("define", **to_fields(SPEC))
    fail_to_launch(desk, 1)
    assert not fail_to_launch(desk, 2)
    desk.order(*ids(3))
    desk.turn()
    assert desk.runs()[-1] == (0, ids(3)[0])
    desk.tell("drain", reason="enough")
    (returned,) = desk.of("handed_back")
    assert list(returned["attempts"]) == list(ids(2))


def test_replaced_agents_join_again_and_what_ran_was_preempted_by_the_site() -> None:
    desk = working()
    desk.order(*ids(1))
    desk.turn()
    desk.conductor.agents_replaced("the launcher was killed", desk.now)
    (ended,) = desk.of("attempt_ended")
    assert (ended["state"], ended["blame"]) == ("preempted", "site")
    desk.order(*ids(2))
    desk.turn(1.0)
    assert desk.runs() == [(0, "1.1.1.1")], "there is nobody to run it yet"
    desk.join(0, 1)
    desk.turn(1.0)
    assert (0, "1.2.1.1") in desk.runs()
    assert [node for node, kind, _ in desk.sent if kind == "define"] == [0, 0]
    assert desk.of("node_lost") == []


def test_replaced_agents_that_do_not_come_leave_their_node_lost() -> None:
    desk = working()
    desk.turn(500.0)
    desk.conductor.agents_replaced("the launcher was killed", desk.now)
    desk.join(1)
    desk.turn(119.0)
    assert desk.of("node_lost") == []
    desk.turn(2.0)
    assert [item["node"] for item in desk.of("node_lost")] == ["0"]
