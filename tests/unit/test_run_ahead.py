"""Payloads that agents have ahead of need: how many, who begins when, and what is handed back."""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from payload_runner.agent_queue import AgentQueue
from payload_runner.placement import Slot
from payload_runner.protocol import NodeShape, Order, PayloadSpec, Shape, from_fields, to_fields
from payload_runner.runahead import QUEUE_LIMIT, RunAhead
from tests.leader_desk import PLAN, SPEC, Desk, ids, working

ONE_GPU = Shape()
ONE_NODE = replace(PLAN, nodes=1)


def ahead_of(desk: Desk) -> list[tuple[int, str]]:
    """What was queued: (node, attempt)."""
    return [(n, f["order"]["attempt"]) for n, kind, f in desk.sent if kind == "queue"]


def busy(count: int = 40, duration_s: float = 0.1) -> Desk:
    """One node whose two slots are busy and whose queue is filled."""
    desk = working(plan=ONE_NODE)
    desk.order(*ids(*range(1, count + 1)))
    desk.turn()
    desk.now += duration_s
    desk.end(0, "1.1.1.1")
    desk.turn()
    return desk


def test_nothing_is_queued_before_a_duration_is_known() -> None:
    desk = working(plan=ONE_NODE)
    desk.order(*ids(1, 2, 3, 4))
    desk.turn()
    assert ahead_of(desk) == []


def test_as_much_is_queued_as_should_begin_while_a_word_is_on_its_way() -> None:
    desk = busy()
    # Two slots, 0.25 s, 0.1 s each.
    assert ahead_of(desk) == [(0, f"1.{number}.1.1") for number in (4, 5, 6, 7, 8)]


def test_payloads_that_take_long_are_not_queued() -> None:
    assert ahead_of(busy(duration_s=60.0)) == []


def test_the_queue_of_a_node_has_an_end() -> None:
    ahead = RunAhead(ONE_NODE)
    ahead.started(0, ONE_GPU)
    ahead.ended(0, ONE_GPU, 0.0)
    for _ in range(1000):
        ahead.started(0, ONE_GPU)
    assert ahead.wanted() == [(0, ONE_GPU, QUEUE_LIMIT)]


@pytest.mark.parametrize(
    "shape", [Shape(nodes_min=2, nodes_max=2), Shape(start="processes"), Shape(nodes_max=3)]
)
def test_only_single_processes_on_one_node_are_queued(shape: Shape) -> None:
    ahead = RunAhead(ONE_NODE)
    for _ in range(3):
        ahead.started(0, shape)
    ahead.ended(0, shape, 0.01)
    assert ahead.wanted() == []


def test_who_follows_has_the_slot_of_who_ended() -> None:
    desk = busy()
    placement = desk.conductor._placement
    desk.end(0, "1.2.1.1", next="1.4.1.1")
    assert "next" not in desk.of("attempt_ended")[-1]
    assert placement.slots_busy == 2.0
    placement.validate()
    # Its start is told by that word, behind the end.
    told = [(kind, fields["attempt"]) for kind, fields in desk.events if "attempt" in fields]
    assert told[-2:] == [("attempt_ended", "1.2.1.1"), ("attempt_started", "1.4.1.1")]
    assert desk.of("attempt_started")[-1]["gpus"] == ["n0:1"]
    desk.end(0, "1.3.1.1")
    desk.end(0, "1.4.1.1")
    placement.validate()


def test_what_was_on_its_way_when_a_slot_fell_free_begins_there_if_it_still_waits() -> None:
    desk = busy()
    desk.sent.clear()
    desk.end(0, "1.2.1.1")
    (node, kind, fields) = desk.sent[0]
    assert (node, kind, fields["order"]["attempt"]) == (0, "run", "1.4.1.1")
    assert fields["queued"] is True
    # Over there it had begun already, in the slot of the other one.
    desk.end(0, "1.3.1.1", next="1.4.1.1")
    desk.conductor._placement.validate()
    desk.end(0, "1.4.1.1")
    assert Counter(fields["attempt"] for fields in desk.of("attempt_ended")) == Counter(
        ids(1, 2, 3, 4)
    )


