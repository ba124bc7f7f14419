"""A leader's conductor with its events and messages on the table; for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from payload_runner.conductor import Conductor
from payload_runner.incarnation import History
from payload_runner.logfile import Record
from payload_runner.placement import Slot
from payload_runner.protocol import (
    AllocationPlan,
    CheckpointRule,
    NodeShape,
    PayloadSpec,
    parse_event,
    to_fields,
)

PLAN = AllocationPlan(
    tag="haaaaa-bbbbbb",
    spool_id="aaaaa",
    nodes=2,
    node=NodeShape(gpus=2, cores=4),
    walltime_s=1000,
    batch_system="local",
    filesystem="local",
    idle_exit_s=50.0,
)
SPEC = PayloadSpec("p1", "true", checkpoint=CheckpointRule(("ckpt",)))


@dataclass
class Launcher:
    """Notes the launcher calls of MPI payloads."""

    started: list[str] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)

    def start(self, attempt: str, slots: Sequence[Slot]) -> None:
        self.started.append(attempt)

    def abort(self, attempt: str) -> None:
        self.aborted.append(attempt)


@dataclass
class Desk:
    """A conductor with its events and messages on the table."""

    plan: AllocationPlan = PLAN
    history: History = field(default_factory=History)
    now: float = 100.0
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    sent: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)
    launcher: Launcher = field(default_factory=Launcher)
    seq: int = 0

    def __post_init__(self) -> None:
        self.conductor = Conductor(
            self.plan,
            self.history,
            self.emit,
            lambda node, kind, fields: self.sent.append((node, kind, fields)),
            self.launcher,
            now=self.now,
            end=self.now + self.plan.walltime_s,
        )

    def emit(self, kind: str, fields: dict[str, Any], *, urgent: bool = False) -> None:
        if kind != "heartbeat":
            self.events.append((kind, fields))
        assert parse_event(kind, fields) is not None

    def tell(self, kind: str, **fields: Any) -> None:
        self.seq += 1
        self.conductor.order(Record(self.seq, kind, 0.0, fields, 0, 0), self.now)

    def order(self, *attempts: str, payload: str = "p1", **more: Any) -> None:
        for attempt in attempts:
            point = attempt.split(".")[1]
            fields = {"task": "1", "point": point, "payload_id": payload, "parameters": {}}
            self.tell("order", attempt=attempt, **fields, **more)

    def join(self, *nodes: int) -> None:
        for node in nodes:
            shape = to_fields(self.plan.node)
            hello = {"node": node, "host": f"n{node}", "shape": shape, "pid": 1}
            self.conductor.message(node, "hello", hello, self.now)

    def say(self, node: int, kind: str, **fields: Any) -> None:
        self.conductor.message(node, kind, fields, self.now)

    def turn(self, passed: float = 0.0) -> None:
        self.now += passed
        self.conductor.turn(self.now)

    def end(self, node: int, attempt: str, state: str = "succeeded", **more: Any) -> None:
        fields = {"attempt": attempt, "state": state, **more}
        self.conductor.message(node, "attempt_ended", fields, self.now)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [fields for found, fields in self.events if found == kind]

    def runs(self) -> list[tuple[int, str]]:
        return [(n, f["order"]["attempt"]) for n, kind, f in self.sent if kind == "run"]

    def leaving(self) -> str | None:
        return self.conductor.leaving(self.now)


def working(spec: PayloadSpec = SPEC, plan: AllocationPlan = PLAN) -> Desk:
    desk = Desk(plan)
    desk.tell("define", **to_fields(spec))
    desk.join(*range(plan.nodes))
    desk.turn()
    return desk


def ids(*numbers: int) -> tuple[str, ...]:
    return tuple(f"1.{number}.1.1" for number in numbers)
