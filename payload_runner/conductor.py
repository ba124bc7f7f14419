"""What the leader decides: which attempts are known, where they run, what is told to whom.

No I/O and no clock: events go out through ``emit``, messages to agents through ``send``, and
``now`` (monotonic seconds) comes in with every call. ``leader`` connects it to the world.
"""

from __future__ import annotations

from typing import Callable, Dict, Iterable, List, Optional, Set

from payload_runner.attempts import (
    Drain,
    Fields,
    Health,
    Launch,
    LaunchEnd,
    Launcher,
    Live,
    gpu_names,
    request_for,
)
from payload_runner.capacity import shape_problem
from payload_runner.elastic import is_elastic
from payload_runner.incarnation import History
from payload_runner.launch_pause import LaunchPause
from payload_runner.logfile import Record
from payload_runner.placement import Assignment, Placement
from payload_runner.protocol import (
    AllocationEnded,
    AllocationPlan,
    AllocationStarted,
    AttemptEnded,
    AttemptStarted,
    BadRecord,
    Draining,
    Heartbeat,
    NodeLost,
    NodeQuarantined,
    NodeShape,
    Order,
    PayloadSpec,
    check_attempt,
    from_fields,
    to_fields,
)
from payload_runner.queueing import Queueing
from payload_runner.resizing import Resizing
from payload_runner.settled import Emit, Settled
from payload_runner.telling import Telling
from payload_runner.usage import Usage
from payload_runner.walltime import stopping_grace

JOIN_GRACE_S = 5.0  # after the first agent, the others are waited for this long before work begins
JOIN_LIMIT_S = 120.0  # an agent that has not come by then does not come
STEP_EVERY_S = 1.0  # while payloads wait: time passes, and with it what can still finish
# The harvester wants to know soon which orders are read; each word costs a file commit.
HEARTBEAT_MIN_S = {"local": 0.2, "shared": 2.0}
STRAGGLERS_S = 5.0  # attempts that outlast a drain by this much (or half the margin) are given up


