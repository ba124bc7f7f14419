"""The leader: reads orders, places, collects from the agents, commits events, and leaves in time.

One thread, one loop. All decisions are the conductor's; here are files, signals, processes and
the clock.
"""

from __future__ import annotations

import functools
import platform
import secrets
import signal
import socket
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Tuple

from payload_runner import __version__, joining
from payload_runner.conductor import Conductor
from payload_runner.files import Files, RealFiles
from payload_runner.incarnation import (
    History,
    Job,
    NotOurs,
    await_quiet,
    claim,
    earlier_starts,
    enter,
    read_history,
)
from payload_runner.inotify import Inotify, open_inotify
from payload_runner.journal import Journal
from payload_runner.launches import Launches
from payload_runner.launching import Agents, can_restart, restart_agents, start_agents
from payload_runner.logfile import PROTOCOL_VERSION, Record
from payload_runner.loop import Loop
from payload_runner.orders import LEASE_LOOK_S, Incoming, OrderReader
from payload_runner.protocol import (
    AllocationPaths,
    AllocationPlan,
    BadRecord,
    Fenced,
    IncarnationPaths,
    Opened,
    SpoolPaths,
    load_json,
    to_fields,
)
from payload_runner.transport import AgentStart, read_secret
from payload_runner.walltime import remaining_at_start

_PLAN_LIMIT = 1024 * 1024
LEAVE_S = 10.0  # agents have this long to leave by themselves
SIGNALLED_S = 30.0  # what a batch system leaves between its signal and the kill, if nobody knows
TERMINATED_S = 5.0  # the same once SIGTERM comes on top
MPI_DIES_S = 10.0  # within this of one another all agents are lost when their MPI job dies
STOP_LOOK_S = {"local": 1.0, "shared": 10.0}
ORDERS_IDLE_S = 10.0  # the longest interval between two looks for orders
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
# A signal further than this from the planned end is the batch system wanting its nodes back.
PREEMPTED_BEFORE_S = 60.0


@dataclass(frozen=True)
class Setup:
    """What a leader is told besides its plan."""

    spool: Path
    tag: str
    job: Job
    command: Tuple[str, ...]  # starts this runner
    environ: Mapping[str, str]


def lead(setup: Setup) -> int:
    """Run one start of an allocation to its end; returns the exit code.

    Raises:
        BadRecord: allocation.json or the tag is wrong.
        OSError: the spool cannot be read or written.
    """
    files = RealFiles()
    paths = SpoolPaths(setup.spool).allocation(setup.tag)
    plan = load_json(files.read(paths.plan, 0, _PLAN_LIMIT), AllocationPlan)
    if plan.tag != setup.tag:
        raise BadRecord(f"{paths.plan}: tag: got {plan.tag!r}; expected {setup.tag!r}")
    began = time.monotonic()
    end = began + remaining_at_start(plan, setup.environ, time.time())
    try:
        claim(files, paths, setup.job, time.monotonic)
        mine = enter(files, paths, setup.job)
    except NotOurs as error:
        print(f"payload-runner: {error}", file=sys.stderr)
        return 0
    earlier = earlier_starts(files, paths, mine)
    await_quiet(files, earlier, plan.filesystem, time.monotonic)
    history = read_history(files, earlier, time.monotonic)
    leader = Leader(setup, plan, paths, mine, history, files, end)
    try:
        return leader.run()
    finally:
        leader.close()


