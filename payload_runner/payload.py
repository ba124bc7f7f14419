"""One attempt on one node, from its order to its outcome: its processes and their end.

Runs in the agent's loop; what may take long goes to its worker threads. The steps::

    preparing -> running -> sweeping (escaped processes) -> collecting -> ended
"""

from __future__ import annotations

import logging
import os
import signal
from dataclasses import replace
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

from payload_runner import environment, gpus, membership, processes, runhpo
from payload_runner.collecting import Collected, Leftovers, collect, needs_thread
from payload_runner.commits import Broken
from payload_runner.containers import DETACHING
from payload_runner.images import BadContainer
from payload_runner.loop import Timer
from payload_runner.node import Node
from payload_runner.outcome import Exit, Verdict
from payload_runner.output import Streams, bounded_text
from payload_runner.placement import Slot
from payload_runner.preparing import (
    Command,
    Prepared,
    command_of,
    is_quick,
    meeting_host,
    prepare,
    refusal,
)
from payload_runner.protocol import (
    INLINE_LIMIT_BYTES,
    AttemptEnded,
    AttemptStarted,
    Order,
    PayloadSpec,
    Shape,
)
from payload_runner.relaying import HINT_FILE, Reporter, Saver
from payload_runner.seats import Play, Seat, Seats, address_of
from payload_runner.stopping import Stop, Times, over_memory, over_time, plan_stop, verdict_of
from payload_runner.workplace import remove_if_plain, remove_tree, usual_files

STOP_FILE = ".harvester-stop"  # client.py looks for it
MEMORY_LOOK_S = 1.0
_SWEEP_S = 0.02
_WORD_BEHIND_S = 2.0
_SWEEPS = 250  # five seconds; what does not die then is stuck in the kernel
_LAUNCHER_ENDS_S = 30.0  # after its ranks were killed
_log = logging.getLogger(__name__)