class Conductor:
    """The leader's state and its decisions."""

    def __init__(
        self,
        plan: AllocationPlan,
        history: History,
        emit: Emit,
        send: Callable[[int, str, Fields], None],
        launcher: Launcher,
        *,
        now: float,
        end: float,
    ) -> None:
        """``end``: when the batch system ends the job."""
        self.plan = plan
        self.drain: Optional[Drain] = None
        self.epoch = 0  # of the order log that is read
        self.orders_read = 0  # its last record
        self._emit = emit
        self._send = send
        self._launcher = launcher
        self._end = end
        self._began = now
        self._expected_since = now  # agents that have not joined
        self._placement = Placement(end - now - plan.drain_margin_s)
        self._waiting = LaunchPause(self._placement)
        self._specs: Dict[str, PayloadSpec] = {}
        self._telling = Telling(self._specs, send)
        self._grace_s = 0.0
        self._hosts: Dict[int, str] = {}
        self._resizing = Resizing(self._placement, emit, send, self._hosts)
        self._shape = plan.node
        self._gone: Set[int] = set()
        self._first_joined: Optional[float] = None
        self._opened = False
        self._orders: Dict[str, Order] = {}  # waiting
        self._live: Dict[str, Live] = {}
        self._queueing = Queueing(
            plan, self._placement, self._orders, self._live, self._specs, self._telling
        )
        self._settled = Settled(emit, history.outcomes)
        self._health = Health()
        self._closed = False
        self._busy_at = now
        self._dirty = False
        self._stepped = now
        self._heartbeat_at = now
        self._told_orders = 0
        self._usage = Usage(self._placement, now)
        for attempt in history.unfinished():
            reason = "the batch system started the job again"
            cut_short = {"state": "preempted", "blame": "site", "reason": reason}
            self._settled.end(attempt, cut_short)

    # --- what is asked ---

    @property
    def opened(self) -> bool:
        """Whether work has begun."""
        return self._opened

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits to."""
        return bool(self._live or self._orders)

    def are_all(self, nodes: Iterable[int]) -> bool:
        """Whether no other node than these is at work."""
        return bool(self._hosts) and self._hosts.keys() <= self._gone.union(nodes)

    def drain_point(self) -> float:
        """When what runs is warned and nothing starts any more."""
        return self._end - self.plan.drain_margin_s - self._grace_s

    def leaving(self, now: float) -> Optional[str]:
        """Why the allocation is over now; None while it is not."""
        if len(self._gone) >= self.plan.nodes:
            return "every node is lost"
        if self._live:
            return None
        if self.drain is not None:
            return self.drain.reason
        if self._orders:
            return None
        if self._closed:
            return "everything ordered is done and no more orders will come"
        if self._opened and now - self._busy_at >= self.plan.idle_exit_s:
            return f"there was nothing to do for {self.plan.idle_exit_s:g} s"
        return None

    def wait_s(self, now: float) -> float:
        """Seconds until :meth:`turn` is due although nothing comes."""
        due = [self._heartbeat_at, self.drain_point() if self.drain is None else now + 1.0]
        if self._orders or not self._opened:
            due.append(self._stepped + STEP_EVERY_S)
        if not self._live and not self._orders:
            due.append(self._busy_at + self.plan.idle_exit_s)
        if self.orders_read != self._told_orders:
            due.append(self._next_word())
        return max(0.0, min(due) - now)

    # --- orders ---

    def new_epoch(self, epoch: int) -> None:
        """Orders now come from another log."""
        self.epoch = epoch
        self.orders_read = 0

    def order(self, record: Record, now: float) -> None:
        """One record of the order log besides ``ack`` and ``resend``."""
        self.orders_read = record.seq
        handlers: Dict[str, Callable[[Fields, float], None]] = {
            "define": self._define,
            "order": self._ordered,
            "stop": self._stop,
            "drain": self._drain_ordered,
            "close": self._close,
            "send_output": self._send_output,
        }
        handler = handlers.get(record.kind)
        if handler is not None:
            handler(record.fields, now)

    def start_drain(
        self, reason: str, now: float, *, outcome: str = "preempted", within_s: Optional[float]
    ) -> None:
        """Start nothing more; with ``within_s``, end what runs within that many seconds.

        Called again it can only hasten.
        """
        deadline = None if within_s is None else now + max(0.0, within_s)
        before = self.drain
        if before is None:
            self.drain = Drain(reason, outcome, deadline)
            self._emit(Draining.KIND, to_fields(Draining(reason)), urgent=True)
            self._hand_back(self._waiting.withdraw_all(), reason)
            self._queueing.ask_back()
        elif deadline is None or (before.deadline is not None and before.deadline <= deadline):
            return
        else:
            self.drain = Drain(before.reason, outcome, deadline)
        if deadline is not None:
            self._tell_drain(reason, deadline - now, outcome)

    # --- agents ---

    def message(self, node: int, kind: str, fields: Fields, now: float) -> None:
        """One message of an agent."""
        if kind == "hello":
            self._join(node, fields, now)
            return
        if kind == "closing":
            self._queueing.close(node)
            return
        if kind == "unstarted":
            for stop in self._queueing.unstarted(node, fields, now):
                self._stop(stop, now)
            self._dirty = True
            if self.drain is not None:
                self._hand_back(self._waiting.withdraw_all(), self.drain.reason)
            return
        following = str(fields.pop("next", ""))
        ended = self._live.get(str(fields.get("attempt")))
        if following and self._queueing.follow(node, ended, following, now):
            self._dirty = True
        self._hear(node, kind, fields, now)
        follower = self._live.get(following)
        if follower is not None and follower.order.checkpoint is None:
            self._started(follower, {"attempt": following})

    def _hear(self, node: int, kind: str, fields: Fields, now: float) -> None:
        attempt = str(fields.get("attempt"))
        live = self._live.get(attempt)
        if live is None:
            self._settled.late(attempt, kind, fields)
        elif node not in live.nodes:
            return
        elif kind == AttemptStarted.KIND:
            self._started(live, fields)
        elif kind == AttemptEnded.KIND:
            self._ended_on(live, node, fields, now)
        elif kind == "ready":
            self._ready(live, node)
        elif kind == "abort":
            self._launcher.abort(attempt)
        elif node == live.nodes[0]:
            self._emit(kind, fields, urgent=kind == "checkpoint")
            if kind == "checkpoint":
                self._resizing.saved(live, fields)

    def launch_ended(self, end: LaunchEnd) -> None:
        """The launcher call of an MPI payload is over; its agents judge what it left behind."""
        live = self._live.get(end.attempt)
        if live is None:
            return
        live.launch = Launch.OVER
        fields: Fields = {"attempt": end.attempt, "code": end.code, "said": end.said}
        for node in live.outstanding():
            self._send(node, "launch_ended", fields)

    def node_lost(self, node: int, reason: str, now: float) -> None:
        """An agent, or its node, is gone."""
        if node in self._gone:
            return
        self._gone.add(node)
        host = self._hosts.get(node, str(node))
        cut_off = [live for live in self._live.values() if node in live.outstanding()]
        # An agent that has nothing left to do may leave before it is told to, as its node ends.
        if cut_off or self.drain is None:
            self._emit(NodeLost.KIND, to_fields(NodeLost(host, reason)), urgent=True)
        self._usage.count(now)
        for live in cut_off:
            if node in live.outstanding():
                end = AttemptEnded(
                    live.order.attempt,
                    "failed",
                    "node",
                    f"node {host} was lost: {reason}",
                    duration_s=now - live.since,
                )
                self._ended_on(live, node, to_fields(end), now)
        self._placement.remove_node(node)
        self._queueing.forget(node)
        self._dirty = True

    def agents_replaced(self, reason: str, now: float) -> Dict[int, str]:
        """All agents ended at once, but not their nodes, whose hosts are returned by number."""
        for attempt in list(self._live):
            self._give_up(attempt, "preempted", reason, now)
        self._usage.count(now)
        there = {node: self._hosts.pop(node) for node in self._hosts.keys() - self._gone}
        for node in there:
            self._placement.remove_node(node)
            self._queueing.forget(node)
        self._telling.agents_replaced()
        self._placement.settled = False
        self._expected_since = now
        self._dirty = True
        return there

    def all_lost(self, reason: str, now: float) -> None:
        """The one call that started all agents failed or is over, and so are they."""
        for node in range(self.plan.nodes):
            self.node_lost(node, reason, now)

    # --- time ---

    def turn(self, now: float) -> None:
        """Whatever the time asks for: begin, place, drain, heartbeat."""
        self._begin(now)
        runs_on = self.drain is None or self.drain.deadline is None
        if runs_on and now >= self.drain_point():
            left = self._end - self.plan.drain_margin_s - now
            self.start_drain("the walltime ends", now, outcome="timed_out", within_s=left)
        self._give_up_stragglers(now)
        self._queueing.ask_back_idle(now)
        if self._opened and (self._dirty or now - self._stepped >= STEP_EVERY_S):
            self._place(now)
        told = self.orders_read == self._told_orders
        if now >= self._heartbeat_at or (not told and now >= self._next_word()):
            self._heartbeat(now)

    def finish(self, reason: str, now: float) -> None:
        """The last words. What still runs is ended here, as nobody will hear of it any more."""
        outcome = "timed_out" if self.drain and self.drain.outcome == "timed_out" else "preempted"
        for attempt in list(self._live):
            self._give_up(attempt, outcome, reason, now)
        self._hand_back(self._waiting.withdraw_all(), reason)
        self._usage.count(now)
        ended = AllocationEnded(
            reason, round(self._usage.slot_seconds, 3), round(self._usage.busy_slot_seconds, 3)
        )
        self._emit(AllocationEnded.KIND, to_fields(ended), urgent=True)

    # --- private: orders ---

    def _define(self, fields: Fields, now: float) -> None:
        try:
            spec = from_fields(PayloadSpec, fields)
        except BadRecord:
            return  # orders that name it fail with that reason
        self._specs[spec.payload_id] = spec
        wanted = max(self._grace_s, spec.warn_s + spec.kill_s)
        self._grace_s = stopping_grace(self._end - self._began, wanted)

    def _ordered(self, fields: Fields, now: float) -> None:
        attempt = str(fields.get("attempt"))
        if attempt in self._live or attempt in self._orders:
            return
        if self._settled.repeat(attempt):
            return
        try:
            check_attempt(attempt)
            order = from_fields(Order, fields)
            spec = self._specs[order.payload_id]
        except BadRecord as error:
            self._refuse(attempt, f"its order cannot be read: {error}")
            return
        except KeyError as error:
            self._refuse(attempt, f"payload {error} was never defined, or not readably")
            return
        problem = shape_problem(spec.shape)
        if problem is not None:
            self._refuse(attempt, problem)
            return
        self._busy_at = now
        self._orders[attempt] = order
        if self.drain is not None:
            self._hand_back((attempt,), self.drain.reason)
            return
        self._waiting.add(request_for(order, spec), now)
        self._dirty = True

    def _refuse(self, attempt: str, reason: str) -> None:
        self._settled.end(attempt, to_fields(AttemptEnded(attempt, "failed", "site", reason)))

    def _stop(self, fields: Fields, now: float) -> None:
        attempt = str(fields.get("attempt"))
        live = self._live.get(attempt)
        if live is not None:
            live.stop = fields
            self._resizing.end(live)
            self._stop_on_nodes(live, "stop", fields)
        elif attempt in self._orders:
            self._waiting.withdraw(attempt)
            del self._orders[attempt]
            state = "pruned" if fields.get("outcome") == "pruned" else "cancelled"
            end = AttemptEnded(attempt, state, reason=str(fields.get("reason", "")))
            self._settled.end(attempt, to_fields(end))

    def _stop_on_nodes(self, live: Live, kind: str, fields: Fields) -> None:
        for node in live.outstanding():
            self._send(node, kind, fields)
        self._never_launch(live)

    def _never_launch(self, live: Live) -> None:
        """Let nodes that wait for ranks go, as there will be none."""
        if live.launch is Launch.NOT_YET:
            live.launch = Launch.OVER
            for node in live.ready - live.ends.keys():
                self._send(node, "launch_ended", {"attempt": live.order.attempt})

    def _drain_ordered(self, fields: Fields, now: float) -> None:
        within_s = self._stopping_s(now) if fields.get("now") else None
        self.start_drain(str(fields.get("reason", "ordered")), now, within_s=within_s)

    def _stopping_s(self, now: float) -> float:
        """How long payloads may take to stop when there is no hurry."""
        left = self._end - self.plan.drain_margin_s - now
        return min(left, max(self._grace_s, 1.0))

    def _close(self, fields: Fields, now: float) -> None:
        self._closed = True

    def _send_output(self, fields: Fields, now: float) -> None:
        attempt = str(fields.get("attempt"))
        live = self._live.get(attempt)
        node = live.nodes[0] if live is not None else self._settled.ask_for_output(attempt)
        if node is not None and node not in self._gone:
            self._send(node, "send_output", {"attempt": attempt})

    def _hand_back(self, attempts: Iterable[str], reason: str) -> None:
        waiting = tuple(attempts)
        for attempt in waiting:
            self._orders.pop(attempt, None)
        self._settled.hand_back(waiting, reason)

    # --- private: agents ---

    def _join(self, node: int, fields: Fields, now: float) -> None:
        if node in self._hosts or node in self._gone:
            return
        try:
            shape = from_fields(NodeShape, fields.get("shape"))
        except BadRecord as error:
            self.node_lost(node, f"its agent's greeting cannot be read: {error}", now)
            return
        self._hosts[node] = str(fields.get("host"))
        self._shape = shape
        self._usage.count(now)
        self._placement.add_node(node, self._hosts[node], shape)
        if self._first_joined is None:
            self._first_joined = now
        self._dirty = True

    def _begin(self, now: float) -> None:
        if self._opened and self._placement.settled:
            return
        here = len(self._hosts.keys() - self._gone)
        everyone = len(self._hosts.keys() | self._gone) >= self.plan.nodes
        if everyone:
            self._placement.settled = True
        elif now - self._expected_since >= JOIN_LIMIT_S:
            for node in range(self.plan.nodes):
                if node not in self._hosts:
                    self.node_lost(node, f"its agent did not come within {JOIN_LIMIT_S:g} s", now)
        waited = self._first_joined is not None and now - self._first_joined >= JOIN_GRACE_S
        if self._opened or not here or not (everyone or waited):
            return
        self._opened = True
        self._busy_at = now
        hosts = tuple(host for _, host in sorted(self._hosts.items()))
        started = AllocationStarted(hosts, self._shape, self.drain_point() - now)
        self._emit(AllocationStarted.KIND, to_fields(started), urgent=True)

    def _started(self, live: Live, fields: Fields) -> None:
        if live.announced:
            return
        live.announced = True
        hosts = live.slots[0].hosts
        gpus = fields.get("gpus") if len(hosts) == 1 else None
        shown = {"nodes": list(hosts), "gpus": gpus or list(gpu_names(live.slots))}
        self._emit(AttemptStarted.KIND, {**fields, **shown})

    def _ready(self, live: Live, node: int) -> None:
        """Its agent waits for the ranks of an MPI payload; once all do, they are launched."""
        live.ready.add(node)
        if live.launch is Launch.OVER:
            self._send(node, "launch_ended", {"attempt": live.order.attempt})
        elif live.launch is Launch.NOT_YET and len(live.ready) == len(live.nodes):
            live.launch = Launch.RUNNING
            self._launcher.start(live.order.attempt, live.slots)

    def _ended_on(self, live: Live, node: int, fields: Fields, now: float) -> None:
        attempt = live.order.attempt
        self._usage.count(now)
        if self._resizing.left(live, node, fields, draining=self.drain is not None):
            self._dirty = True
        elif live.end_on(node, fields) or live.nodes_min is not None:
            # At the end of the allocation all were told already, and have until then.
            if live.nodes_min is not None or self.drain is None or self.drain.deadline is None:
                self._stop_on_nodes(live, *live.farewell(str(self._hosts.get(node, node)), fields))
            if live.launch is Launch.RUNNING and node in self._gone:
                self._launcher.abort(attempt)  # it may wait for the lost one for ever
        if node not in self._gone:
            condemned = self._health.ended(node, live.order.point, fields)
            if condemned is not None:
                self._quarantine(node, condemned)
        if not live.outstanding():
            self._finish_attempt(live, now)

    def _finish_attempt(self, live: Live, now: float) -> None:
        attempt = live.order.attempt
        self._usage.count(now)
        del self._live[attempt]
        self._busy_at = now
        left_s = None if self.drain is not None else self.drain_point() - now
        self._queueing.ended(live, now, left_s)
        if not live.followed:
            self._placement.release(attempt)
            self._dirty = True
        outcome = live.outcome()
        self._waiting.ended(live, outcome, now)
        self._settled.end(attempt, outcome, live.nodes[0])

    def _quarantine(self, node: int, reason: str) -> None:
        self._queueing.close(node)
        self._dirty = True
        found = NodeQuarantined(self._hosts.get(node, str(node)), reason)
        self._emit(NodeQuarantined.KIND, to_fields(found), urgent=True)

    # --- private: time ---

    def _place(self, now: float) -> None:
        self._dirty = False
        self._stepped = now
        if self.drain is not None:
            return
        self._usage.count(now)
        self._waiting.release(now)
        remaining_s = self.drain_point() - now
        step = self._placement.step(now, remaining_s)
        reasons: Dict[str, List[str]] = {}
        for attempt, reason in step.refuse:
            reasons.setdefault(reason, []).append(attempt)
        for reason, attempts in reasons.items():
            self._hand_back(attempts, reason)
        for assignment in step.start:
            self._run(assignment, now, remaining_s)
        for loan in step.lend:
            live = self._live[loan.attempt]
            self._resizing.lend(live, loan.slots)
            self._telling.run(live.order, loan.slots, remaining_s)
        for attempt, node in step.take_back:
            self._resizing.take_back(self._live[attempt], node)
        self._queueing.fill(now, remaining_s)

    def _run(self, assignment: Assignment, now: float, remaining_s: float) -> None:
        order = self._orders.pop(assignment.attempt)
        shape = self._specs[order.payload_id].shape
        nodes_min = shape.nodes_min if is_elastic(shape) else None
        live = self._live[order.attempt] = Live(order, assignment.slots, now, nodes_min)
        self._queueing.started(live)
        self._telling.run(order, assignment.slots, remaining_s)

    def _tell_drain(self, reason: str, within_s: float, outcome: str) -> None:
        fields = {"reason": reason, "remaining_s": within_s, "now": True, "outcome": outcome}
        for node in self._hosts.keys() - self._gone:
            self._send(node, "drain", fields)
        for live in self._live.values():
            self._never_launch(live)

    def _give_up_stragglers(self, now: float) -> None:
        drain = self.drain
        if drain is None or drain.deadline is None:
            return
        if now < drain.deadline + min(STRAGGLERS_S, self.plan.drain_margin_s / 2):
            return
        for attempt in list(self._live):
            self._give_up(attempt, drain.outcome, "it did not stop in time", now)

    def _give_up(self, attempt: str, state: str, reason: str, now: float) -> None:
        live = self._live[attempt]
        blame = "walltime" if state == "timed_out" else "site"
        end = AttemptEnded(attempt, state, blame, reason, duration_s=now - live.since)
        for node in live.outstanding():
            live.end_on(node, to_fields(end))
        self._launcher.abort(attempt)
        self._finish_attempt(live, now)

    def _next_word(self) -> float:
        spacing = HEARTBEAT_MIN_S.get(self.plan.filesystem, HEARTBEAT_MIN_S["shared"])
        return self._heartbeat_at - self.plan.heartbeat_s + spacing

    def _heartbeat(self, now: float) -> None:
        self._heartbeat_at = now + self.plan.heartbeat_s
        self._told_orders = self.orders_read
        self._usage.count(now)
        word = Heartbeat(
            self.epoch,
            self.orders_read,
            len(self._orders) + self._queueing.queued,
            len(self._live) - self._queueing.queued,
            round(max(0.0, self.drain_point() - now), 3),
            round(self._placement.slots, 3),
            round(self._placement.slots_busy, 3),
        )
        self._emit(Heartbeat.KIND, to_fields(word))
