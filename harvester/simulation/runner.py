"""A payload runner under the fake clock: reads real order logs, writes real event logs.

Follows the file protocol as the real leader does (claim, incarnation, epochs, acknowledgements,
resends, drain), with payloads that are nothing but a duration. Its progress lies in checkpoint
files, so a resumed payload goes on where the order's checkpoint says.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from harvester.simulation.agenda import Agenda, Event
from harvester.simulation.cluster import JobStart
from harvester.simulation.event_log import EventLog
from harvester.simulation.workload import SimulatedPayload, Workload
from payload_runner import protocol
from payload_runner.files import Files
from payload_runner.logfile import LogReader, LogWriter, Record
from payload_runner.placement import Placement, Request
from payload_runner.protocol import AllocationPlan, FileRef, Order, PayloadSpec, SpoolPaths

_LEASE_LOOK_S = 10.0
# What any payload does on a bad node; to the runner it looks like the point's own failure.
_DOOMED = SimulatedPayload(work_s=5.0, loss=None, reason="exit code 1; stderr ends: CUDA error")


@dataclass(slots=True)
class RunningPayload:
    """A payload on its nodes."""

    order: Order
    spec: PayloadSpec
    nature: SimulatedPayload
    nodes: tuple[int, ...]
    started_at: float
    done_before_s: float  # work that its checkpoint brought along
    saved_s: float  # work in the newest checkpoint
    events: list[Event] = field(default_factory=list)

    def done_s(self, now: float) -> float:
        """Seconds of work done in all."""
        return self.done_before_s + now - self.started_at


class SimulatedRunner:
    """One incarnation of an allocation's runner."""

    def __init__(
        self,
        start: JobStart,
        *,
        files: Files,
        spool: SpoolPaths,
        agenda: Agenda,
        workload: Workload,
        poll_s: float = 5.0,
        boot_s: float = 10.0,
        bad_nodes: frozenset[str] = frozenset(),
    ) -> None:
        self._start = start
        self._files = files
        self._spool = spool
        self._paths = spool.allocation(start.tag)
        self._home = self._paths.incarnation(start.job_id, start.restarts)
        self._writer = writer_name(start)
        self._agenda = agenda
        self._workload = workload
        self._bad_nodes = bad_nodes
        self._poll_s = poll_s
        self._alive = True
        self._draining = False
        self._closed = False
        self._epoch = 0
        self._orders_read = 0
        self._looked_at_lease = -_LEASE_LOOK_S
        self._reader: LogReader | None = None
        self._specs: dict[str, PayloadSpec] = {}
        self._waiting: dict[str, Order] = {}
        self._running: dict[str, RunningPayload] = {}
        self._outcomes: dict[str, Record] = {}
        self._busy_s = 0.0
        agenda.after(boot_s, self._guarded(self._boot))

    # --- as the cluster sees it ---

    def kill(self) -> None:
        """End at once; what was not committed is lost."""
        self._alive = False
        for payload in self._running.values():
            _call_off(payload)

    def lose_node(self, index: int) -> None:
        """A node dies: what ran there failed, blamed on the node."""
        self._log.emit(protocol.NodeLost(self._start.node_names[index], "no heartbeat"))
        for payload in list(self._running.values()):
            if index in payload.nodes:
                self._finish(payload, state="failed", blame="node", reason="its node is lost")
        self._placement.remove_node(index)
        self._place()

    # --- life ---

    def _boot(self) -> None:
        try:
            claim = json.dumps({"incarnation": self._home.name}).encode()
            self._files.create_exclusive(self._paths.claim, claim)
        except FileExistsError:
            if not self._is_ours():
                self._leave_silently()
                return
        self._plan = protocol.load_json(
            self._files.read(self._paths.plan, 0, 1 << 20), AllocationPlan
        )
        self._files.make_dir(self._home.root)
        self._files.make_dir(self._home.files)
        clock = self._agenda.clock
        path = self._home.events(self._writer)
        self._log = EventLog(LogWriter(self._files, path, clock.now, clock.monotonic), clock)
        self._began = self._agenda.clock.monotonic()
        self._drain_at = self._began + self._plan.walltime_s - self._plan.drain_margin_s
        self._idle_since = self._began
        self._placement = Placement(self._drain_at - self._began)
        for index, name in enumerate(self._start.node_names):
            self._placement.add_node(index, name, self._plan.node)
        self._placement.settled = True
        self._introduce()
        self._agenda.after(
            self._drain_at - self._began, self._guarded(lambda: self._drain("walltime", now=True))
        )
        self._poll()

    def _is_ours(self) -> bool:
        claimed = json.loads(self._files.read(self._paths.claim, 0, 4096))["incarnation"]
        return str(claimed).rsplit(".", 1)[0] == self._home.name.rsplit(".", 1)[0]

    def _introduce(self) -> None:
        start = self._start
        self._log.emit(
            protocol.Opened(
                version=1,
                tag=start.tag,
                incarnation=self._home.name,
                writer=self._writer,
                host=start.node_names[0],
                runner_version="simulated",
                python="3.9",
            )
        )
        self._log.emit(
            protocol.AllocationStarted(start.node_names, self._plan.node, self._remaining_s())
        )
        self._heartbeat()

    def _heartbeat(self) -> None:
        self._log.emit(
            protocol.Heartbeat(
                epoch=self._epoch,
                orders_read=self._orders_read,
                waiting=len(self._waiting),
                running=len(self._running),
                remaining_s=self._remaining_s(),
                slots=self._placement.slots,
                slots_busy=self._placement.slots_busy,
            )
        )
        self._agenda.after(self._plan.heartbeat_s, self._guarded(self._heartbeat))

    def _poll(self) -> None:
        self._follow_epoch()
        self._read_orders()
        if self._files.exists(self._spool.stop):
            self._drain("STOP", now=False)
        self._place()
        self._log.commit()
        if not self._leave_if_done():
            self._agenda.after(self._poll_s, self._guarded(self._poll))

    def _read_orders(self) -> None:
        reader = self._reader
        if reader is None or not (records := reader.poll().records):
            return
        # Rule 15: the lease is looked at before any order is obeyed.
        self._look_at_lease()
        if self._reader is not reader:
            return
        for record in records:
            self._orders_read = record.seq
            self._obey(record)

    def _follow_epoch(self) -> None:
        if self._agenda.clock.monotonic() - self._looked_at_lease >= _LEASE_LOOK_S:
            self._look_at_lease()

    def _look_at_lease(self) -> None:
        self._looked_at_lease = self._agenda.clock.monotonic()
        names = self._files.listdir(self._spool.leases)
        newest = max((int(name) for name in names if name.isdecimal()), default=0)
        if newest <= self._epoch:
            return
        if self._epoch and self._reader is not None:
            self._log.emit(protocol.Fenced(newest, self._orders_read))
            self._reader = None
        if self._files.exists(self._paths.orders(newest)):
            self._epoch, self._orders_read = newest, 0
            self._reader = LogReader(
                self._files, self._paths.orders(newest), self._agenda.clock.monotonic
            )

    # --- orders ---

    def _obey(self, record: Record) -> None:
        fields = record.fields
        if record.kind == "define":
            spec = protocol.from_fields(PayloadSpec, fields)
            self._specs[spec.payload_id] = spec
        elif record.kind == Order.KIND:
            self._take(protocol.from_fields(Order, fields))
        elif record.kind == "stop":
            self._stop(fields["attempt"], fields["outcome"], fields["reason"])
        elif record.kind == "ack" and fields["writer"] == self._writer:
            self._log.acknowledge(fields["to"])
        elif record.kind == "resend" and fields["writer"] == self._writer:
            self._log.resend(fields["from"], fields["to"])
        elif record.kind == "drain":
            self._drain(fields["reason"], now=fields["now"])
        elif record.kind == "close":
            self._closed = True

    def _take(self, order: Order) -> None:
        if order.attempt in self._outcomes:
            self._log.repeat(self._outcomes[order.attempt])
        elif order.attempt not in self._running and order.attempt not in self._waiting:
            self._waiting[order.attempt] = order
            spec = self._specs[order.payload_id]
            self._placement.add(
                Request(
                    order.attempt,
                    spec.shape,
                    order.expected_s,
                    spec.checkpoint is not None,
                    order.priority,
                )
            )
            self._idle_since = self._agenda.clock.monotonic()

    def _stop(self, attempt: str, outcome: str, reason: str) -> None:
        if attempt in self._running:
            self._finish(self._running[attempt], state=outcome, reason=reason)
        elif self._placement.withdraw(attempt):
            del self._waiting[attempt]
            self._conclude(protocol.AttemptEnded(attempt, outcome, reason=reason))

    def _drain(self, reason: str, *, now: bool) -> None:
        if not self._draining:
            self._draining = True
            self._log.emit(protocol.Draining(reason))
        if self._waiting:
            self._log.emit(protocol.HandedBack(tuple(self._waiting), reason))
            self._waiting.clear()
            self._placement.withdraw_all()
        if now:
            for payload in list(self._running.values()):
                self._cut(payload)
        self._log.commit()

    # --- payloads ---

    def _place(self) -> None:
        step = self._placement.step(self._agenda.clock.monotonic(), self._remaining_s())
        for attempt, reason in step.refuse:
            del self._waiting[attempt]
            self._log.emit(protocol.HandedBack((attempt,), reason))
        for assignment in step.start:
            order = self._waiting.pop(assignment.attempt)
            nodes = tuple(slot.node for slot in assignment.slots)
            self._spawn(order, self._specs[order.payload_id], nodes)
        for attempt, index in step.take_back:
            # Loans make nothing faster here, and leave at once.
            self._placement.leave(attempt, index)

    def _spawn(self, order: Order, spec: PayloadSpec, nodes: tuple[int, ...]) -> None:
        done = self._progress_in(order.checkpoint)
        now = self._agenda.clock.monotonic()
        names = tuple(self._start.node_names[node] for node in nodes)
        nature = _DOOMED if self._bad_nodes.intersection(names) else self._workload(order)
        payload = RunningPayload(order, spec, nature, nodes, now, done, done)
        self._running[order.attempt] = payload
        payload.events.append(
            self._agenda.after(
                max(0.0, nature.work_s - done), self._guarded(lambda: self._complete(payload))
            )
        )
        self._log.emit(
            protocol.AttemptStarted(order.attempt, names, resumed_from=order.checkpoint_of)
        )
        self._checkpoint_later(payload)

    def _complete(self, payload: RunningPayload) -> None:
        nature = payload.nature
        if nature.loss is None:
            self._finish(payload, state="failed", blame=nature.blame, reason=nature.reason)
        else:
            self._finish(payload, state="succeeded", loss=nature.loss)
        self._place()

    def _cut(self, payload: RunningPayload) -> None:
        self._save(payload)
        self._finish(payload, state="timed_out", blame="walltime", reason="end of the allocation")

    def _finish(self, payload: RunningPayload, **outcome: Any) -> None:  # fields of AttemptEnded
        _call_off(payload)
        duration = self._agenda.clock.monotonic() - payload.started_at
        self._busy_s += duration * _gpus(payload)
        del self._running[payload.order.attempt]
        self._placement.release(payload.order.attempt)
        self._conclude(
            protocol.AttemptEnded(
                payload.order.attempt,
                duration_s=duration,
                progress=payload.saved_s > payload.done_before_s,
                **outcome,
            )
        )

    def _conclude(self, ended: protocol.AttemptEnded) -> None:
        self._idle_since = self._agenda.clock.monotonic()
        self._outcomes[ended.attempt] = self._log.emit(ended)
        self._log.commit()

    # --- checkpoints ---

    def _checkpoint_later(self, payload: RunningPayload) -> None:
        rule = payload.spec.checkpoint
        if rule is not None:
            save = self._guarded(lambda: self._save_and_go_on(payload))
            payload.events.append(self._agenda.after(rule.interval_s, save))

    def _save_and_go_on(self, payload: RunningPayload) -> None:
        self._save(payload)
        self._checkpoint_later(payload)

    def _save(self, payload: RunningPayload) -> None:
        done = payload.done_s(self._agenda.clock.monotonic())
        if payload.spec.checkpoint is None or done <= payload.saved_s:
            return
        content = json.dumps({"done_s": done}).encode()
        path = self._home.files / f"{payload.order.attempt}.{self._log.last_seq + 1}.ckpt"
        self._files.replace(path, content)
        ref = FileRef(
            str(path.relative_to(self._spool.root)),
            len(content),
            hashlib.sha256(content).hexdigest(),
        )
        payload.saved_s = done
        self._log.emit(protocol.CheckpointSaved(payload.order.attempt, ref))
        self._log.commit()

    def _progress_in(self, checkpoint: FileRef | None) -> float:
        if checkpoint is None:
            return 0.0
        content = self._files.read(self._spool.committed(checkpoint), 0, checkpoint.size)
        return float(json.loads(content)["done_s"])

    # --- the log and the end ---

    def _remaining_s(self) -> float:
        return max(0.0, self._drain_at - self._agenda.clock.monotonic())

    def _leave_if_done(self) -> bool:
        if self._running or self._waiting:
            return False
        idle = self._agenda.clock.monotonic() - self._idle_since
        if not (self._draining or self._closed or idle >= self._plan.idle_exit_s):
            return False
        lifetime = self._agenda.clock.monotonic() - self._began
        slots = len(self._start.node_names) * self._plan.node.gpus
        self._log.emit(
            protocol.AllocationEnded("nothing more to do", lifetime * slots, self._busy_s)
        )
        self._log.close()
        self._leave_silently()
        return True

    def _leave_silently(self) -> None:
        self._alive = False
        self._agenda.after(0.0, self._start.done)

    def _guarded(self, happen: Callable[[], object]) -> Callable[[], None]:
        """The same, but not after this runner's end."""

        def happen_if_alive() -> None:
            if self._alive:
                happen()

        return happen_if_alive


def writer_name(start: JobStart) -> str:
    """The name of an incarnation's event log's writer."""
    return f"0-{start.job_id}-{start.restarts}"


def _gpus(payload: RunningPayload) -> float:
    return payload.spec.shape.gpus_per_node * len(payload.nodes)


def _call_off(payload: RunningPayload) -> None:
    for event in payload.events:
        event.call_off()