def test_a_drain_asks_for_what_is_queued_and_hands_it_back() -> None:
    desk = busy(count=9)
    desk.tell("drain", reason="maintenance", now=False)
    assert [kind for _, kind, _ in desk.sent][-1] == "withdraw"
    assert desk.leaving() is None
    desk.say(0, "unstarted", attempts=[attempt for _, attempt in ahead_of(desk)])
    back = [attempt for fields in desk.of("handed_back") for attempt in fields["attempts"]]
    assert sorted(back) == sorted(ids(4, 5, 6, 7, 8, 9))
    for attempt in ids(2, 3):
        desk.end(0, attempt)
    assert desk.leaving() == "maintenance"


def test_a_queue_that_stands_still_is_asked_back_and_runs_elsewhere_in_its_order() -> None:
    desk = busy(count=6)
    desk.turn(2.5)
    assert [(node, kind) for node, kind, _ in desk.sent][-1] == (0, "withdraw")
    desk.say(0, "unstarted", attempts=list(ids(4, 5, 6)))
    desk.end(0, "1.2.1.1")
    desk.turn()
    assert desk.runs()[-1] == (0, "1.4.1.1")


def test_a_queue_that_became_too_long_is_asked_back_although_it_moves() -> None:
    desk = busy(count=60, duration_s=0.001)  # 0.25 s of these are more than there are
    assert len(ahead_of(desk)) == 57
    running, waiting = "1.2.1.1", deque(attempt for _, attempt in ahead_of(desk))
    for _ in range(4):  # from here on each takes a second
        desk.turn(1.0)
        following = waiting.popleft()
        desk.end(0, running, next=following)
        running = following
        if desk.sent[-1][1] == "withdraw":
            break
    assert [kind for _, kind, _ in desk.sent][-1] == "withdraw"
    desk.say(0, "unstarted", attempts=list(waiting))
    desk.turn()
    assert len(ahead_of(desk)) < 60  # of what takes a second little is queued


def test_nothing_begins_or_is_queued_on_a_node_whose_agent_leaves() -> None:
    desk = busy()
    queued = [attempt for _, attempt in ahead_of(desk)]
    desk.sent.clear()
    desk.say(0, "closing")
    desk.say(0, "unstarted", attempts=queued)
    desk.turn(1.0)
    desk.end(0, "1.2.1.1", "preempted", blame="site")
    desk.turn(1.0)
    assert (desk.runs(), ahead_of(desk)) == ([], [])


def test_a_stopped_attempt_that_is_queued_is_ended_by_its_node() -> None:
    desk = busy()
    desk.tell("stop", attempt="1.4.1.1", outcome="pruned", reason="no hope")
    assert desk.sent[-1][:2] == (0, "stop")
    desk.end(0, "1.4.1.1", "pruned", reason="no hope")
    assert desk.of("attempt_ended")[-1]["state"] == "pruned"
    desk.conductor._placement.validate()


def test_a_stop_that_crosses_what_is_handed_back_is_not_lost() -> None:
    desk = busy(count=6)
    desk.turn(2.5)
    assert desk.sent[-1][:2] == (0, "withdraw")
    # The node has let go of it already, and ignores the word.
    desk.tell("stop", attempt="1.4.1.1", outcome="pruned", reason="no hope")
    desk.say(0, "unstarted", attempts=list(ids(4, 5, 6)))
    assert desk.of("attempt_ended")[-1]["attempt"] == "1.4.1.1"
    assert desk.of("attempt_ended")[-1]["state"] == "pruned"
    desk.end(0, "1.2.1.1")
    desk.turn()
    assert desk.runs()[-1] == (0, "1.5.1.1")
    desk.conductor._placement.validate()


def test_what_a_lost_node_had_queued_fails_by_its_fault() -> None:
    desk = busy(count=6)
    desk.conductor.node_lost(0, "gone", desk.now)
    lost = {fields["attempt"]: fields.get("blame") for fields in desk.of("attempt_ended")[1:]}
    assert lost == dict.fromkeys(ids(2, 3, 4, 5, 6), "node")


def test_nothing_is_queued_where_another_shape_has_reserved_the_node() -> None:
    desk = working(plan=ONE_NODE)
    both = PayloadSpec("p2", "true", shape=Shape(gpus_per_node=2), expected_s=1.0)
    desk.tell("define", **to_fields(both))
    desk.order(*ids(1, 2))
    desk.turn()
    desk.order("1.50.1.1", payload="p2", expected_s=1.0)
    desk.order(*ids(*range(3, 20)))
    desk.now += 0.1
    desk.end(0, "1.1.1.1")
    desk.turn()
    assert ahead_of(desk) == []