class Payload:
    """One attempt on this node. ``begin`` it once.

    It calls ``ended`` once, with its outcome as it is to be told and as it would be with output.
    """

    def __init__(
        self,
        node: Node,
        order: Order,
        spec: PayloadSpec,
        slot: Slot,
        remaining_s: float,
        ended: Callable[[AttemptEnded, AttemptEnded], None],
        *,
        announced: bool = False,
    ) -> None:
        """``announced``: the leader knows already that it begins here."""
        self.order = order
        self.relays_output = spec.relay_output  # also on success
        self._node = node
        self._loop = node.loop
        self._spec = spec
        self._slot = slot
        self._deadline = node.wall() + remaining_s
        self._ended = ended
        self._began = self._loop.now()
        self._workdir = node.workplace.directory(order.attempt)
        self._streams = Streams(self._loop, spec.keep_output_bytes)
        self._reporter = Reporter(node, order.attempt, self._workdir, self._looked)
        self._saver = Saver(node, order.attempt, None)
        self._live: Set[int] = set()
        self._exits: List[Exit] = []
        self._timers: List[Timer] = []
        self._stop_timers: List[Timer] = []
        self._stop: Optional[Stop] = None
        self._times: Optional[Times] = None
        self._awaits_word = False  # who ended it may still be said
        self._seats: Optional[Seats] = None  # while ranks may be launched or run
        self._prepared_as = Prepared()
        self._announced = announced
        self._said = ""  # by the launcher of its ranks
        self._done = False

    @property
    def shape(self) -> Shape:
        """What it occupies."""
        return self._spec.shape

    @property
    def slot(self) -> Slot:
        """What it was given; once it has ended, another of its shape may have it."""
        return self._slot

    # --- preparing ---

    def begin(self) -> None:
        """Prepare and spawn. Ends at once where that cannot work."""
        refused = refusal(self.order, self._spec)
        if refused is not None:
            self._finish(Collected(refused))
        elif self._spec.shape.start == "single" and not self._is_first:
            # Its slot is held for the first node, which alone runs the command.
            self._finish(Collected(Verdict("succeeded")))
        elif is_quick(self._node, self.order, self._spec):
            self._prepared(_outcome_of(self._prepare))
        else:
            self._loop.worker.submit(self._prepare, self._prepared)

    def _prepare(self) -> Prepared:
        return prepare(self._node, self.order, self._spec, keeps=self._is_first)

    def _prepared(self, result: Any) -> None:  # Any: a Prepared or whatever was raised
        if self._stop is not None:
            self._finish(Collected(self._stop.verdict))
        elif isinstance(result, Prepared):
            self._start(result)
        else:
            self._finish(Collected(self._not_prepared(result)))

    def _not_prepared(self, error: BaseException) -> Verdict:
        if not isinstance(error, (Broken, OSError)):
            _log.error("Could not prepare attempt=%s", self.order.attempt, exc_info=error)
        local = self._node.workplace.node_local and not isinstance(error, Broken)
        reason = f"the working directory could not be made: {error}"
        return Verdict("failed", "node" if local else "site", reason)

    # --- running ---

    def _start(self, prepared: Prepared) -> None:
        if prepared.keeper is not None:
            self._saver = Saver(self._node, self.order.attempt, prepared.keeper)
        self._prepared_as = prepared
        failure = self._spawn()
        if failure is not None:
            self._start_failed(failure)
        elif self._seats is None:
            self._announce()
        else:
            self._node.tell("ready", {"attempt": self.order.attempt})

    def _announce(self) -> None:
        prepared = self._prepared_as
        self._began = self._loop.now()
        if not self._announced:
            resumed_from = self.order.checkpoint_of if prepared.resumed else None
            host = self._node.host
            labels = gpus.gpu_labels(host, self._slot)
            self._node.emit(AttemptStarted(self.order.attempt, (host,), labels, resumed_from))
        if prepared.note is not None:
            self._saver.refuse(prepared.note)
        self._set_timers()

    def _spawn(self) -> Optional[Verdict]:
        """Start the processes; None, or why that did not work."""
        try:
            command = command_of(
                self._node, self.order, self._spec, self._slot, deadline=self._deadline
            )
            if self._spec.shape.start == "mpi":
                self._open_seats(command)
                return None
            for rank in range(self._ranks):
                self._spawn_rank(command, rank)
        except BadContainer as error:
            return Verdict("failed", "site", str(error))
        except OSError as error:
            return Verdict("failed", "node", f"the payload could not be started: {error}")
        return None

    def _spawn_rank(self, command: Command, rank: int) -> None:
        variables = command.environment
        if self._spec.shape.start == "processes":
            variables = {**variables, **self._rank_variables(command, rank)}
        elif self._spec.shape.start == "elastic":
            membership.write_files(self._workdir, self._slot)
        stdout, stderr = self._streams.open()
        try:
            cores = gpus.cores_of(self._node.resources, self._slot, rank, self._ranks)
            pid = processes.spawn(
                command.argv, variables, str(self._workdir), stdout, stderr, cores
            )
        finally:
            os.close(stdout)
            os.close(stderr)
        self._live.add(pid)
        self._node.owners[pid] = self

    def hosts_changed(self, hosts: Tuple[str, ...]) -> None:
        """Other nodes take part now; the host file says so from now on."""
        try:
            membership.write_hosts(self._workdir, hosts)
        except OSError as error:
            _log.warning("Cannot write the host file attempt=%s: %s", self.order.attempt, error)

    def _rank_variables(self, command: Command, rank: int) -> Dict[str, str]:
        hosts = self._workdir / membership.HOST_FILE
        hosts.write_text("".join(f"{host}\n" for host in self._slot.hosts), encoding="utf-8")
        hostfile = f"{command.environment['HARVESTER_WORKDIR']}/{membership.HOST_FILE}"
        return environment.of_rank(self._slot, rank, hostfile, meeting_host(self._node, self._slot))

    def _open_seats(self, command: Command) -> None:
        """Wait for the ranks that the leader's launcher starts on this node."""

        def take(rank: int, pid: int) -> Seat:
            if not self._live:
                self._announce()
            self._live.add(pid)
            cores = gpus.cores_of(self._node.resources, self._slot, rank, self._ranks)
            return Seat(self._rank_variables(command, rank), cores, *self._streams.open())

        self._seats = Seats(
            self._loop,
            address_of(self._node.plan.tag, self.order.attempt, self._slot.node),
            Play(command.argv, command.environment, str(self._workdir)),
            first_rank=self._slot.first_rank,
            count=self._ranks,
            take=take,
        )

    def _start_failed(self, failure: Verdict) -> None:
        if not self._live:
            self._finish(Collected(failure))
            return
        # Some ranks run already: they go the usual way, with this as their verdict.
        self._stop = Stop(failure, final=True)
        self._kill()

    @property
    def _ranks(self) -> int:
        return 1 if self._spec.shape.start == "single" else max(1, self._slot.ranks)

    @property
    def _is_first(self) -> bool:
        """Whether this node speaks for the payload: reports, checkpoints, result."""
        return self._slot.first_rank == 0

    def _set_timers(self) -> None:
        if self._is_first:
            self._reporter.start()
            if self._spec.checkpoint is not None:
                self._saver.start(self._spec.checkpoint.interval_s)
        limit_s = self._spec.time_limit_s
        if limit_s is not None:
            stop = over_time(limit_s)
            self._timers.append(self._loop.call_in(limit_s, lambda: self.stop(stop)))
        if self._slot.memory_mb > 0:
            self._look_at_memory()

    def _look_at_memory(self) -> None:
        if not self._live:
            return
        limit_mb = self._slot.memory_mb
        members = self._tree()
        used_mb = processes.memory_mb(members, limit_mb)
        if used_mb > limit_mb:
            self.stop(over_memory(used_mb, limit_mb))
        else:
            self._loop.call_in(MEMORY_LOOK_S, self._look_at_memory)

    def touched(self) -> None:
        """Something was written in its working directory."""
        self._reporter.touched()

    def _looked(self) -> None:
        if self._spec.contract == runhpo.CONTRACT:
            runhpo.take_announcement(self._workdir, self._workdir / HINT_FILE)
        self._saver.look_for_hint(self._workdir)

    # --- stopping ---

    def stop(self, stop: Stop) -> None:
        """End it. The first reason counts; a later one can only make it sooner."""
        if self._done or (self._exits and not self._live):
            if self._awaits_word:
                self._stop = self._stop or stop
            return
        times = plan_stop(stop, self._spec, self._loop.now())
        first, self._stop = self._stop is None, self._stop or stop
        self._times = times if self._times is None else times.sooner(self._times)
        if self._live or self._seats is not None:
            if first and stop.warns:
                self._warn()
            self._plan_end(self._times)

    def _plan_end(self, times: Times) -> None:
        self._cancel(self._stop_timers)
        self._stop_timers = [
            self._loop.call_at(times.term_at, self._save_and_terminate),
            # Also when the last save hangs.
            self._loop.call_at(times.kill_at, self._kill),
        ]

    def _warn(self) -> None:
        try:
            # The payload may have put a link there.
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            os.close(os.open(self._workdir / STOP_FILE, flags, 0o600))
        except OSError as error:
            _log.warning("Cannot write the stop file attempt=%s: %s", self.order.attempt, error)
        number = int(getattr(signal, self._spec.warn_signal, signal.SIGUSR2))
        # Who has no handler for it would die of the warning.
        _, listening = self._members(number)
        processes.send(listening, number)

    def _members(self, number: int) -> Tuple[List[processes.Process], Set[int]]:
        """Its processes, and which of them have a handler for a signal."""
        members = self._tree()
        return members, {item.pid for item in members if processes.catches(item.pid, number)}

    def _tree(self) -> List[processes.Process]:
        """All its processes, also those that left; a detached container's, but not its client's.

        Such a client passes signals on: its container would get each of them twice.
        """
        escaped = self._escaped()
        alone = bool(escaped) and self._spec.container is not None
        if alone and self._node.plan.container_runtime in DETACHING:
            return processes.tree(processes.all_processes(), escaped)
        return processes.tree(processes.all_processes(), [*self._roots(), *escaped])

    def _roots(self) -> Set[int]:
        """Its first processes. Ranks are reaped by their launcher: a number may be another's."""
        if self._seats is None:
            return self._live
        return {pid for pid in self._live if processes.attempt_of(pid) == self.order.attempt}

    def _save_and_terminate(self) -> None:
        if self._stop is not None and self._stop.saves:
            self._saver.save_then(self._terminate)
        else:
            self._terminate()

    def _terminate(self) -> None:
        processes.send(processes.to_end(*self._members(signal.SIGTERM)), signal.SIGTERM)

    def _kill(self) -> None:
        for pid in self._roots():
            processes.send_group(pid, signal.SIGKILL)
        if self._seats is not None:
            processes.send(self._escaped(), signal.SIGKILL)
            self._node.tell("abort", {"attempt": self.order.attempt})
            self._stop_timers.append(self._loop.call_in(_LAUNCHER_ENDS_S, self._give_up))
            return
        self._stop_timers.append(self._loop.call_in(_SWEEP_S * _SWEEPS, self._give_up))

    def _give_up(self) -> None:
        """SIGKILL did not help within seconds: stuck in the kernel, often on a dead disk."""
        for pid in self._live:
            self._node.owners.pop(pid, None)
        self._live.clear()
        reason = "its processes cannot be killed; they hang in the kernel"
        if self._seats is not None:
            reason = f"its launcher did not end within {_LAUNCHER_ENDS_S:g} s after its ranks"
        self._finish(Collected(Verdict("failed", "node", reason)))

    # --- ending ---

    def process_ended(self, pid: int, exit_: Exit) -> None:
        """One of its processes was reaped; the rest of its group is being killed."""
        self._live.discard(pid)
        self._exits.append(exit_)
        if not self._live:
            self._all_ended(exit_)
        elif not exit_.good and self._stop is None:
            # The other ranks would wait for this one for ever.
            self._terminate()
            self._stop_timers.append(self._loop.call_in(self._spec.kill_s, self._kill))

    def launch_ended(self, code: Optional[int], said: str) -> None:
        """The launcher call of its ranks is over; whatever is left of them has to end.

        ``code`` None: it was never made. ``said``: the launcher's last words.
        """
        if self._seats is None or self._exits:
            return
        if not self._live and self._stop is None:
            how = "could not be started" if code is None else f"ended with exit code {code}"
            reason = f"the MPI launcher {how} before a rank began on {self._node.host}: {said}"
            self._stop = Stop(Verdict("failed", "site", reason), final=True)
        self._said = said
        self._exits.append(Exit(code=code))
        self._live.clear()
        self._all_ended(self._exits[0])

    def _all_ended(self, exit_: Exit) -> None:
        self._stop_everything()
        if self._stop is None and exit_.was_asked_to_end:
            # Batch systems signal a whole step at once; word of it may be a moment behind.
            self._awaits_word = True
            self._loop.call_in(_WORD_BEHIND_S, lambda: self._sweep(_SWEEPS))
        else:
            self._sweep(_SWEEPS)

    def _stop_everything(self) -> None:
        self._saver.stop()
        self._cancel(self._timers)
        self._cancel(self._stop_timers)
        if self._seats is not None:
            self._seats.close()

    def _sweep(self, rounds: int) -> None:
        """Kill what left the process group, until nothing of it is left."""
        escaped = self._escaped()
        if escaped and rounds:
            processes.send(escaped, signal.SIGKILL)
            self._loop.call_in(_SWEEP_S, lambda: self._sweep(rounds - 1))
            return
        if escaped:
            count = len(escaped)
            _log.warning("Processes stay alive attempt=%s n=%d", self.order.attempt, count)
        self._awaits_word = False
        self._streams.drain()
        if self._stop is not None and self._stop.saves and self._exit.signal is None:
            # It ended by itself, so its files are whole: they may be newer than the last look.
            self._saver.save_then(self._collect)
        else:
            self._saver.when_idle(self._collect)

    def _escaped(self) -> List[int]:
        if self._seats is not None:
            # Children of the launcher's, wherever they went.
            mine = processes.marked(self.order.attempt, self._node.agent_nonce)
            return [pid for pid in mine if pid not in self._node.owners]
        known = self._node.owners.keys() | self._node.helpers
        return processes.strays(self.order.attempt, known)

    @property
    def _exit(self) -> Exit:
        """The exit that counts: the first that was not good."""
        return next((item for item in self._exits if not item.good), self._exits[0])

    def _collect(self) -> None:
        left = Leftovers(
            self.order,
            self._spec,
            self._workdir,
            self._exit,
            self._streams.stderr.tail() or self._said,
            self._node.spool,
            self._node.incarnation,
            self._node.workplace.node_local,
            self._is_first,
            self._node.plan.container_runtime,
        )
        if needs_thread(left):
            self._loop.worker.submit(lambda: collect(left), self._collected)
        else:
            self._collected(_outcome_of(lambda: collect(left)))

    def _collected(self, result: Any) -> None:  # Any: a Collected or whatever was raised
        if not isinstance(result, Collected):
            _log.error("Could not collect attempt=%s", self.order.attempt, exc_info=result)
            reason = f"the result could not be collected: {result!r}"
            result = Collected(Verdict("failed", "site", reason))
        if self._is_first:
            self._reporter.end()
        self._finish(result)

    def _finish(self, found: Collected) -> None:
        """Tell the outcome and let everything go."""
        if self._done:
            return
        self._done = True
        self._stop_everything()
        self._streams.drain()
        whole = self._event(found)
        shown = self.relays_output or whole.state != "succeeded"
        event = whole if shown else replace(whole, stdout=None, stderr=None)
        if not self._node.plan.keep_workdirs:
            self._remove_workdir()
        self._ended(event, whole)

    def _remove_workdir(self) -> None:
        workdir = self._workdir
        if not remove_if_plain(workdir, usual_files(self._spec)):
            # A node may be lent to the same payload again before the thread gets there.
            aside = self._node.workplace.set_aside(self.order.attempt)
            self._loop.worker.submit(lambda: remove_tree(aside), _nothing)

    def _event(self, found: Collected) -> AttemptEnded:
        verdict = verdict_of(found.verdict, self._stop)
        exit_ = self._exit if self._exits else Exit()
        return AttemptEnded(
            attempt=self.order.attempt,
            state=verdict.state,
            blame=verdict.blame,
            reason=None if verdict.succeeded else _joined(verdict.reason, *found.notes),
            loss=verdict.loss,
            message=_joined(verdict.message, *found.notes) if verdict.succeeded else None,
            metadata=found.metadata,
            metadata_file=found.metadata_file,
            metrics_file=found.metrics_file,
            exit_code=exit_.code,
            signal=exit_.signal,
            duration_s=round(self._loop.now() - self._began, 3),
            progress=self._saver.progress,
            stdout=bounded_text(self._streams.stdout.text(), INLINE_LIMIT_BYTES),
            stderr=bounded_text(self._streams.stderr.text(), INLINE_LIMIT_BYTES),
        )

    @staticmethod
    def _cancel(timers: List[Timer]) -> None:
        for timer in timers:
            timer.cancel()


def _joined(*parts: Optional[str]) -> Optional[str]:
    return "; ".join(part for part in parts if part) or None


def _outcome_of(function: Callable[[], Any]) -> Any:  # Any: as the worker hands it back
    try:
        return function()
    except Exception as error:  # noqa: BLE001 - what a worker thread does, without the thread
        return error


def _nothing(_result: Any) -> None:
    """Removing a directory is a best effort."""
