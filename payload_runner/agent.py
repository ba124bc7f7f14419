"""The agent: one process per node that runs the payloads its leader sends.

One thread and one loop; payloads, their output and their ends come as events of the loop. The
leader is reached over whatever link ``joining`` finds.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any, Callable, Deque, Dict, List, Mapping, Optional, Tuple

from payload_runner import gpus, guardian, processes
from payload_runner.agent_queue import HAND_BACK_AT_ONCE, AgentQueue
from payload_runner.containers import DETACHING
from payload_runner.joining import connect
from payload_runner.loop import Loop
from payload_runner.mps import Mps
from payload_runner.node import Node, Owner
from payload_runner.payload import Payload
from payload_runner.placement import Slot
from payload_runner.protocol import (
    AllocationPlan,
    AttemptEnded,
    AttemptStarted,
    BadRecord,
    Event,
    Order,
    PayloadSpec,
    SpoolPaths,
    from_fields,
    load_json,
    to_fields,
)
from payload_runner.stopping import drained, on_request, taken_back
from payload_runner.transport import AgentLink, AgentStart, LinkLost
from payload_runner.watching import Wake, open_wake
from payload_runner.workplace import Workplace

EX_OK, EX_DATAERR, EX_UNAVAILABLE, EX_IOERR = 0, 65, 69, 74
# Without a leader, or after SIGTERM: batch systems kill about half a minute after their signal.
LAST_S = 20.0
_KEPT_OUTPUTS = 8  # of ended attempts, in case somebody asks for them
_TIDY_S = 5.0
GATHER_S = 0.01  # a word that nobody waits for is held back for company
_PAYLOAD_STATES = ("pruned", "cancelled")
_log = logging.getLogger(__name__)

Fields = Dict[str, Any]  # of a message; Any because it is JSON


def main(argv: List[str]) -> int:
    """Run the agent of one node until its leader lets it go; returns the exit code."""
    start = AgentStart.parse(argv, os.environ)
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format=f"agent {start.node} %(levelname)s %(message)s",
    )
    try:
        plan = load_json(
            SpoolPaths(start.spool).allocation(start.tag).plan.read_bytes(), AllocationPlan
        )
        link = connect(start, plan)
    except BadRecord as error:
        return _refuse(EX_DATAERR, error)
    except LinkLost as error:
        return _refuse(EX_UNAVAILABLE, error)
    except OSError as error:
        return _refuse(EX_IOERR, error)
    agent = Agent(start, plan, link, os.environ)
    try:
        return agent.run()
    except OSError as error:
        return _refuse(EX_IOERR, error)


class Agent:
    """Carries out the leader's messages on this node."""

    def __init__(
        self,
        start: AgentStart,
        plan: AllocationPlan,
        link: AgentLink,
        environ: Mapping[str, str],
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        assert start.node is not None
        assert start.host is not None
        self._link = link
        self._index = start.node
        self._loop = Loop(monotonic)
        self._wall = wall
        self._nonce = os.urandom(8).hex()
        self._payloads: Dict[str, Payload] = {}
        self._specs: Dict[str, PayloadSpec] = {}
        self._queue = AgentQueue()
        self._reaped: Deque[Tuple[Owner, processes.Ended]] = deque()
        self._ended: Deque[AttemptEnded] = deque(maxlen=_KEPT_OUTPUTS)
        self._wake: Optional[Wake] = None
        self._incoming = True
        self._send_at: Optional[float] = None  # when what was said is handed over
        self._leaving = False
        self._exit_code = EX_OK
        self._deadline = monotonic() + plan.walltime_s
        spool = SpoolPaths(start.spool)
        self._node = Node(
            loop=self._loop,
            plan=plan,
            spool=spool,
            incarnation=start.paths,
            workplace=_workplace(plan, spool, f"{plan.tag}.{start.node}.{self._nonce}"),
            # Nodes of the local batch system are virtual: they share the cores of this machine.
            resources=gpus.find_resources(plan.node, environ, pin=plan.batch_system != "local"),
            host=start.host,
            agent_nonce=self._nonce,
            outer=dict(environ),
            emit=self._emit,
            tell=self._tell,
            wake=self._get_wake,
            wall=wall,
            mps=Mps(environ, plan.node.gpu_variable, self._nonce),
        )

    def run(self) -> int:
        """Serve until told to leave, or alone; main thread only. Returns an exit code.

        Raises:
            OSError: the node has no place to work in.
        """
        self._node.workplace.open()
        gc.freeze()  # what was imported stays; looking through it again and again finds nothing
        processes.become_subreaper()
        guarding = guardian.of_payloads(self._nonce)
        self._node.helpers.add(guarding.pid)
        try:
            self._listen()
            self._greet()
            while not self._leaving or self._payloads:
                self._turn()
            self._end_mps()
            self._tidy(guarding.pid)
            # Only now: after a crash of ours the guardian is to end what we leave behind.
            guarding.dismiss()
        finally:
            self._close()
        return self._exit_code

    # --- the loop ---

    def _listen(self) -> None:
        self._loop.on_signal(signal.SIGCHLD, self._reap)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            self._loop.on_signal(number, self._told_to_end)
        # Batch systems send their warnings to every process of a step; the leader acts on them.
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT):
            self._loop.on_signal(number, _nothing)
        fd = self._link.fileno()
        if fd is not None:
            self._loop.watch(fd, self._note_incoming)

    def _greet(self) -> None:
        shape = to_fields(self._node.resources.shape)
        hello = {"node": self._index, "host": self._node.host, "shape": shape, "pid": os.getpid()}
        self._link.send("hello", hello)
        self._link.flush()

    def _turn(self) -> None:
        wait_s = self._link.wait_s()
        now = self._loop.now()
        due = None if wait_s is None else now + wait_s
        if self._send_at is not None:
            unsent_s = max(0.0, self._send_at - now)
            wait_s = unsent_s if wait_s is None else min(wait_s, unsent_s)
        self._loop.turn(0.0 if self._incoming else wait_s)
        now = self._loop.now()
        overdue = due is not None and now >= due
        try:
            if self._incoming or overdue:
                self._receive()
            if overdue or (self._send_at is not None and now >= self._send_at):
                self._send_at = None
                self._link.flush()
        except LinkLost as error:
            self._alone(str(error))

    def _note_incoming(self) -> None:
        self._incoming = True

    def _receive(self) -> None:
        self._incoming = False
        for kind, fields in self._link.receive():
            self._take(kind, fields)

    def _reap(self) -> None:
        # All that have ended before anything follows them: what follows may end at once as well,
        # and the other words of this turn would wait for it.
        owners = self._node.owners
        for ended in iter(lambda: processes.reap_one(owners), None):
            # Its number is free from here on, and what follows another one may be given it.
            owner = owners.pop(ended.pid, None)
            if owner is not None:
                self._reaped.append((owner, ended))
        while self._reaped:
            owner, ended = self._reaped.popleft()
            owner.process_ended(ended.pid, ended.exit)

    # --- messages ---

    def _take(self, kind: str, fields: Fields) -> None:
        known: Dict[str, Callable[[Fields], None]] = {
            "define": self._define,
            "run": self._run,
            "queue": self._enqueue,
            "withdraw": self._withdraw,
            "stop": self._stop,
            "hosts": self._hosts,
            "give_back": self._give_back,
            "drain": self._drain,
            "send_output": self._send_output,
            "launch_ended": self._launch_ended,
            "leave": self._leave,
        }
        act = known.get(kind)
        if act is None:
            _log.warning("Ignored a message of an unknown kind kind=%s", kind)
            return
        try:
            act(fields)
        except BadRecord as error:
            _log.error("Cannot read a message of the leader kind=%s: %s", kind, error)

    def _define(self, fields: Fields) -> None:
        spec = from_fields(PayloadSpec, fields)
        self._specs[spec.payload_id] = spec

    def _run(self, fields: Fields) -> None:
        order = from_fields(Order, fields.get("order"))
        if order.attempt in self._payloads:
            return
        if not self._queue.remove(order.attempt) and fields.get("queued"):
            return  # it began meanwhile, or was handed back
        slot = from_fields(Slot, fields.get("slot"))
        spec = self._spec_of(order)
        if self._leaving:  # the leader did not know yet
            reason = "its node's agent was leaving already"
            self._emit(AttemptEnded(order.attempt, "preempted", "site", reason))
        elif spec is not None:
            self._note_deadline(fields)
            self._begin(order, spec, slot)

    def _enqueue(self, fields: Fields) -> None:
        order = from_fields(Order, fields.get("order"))
        spec = self._spec_of(order)
        if spec is None:
            return
        self._note_deadline(fields)
        self._queue.add(order, spec)
        if self._leaving:
            self._withdraw({})

    def _withdraw(self, fields: Fields) -> None:
        """Hand back what did not begin, also when that is nothing: somebody waits for the word."""
        attempts = self._queue.empty()
        while len(attempts) > HAND_BACK_AT_ONCE:
            self._say("unstarted", {"attempts": attempts[:HAND_BACK_AT_ONCE], "more": True})
            attempts = attempts[HAND_BACK_AT_ONCE:]
        self._say("unstarted", {"attempts": attempts})

    def _spec_of(self, order: Order) -> Optional[PayloadSpec]:
        spec = self._specs.get(order.payload_id)
        if spec is None:
            reason = f"payload {order.payload_id} was never defined"
            self._emit(AttemptEnded(order.attempt, "failed", "site", reason))
        return spec

    def _note_deadline(self, fields: Fields) -> None:
        self._deadline = self._loop.now() + float(fields.get("remaining_s") or 0.0)

    def _begin(
        self, order: Order, spec: PayloadSpec, slot: Slot, *, announced: bool = False
    ) -> None:
        remaining_s = self._deadline - self._loop.now()
        payload = Payload(
            self._node, order, spec, slot, remaining_s, self._payload_ended, announced=announced
        )
        self._payloads[order.attempt] = payload
        payload.begin()

    def _stop(self, fields: Fields) -> None:
        attempt = str(fields.get("attempt"))
        outcome = str(fields.get("outcome"))
        state = outcome if outcome in _PAYLOAD_STATES else "cancelled"
        reason = str(fields.get("reason") or "stopped on request")
        payload = self._payloads.get(attempt)
        if payload is not None:
            payload.stop(on_request(state, reason))
        elif self._queue.remove(attempt):
            self._emit(AttemptEnded(attempt, state, reason=reason))

    def _hosts(self, fields: Fields) -> None:
        payload = self._payloads.get(str(fields.get("attempt")))
        hosts = fields.get("hosts")
        if payload is not None and isinstance(hosts, list):
            payload.hosts_changed(tuple(str(host) for host in hosts))

    def _give_back(self, fields: Fields) -> None:
        payload = self._payloads.get(str(fields.get("attempt")))
        if payload is not None:
            payload.stop(taken_back(str(fields.get("reason"))))

    def _drain(self, fields: Fields) -> None:
        if fields.get("now", True):
            outcome = "preempted" if fields.get("outcome") == "preempted" else "timed_out"
            remaining_s = float(fields.get("remaining_s") or 0.0)
            self._drain_all(outcome, str(fields.get("reason") or "drained"), remaining_s)

    def _send_output(self, fields: Fields) -> None:
        attempt = str(fields.get("attempt"))
        payload = self._payloads.get(attempt)
        if payload is not None:
            payload.relays_output = True
            return
        for event in self._ended:
            if event.attempt == attempt:
                self._emit(event)

    def _launch_ended(self, fields: Fields) -> None:
        payload = self._payloads.get(str(fields.get("attempt")))
        if payload is not None:
            code = fields.get("code")
            said = str(fields.get("said") or "")
            payload.launch_ended(code if isinstance(code, int) else None, said)

    def _leave(self, fields: Fields) -> None:
        self._leaving = True
        self._drain_all("preempted", "the leader leaves", LAST_S)

    # --- payloads ---

    def _payload_ended(self, event: AttemptEnded, output: AttemptEnded) -> None:
        payload = self._payloads.pop(event.attempt)
        self._ended.append(output)
        fields = to_fields(event)
        following = None
        if self._queue:
            if event.state == "succeeded" and self._loop.now() < self._deadline:
                following = self._queue.take(payload.shape)
            else:
                # What fails here may fail for the node's sake: let the leader look first. At the
                # drain point it may only be slow to say that nothing begins any more.
                self._withdraw({})
        if following is None:
            self._say(event.KIND, fields)
            return
        order, spec = following
        # The slot is at work again, so nobody waits for this word: it may have company.
        self._say(event.KIND, {**fields, "next": order.attempt}, within_s=GATHER_S)
        # The leader makes its start of that word; only what it resumed from it cannot know.
        self._begin(order, spec, payload.slot, announced=order.checkpoint is None)

    def _drain_all(self, outcome: str, reason: str, remaining_s: float) -> None:
        if self._queue:
            self._withdraw({})
        stop = drained(outcome, reason, remaining_s)
        for payload in list(self._payloads.values()):
            payload.stop(stop)

    def _told_to_end(self) -> None:
        """The batch system ends this node's step; the leader may not know."""
        _log.warning("Told to end by a signal running=%d", len(self._payloads))
        outcome = "timed_out" if self._loop.now() >= self._deadline else "preempted"
        self._say("closing", {})  # else what is preempted here makes room for others to begin
        self._drain_all(outcome, "the batch system ended this node's step", LAST_S)
        self._leaving = True

    def _alone(self, reason: str) -> None:
        """Nobody hears us any more: keep what can be kept of the payloads and leave."""
        if self._exit_code == EX_OK:
            _log.error("Lost the leader, ending running=%d: %s", len(self._payloads), reason)
            self._exit_code = EX_UNAVAILABLE
            self._drain_all("preempted", f"the leader was lost: {reason}", LAST_S)
        self._leaving = True

    def _emit(self, event: Event) -> None:
        # Nothing is done about a start, and short payloads end before the word is needed.
        within_s = GATHER_S if event.KIND == AttemptStarted.KIND else 0.0
        self._say(event.KIND, to_fields(event), within_s=within_s)

    def _tell(self, kind: str, fields: Dict[str, str]) -> None:
        self._say(kind, dict(fields))

    def _say(self, kind: str, fields: Fields, *, within_s: float = 0.0) -> None:
        """Send a message with the next ones, but ``within_s``; 0: at the end of this turn."""
        self._link.send(kind, fields)
        send_at = self._loop.now() + within_s
        self._send_at = send_at if self._send_at is None else min(self._send_at, send_at)

    def _get_wake(self) -> Wake:
        if self._wake is None:
            self._wake = open_wake()
            fd = self._wake.fileno()
            if fd is not None:
                self._loop.watch(fd, self._touched)
        return self._wake

    def _touched(self) -> None:
        assert self._wake is not None
        for folder in self._wake.touched():
            payload = self._payloads.get(os.path.basename(folder))
            if payload is not None:
                payload.touched()

    # --- leaving ---

    def _tidy(self, guarding: int) -> None:
        """Give background work a moment, then kill what no payload answers for."""
        until = self._loop.now() + _TIDY_S
        while self._loop.now() < until and self._has_background_work(guarding):
            self._loop.turn(0.1)
        processes.send(processes.children((guarding,)), signal.SIGKILL)

    def _has_background_work(self, guarding: int) -> bool:
        # Podman's monitor clears away what is left of a container.
        clears = self._node.plan.container_runtime in DETACHING
        return not self._loop.worker.idle or (clears and bool(processes.children((guarding,))))

    def _end_mps(self) -> None:
        if self._node.mps is not None:
            self._node.mps.close()

    def _close(self) -> None:
        self._end_mps()
        if self._wake is not None:
            self._wake.close()
        self._loop.close()
        self._link.close()
        self._node.workplace.close()


def _workplace(plan: AllocationPlan, spool: SpoolPaths, name: str) -> Workplace:
    if plan.node_local_dir is None:
        return Workplace(spool, spool.work / name, node_local=False, keep=plan.keep_workdirs)
    parent = Path(os.path.expandvars(plan.node_local_dir))
    return Workplace(spool, parent / name, node_local=True, keep=plan.keep_workdirs)


def _nothing() -> None:
    """A signal that only must not kill us."""


def _refuse(code: int, error: Exception) -> int:
    print(f"payload-runner agent: {error}", file=sys.stderr)
    return code