def test_a_queue_gives_the_first_of_a_shape() -> None:
    queue = AgentQueue()
    other = PayloadSpec("p2", "true", shape=Shape(gpus_per_node=2))
    queue.add(Order("1.1.1.1", "1", "1", "p2", {}), other)
    queue.add(Order("1.2.1.1", "1", "2", "p1", {}), SPEC)
    queue.add(Order("1.3.1.1", "1", "3", "p1", {}), SPEC)
    found = queue.take(ONE_GPU)
    assert found is not None
    assert found[0].attempt == "1.2.1.1"
    assert queue.remove("1.3.1.1")
    assert not queue.remove("1.3.1.1")
    assert queue.take(ONE_GPU) is None
    assert queue.empty() == ["1.1.1.1"]
    assert len(queue) == 0


@dataclass
class Side:
    """An agent by its rules, behind channels that keep the order and may take their time."""

    node: int
    inbox: deque[tuple[str, dict[str, Any]]] = field(default_factory=deque)
    outbox: deque[tuple[str, dict[str, Any]]] = field(default_factory=deque)
    running: dict[str, Slot] = field(default_factory=dict)
    queue: AgentQueue = field(default_factory=AgentQueue)
    began: list[str] = field(default_factory=list)

    def hear(self) -> None:
        kind, fields = self.inbox.popleft()
        if kind == "queue":
            self.queue.add(from_fields(Order, fields["order"]), SPEC)
        elif kind == "withdraw":
            self.outbox.append(("unstarted", {"attempts": self.queue.empty()}))
        elif kind == "run":
            attempt = fields["order"]["attempt"]
            waited = self.queue.remove(attempt)
            if attempt not in self.running and (waited or not fields.get("queued")):
                self.begin(attempt, from_fields(Slot, fields["slot"]))

    def begin(self, attempt: str, slot: Slot) -> None:
        self.began.append(attempt)
        self.running[attempt] = slot
        used = [share.index for taken in self.running.values() for share in taken.gpus]
        assert len(used) == len(set(used)), f"a GPU is given twice: {self.running}"

    def end(self, attempt: str, *, good: bool) -> None:
        slot = self.running.pop(attempt)
        fields = {"attempt": attempt, "state": "succeeded" if good else "failed", "blame": "point"}
        following = self.queue.take(ONE_GPU) if good else None
        if not good and self.queue:
            self.outbox.append(("unstarted", {"attempts": self.queue.empty()}))
        if following is not None:
            fields["next"] = following[0].attempt
            self.begin(following[0].attempt, slot)
        self.outbox.append(("attempt_ended", fields))


@pytest.mark.parametrize("seed", range(60))
def test_whatever_crosses_on_the_way_nothing_runs_twice_and_no_slot_is_given_twice(
    seed: int,
) -> None:
    chance = random.Random(seed)
    desk = working(plan=replace(PLAN, node=NodeShape(gpus=3, cores=6), walltime_s=1e6))
    sides = [Side(0), Side(1)]
    count = 120
    desk.order(*ids(*range(1, count + 1)))
    for _ in range(20 * count):
        side = chance.choice(sides)
        for node, kind, fields in desk.sent:
            sides[node].inbox.append((kind, fields))
        desk.sent.clear()
        act = chance.random()
        if act < 0.35 and side.inbox:
            side.hear()
        elif act < 0.6 and side.outbox:
            kind, fields = side.outbox.popleft()
            desk.conductor.message(side.node, kind, fields, desk.now)
            desk.conductor._placement.validate()
        elif act < 0.8 and side.running:
            side.end(chance.choice(list(side.running)), good=chance.random() < 0.95)
        else:
            desk.turn(chance.choice([0.0, 0.01, 0.1, 3.0]))
        if len(desk.of("attempt_ended")) == count:
            break
    began = Counter(sides[0].began + sides[1].began)
    assert began == Counter(ids(*range(1, count + 1))), f"seed {seed}"
    ended = Counter(fields["attempt"] for fields in desk.of("attempt_ended"))
    assert ended == began, f"seed {seed}"