class Leader:
    """Connects the conductor to files, agents, signals and the clock."""

    def __init__(
        self,
        setup: Setup,
        plan: AllocationPlan,
        paths: AllocationPaths,
        mine: IncarnationPaths,
        history: History,
        files: Files,
        end: float,
    ) -> None:
        self._setup = setup
        self._plan = plan
        self._paths = paths
        self._mine = mine
        self._end = end
        self._local = plan.filesystem == "local"
        self._files = files
        self._stop_file = SpoolPaths(setup.spool).stop
        self._loop = Loop()
        self._journal = Journal(
            files, mine, self._opened_by, _new_writer, time.time, time.monotonic
        )
        self._port, self._addresses = joining.listen(
            plan, mine, read_secret(mine), loopback=not plan.launcher
        )
        self._launches = Launches(plan, setup.command, setup.environ, mine.root)
        self._conductor = Conductor(
            plan,
            history,
            self._journal.emit,
            lambda node, kind, fields: self._port.send(node, kind, fields),
            self._launches,
            now=time.monotonic(),
            end=end,
        )
        self._orders = OrderReader(files, SpoolPaths(setup.spool), paths, time.monotonic)
        self._inotify = _watch(paths.root) if self._local else None
        self._orders_at = 0.0
        self._orders_interval = plan.orders_poll_s
        self._stop_at = 0.0
        self._agents: Optional[Agents] = None
        self._signals: List[int] = []
        self._missing: Dict[int, Tuple[str, float]] = {}  # agents gone silent: why and since when

    def run(self) -> int:
        """Start the agents, work until there is a reason to leave, and leave.

        Returns the exit code: 1 if work could not even begin.
        """
        self._listen()
        self._start_agents()
        while True:
            now = time.monotonic()
            self._read_orders(now)
            self._look_for_stop(now)
            self._take_signals(now)
            self._hear_agents(now)
            for ended in self._launches.ended():
                self._conductor.launch_ended(ended)
            self._conductor.turn(now)
            self._port.flush()
            reason = self._conductor.leaving(now)
            if reason is not None:
                return self._leave(reason)
            self._journal.commit_if_due()
            self._loop.turn(self._wait_s(now))

    def close(self) -> None:
        """End what is still there. The journal is closed last: it has the last word."""
        if self._agents is not None:
            self._agents.end(0.0)  # after a fault only; else they have left
        self._launches.close()
        self._port.close()
        self._journal.close()
        if self._inotify is not None:
            self._inotify.close()
        self._loop.close()

    def _opened_by(self, writer: str) -> Opened:
        return Opened(
            version=PROTOCOL_VERSION,
            tag=self._plan.tag,
            incarnation=self._mine.name,
            writer=writer,
            host=socket.gethostname(),
            runner_version=__version__,
            python=platform.python_version(),
        )

    def _listen(self) -> None:
        self._watch_port()
        if self._inotify is not None:
            self._loop.watch(self._inotify.fileno(), self._orders_changed)
        for number in _SIGNALS:
            self._loop.on_signal(number, functools.partial(self._signals.append, number))
        self._loop.on_signal(signal.SIGCHLD, _nothing)

    def _watch_port(self) -> None:
        port_fd = self._port.fileno()
        if port_fd is not None:
            self._loop.watch(port_fd, _nothing)

    def _wait_s(self, now: float) -> float:
        waits = [self._conductor.wait_s(now), self._orders_at - now, self._stop_at - now]
        others = (self._port.wait_s(), self._journal.due_in(), self._launches.wait_s())
        waits += [wait for wait in others if wait is not None]
        waits += [since + MPI_DIES_S - now for _, since in self._missing.values()]
        return max(0.0, min(waits))

    def _start_agents(self, again_on: Optional[Mapping[int, str]] = None) -> None:
        """``again_on``: hosts, by node, whose agents have ended; None: the first start of all."""
        start = AgentStart(
            self._setup.spool,
            self._setup.tag,
            self._mine.name,
            self._addresses,
            self._plan.transport,
        )
        command, environ = self._setup.command, self._setup.environ
        try:
            if again_on is not None and can_restart(self._plan, again_on):
                self._agents = restart_agents(self._plan, start, command, again_on)
            else:
                self._agents = start_agents(self._plan, start, command, environ)
        except OSError as error:
            self._agents = Agents(per_node=False)
            self._conductor.all_lost(f"no agent can be started: {error}", time.monotonic())

    # --- orders ---

    def _orders_changed(self) -> None:
        assert self._inotify is not None
        current = self._paths.orders(self._orders.epoch).name
        for _, name, _ in self._inotify.changes():
            if name.startswith("orders.") or not name:
                self._orders_at = 0.0
                if name != current:
                    self._orders.look_soon()

    def _read_orders(self, now: float) -> None:
        if now < self._orders_at:
            return
        incoming = self._orders.poll()
        self._tell_epochs(incoming)
        for record in incoming.records:
            self._apply(record, now)
        if incoming.records:
            self._orders_interval = self._plan.orders_poll_s
            self._orders_at = 0.0  # there may be more
            return
        longest = LEASE_LOOK_S if self._inotify is not None else ORDERS_IDLE_S
        slower = min(self._orders_interval * 1.2, longest)
        # While something runs, its slot will want the next payload soon.
        busy = self._conductor.busy and self._inotify is None
        self._orders_interval = self._plan.orders_poll_s if busy else slower
        self._orders_at = now + self._orders_interval

    def _tell_epochs(self, incoming: Incoming) -> None:
        if incoming.refused_epoch is not None:
            told = {"epoch": incoming.refused_epoch, "current": self._orders.epoch}
            self._journal.emit("epoch_refused", told)
        if incoming.fenced is not None:
            epoch, last_seq = incoming.fenced
            self._journal.emit(Fenced.KIND, to_fields(Fenced(epoch, last_seq)), urgent=True)
        for first, last in incoming.missing:
            lost = {"epoch": self._orders.epoch, "from": first, "to": last}
            self._journal.emit("orders_missing", lost)
        if self._conductor.epoch != self._orders.epoch:
            self._conductor.new_epoch(self._orders.epoch)

    def _apply(self, record: Record, now: float) -> None:
        fields = record.fields
        if record.kind == "ack":
            self._journal.forget(str(fields.get("writer")), _integer(fields.get("to")))
        elif record.kind == "resend":
            first, last = _integer(fields.get("from")), _integer(fields.get("to"))
            self._journal.resend(str(fields.get("writer")), first, last)
        elif record.kind == "open" and fields.get("version") != PROTOCOL_VERSION:
            version = fields.get("version")
            reason = f"orders speak protocol {version}, this runner {PROTOCOL_VERSION}"
            self._conductor.start_drain(reason, now, within_s=None)
        self._conductor.order(record, now)

    # --- reasons to stop ---

    def _look_for_stop(self, now: float) -> None:
        if now < self._stop_at:
            return
        self._stop_at = now + STOP_LOOK_S.get(self._plan.filesystem, STOP_LOOK_S["shared"])
        if self._conductor.drain is None and self._files.exists(self._stop_file):
            self._conductor.start_drain("there is a STOP file in the spool", now, within_s=None)

    def _take_signals(self, now: float) -> None:
        for number in self._signals:
            name = signal.Signals(number).name
            left = self._end - now
            early = left > self._plan.drain_margin_s + PREEMPTED_BEFORE_S
            outcome = "preempted" if early else "timed_out"
            hurry = number == signal.SIGTERM and self._conductor.drain is not None
            within_s = min(left, TERMINATED_S if hurry else SIGNALLED_S)
            reason = f"the batch system sent {name}"
            self._conductor.start_drain(reason, now, outcome=outcome, within_s=within_s)
        self._signals.clear()

    # --- agents ---

    def _hear_agents(self, now: float) -> None:
        assert self._agents is not None
        # Asked first: what a process said before its end is then there to be received.
        gone = self._agents.gone()
        self._receive(now)
        self._missing.update((node, (reason, now)) for node, reason in self._port.lost())
        self._judge_missing(now)
        for node, reason in gone:
            if self._agents.per_node:
                self._port.drop(node)
                self._conductor.node_lost(node, f"its agent {reason}", now)
            else:
                self._launcher_gone(f"the launcher of the agents {reason}", now)

    def _judge_missing(self, now: float) -> None:
        """Say of agents that went silent whether they are lost, or the MPI job that carries them.

        When an MPI job dies of a dead node its launcher may hang on for minutes.
        """
        carried = self._plan.transport == "mpi"
        if carried and self._conductor.are_all(self._missing.keys()):
            self._launcher_gone("the MPI job of the agents died and its launcher hangs", now)
            return
        for node, (reason, since) in list(self._missing.items()):
            if not carried or now - since >= MPI_DIES_S:
                del self._missing[node]
                self._conductor.node_lost(node, reason, now)

    def _launcher_gone(self, reason: str, now: float) -> None:
        """One lost rank takes its whole MPI job along: then others go on over files, once."""
        if self._plan.transport != "mpi" or self._conductor.drain is not None:
            self._conductor.all_lost(reason, now)
            return
        self._plan = replace(self._plan, transport="files")
        fd = self._port.fileno()
        if fd is not None:
            self._loop.unwatch(fd)
        self._port.close()
        secret = read_secret(self._mine)
        self._port, self._addresses = joining.listen(self._plan, self._mine, secret, loopback=False)
        self._watch_port()
        self._journal.emit("agents_replaced", {"reason": reason, "transport": "files"})
        hosts = self._conductor.agents_replaced(f"{reason}, and MPI with it", now)
        self._missing.clear()
        assert self._agents is not None
        self._agents.end(0.0)
        self._start_agents(hosts)

    def _receive(self, now: float) -> None:
        for node, (kind, fields) in self._port.receive():
            self._conductor.message(node, kind, fields, now)

    def _leave(self, reason: str) -> int:
        """Say goodbye in an order that loses nothing: orders, agents, last words, commit."""
        assert self._agents is not None
        now = time.monotonic()
        meant = self._conductor.opened or self._conductor.drain is not None
        self._conductor.start_drain(reason, now, within_s=None)
        self._read_last_orders(now)
        for node in range(self._plan.nodes):
            self._port.send(node, "leave", {})
        self._port.flush()
        # Agents that have not come yet have nothing to tidy up.
        leave_s = min(LEAVE_S, self._end - now - 1.0) if self._conductor.opened else 0.0
        self._agents.end(max(0.0, leave_s))
        self._receive(time.monotonic())
        self._conductor.finish(reason, time.monotonic())
        return 0 if meant else 1

    def _read_last_orders(self, now: float) -> None:
        """Whatever was ordered until now is at least handed back."""
        self._orders_at = 0.0
        while self._orders_at == 0.0:
            self._read_orders(now)


def _watch(path: Path) -> Optional[Inotify]:
    inotify = open_inotify()
    if inotify is None:
        return None
    try:
        inotify.watch(str(path))
    except OSError:
        inotify.close()
        return None
    return inotify


def _new_writer() -> str:
    return f"0-{secrets.token_hex(4)}"


def _integer(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _nothing() -> None:
    """Only wakes the loop: everything is looked at in every turn."""
