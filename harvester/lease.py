"""The lease on a spool: who drives it, proven by an epoch that only grows (rules 13 and 14).

Owns ``leases/<epoch>`` and ``lease.json`` in the spool, ``observation.json`` and
``turn.<epoch>.<n>`` in the state directory. An epoch is claimed by creating its file exclusively;
``lease.json`` carries the counter by which others see that the holder lives. After a clean exit
the next run of the same state directory goes on with the same epoch; which run that is, is again
decided by an exclusive creation (the turn).
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from harvester.clock import Clock, iso
from harvester.errors import Fenced, StorageUnavailable
from harvester.processes import boot_id, process_identity
from payload_runner.files import Files
from payload_runner.protocol import BadRecord, SpoolPaths, dump_json, load_json

log = logging.getLogger(__name__)

PERIOD_S = 60.0
RENEWALS_PER_PERIOD = 4
_READ_LIMIT = 64 * 1024
_T = TypeVar("_T")


@dataclass(frozen=True)
class Holder:
    """``lease.json``: who drives, and the counter that shows it is alive."""

    epoch: int
    turn: int
    counter: int
    state_id: str  # names the state directory, not the process
    host: str
    pid: int
    process: str  # boot id and start time of the process, to tell a reused pid
    since: str
    released: bool = False

    def __str__(self) -> str:
        return f"{self.host} (pid {self.pid}, since {self.since})"


@dataclass(frozen=True)
class _Observation:
    epoch: int
    turn: int
    counter: int
    since: float  # the observer's monotonic clock
    boot: str


@dataclass(frozen=True, slots=True)
class Process:
    """A process of this host as the lease names it."""

    host: str
    pid: int
    identity: str
    boot: str


def this_process() -> Process:
    """The process that runs this code."""
    pid = os.getpid()
    return Process(socket.gethostname(), pid, process_identity(pid) or "", boot_id())


def is_provably_dead(holder: Holder) -> bool:
    """Whether the holder ran on this host and its process is gone."""
    if holder.host != socket.gethostname() or not holder.process:
        return False
    return process_identity(holder.pid) != holder.process


class Lease:
    """The right of this process to drive one spool.

    ``acquire`` until it answers 0, then ``renew`` often and ``check`` before every effect on
    others. All methods may raise ``Fenced`` (another drives: stop acting) and
    ``StorageUnavailable`` (the file system refuses: not renewed).
    """

    def __init__(
        self,
        files: Files,
        spool: SpoolPaths,
        state_dir: Path,
        clock: Clock,
        *,
        state_id: str,
        process: Process | None = None,
        period_s: float = PERIOD_S,
        is_dead: Callable[[Holder], bool] = is_provably_dead,
    ) -> None:
        self.period_s = period_s
        self._files = files
        self._spool = spool
        self._state_dir = state_dir
        self._clock = clock
        self._state_id = state_id
        self._process = process or this_process()
        self._is_dead = is_dead
        self._held: Holder | None = None
        self._renewed_at = 0.0
        self.continued = False

    @property
    def epoch(self) -> int:
        """The epoch that is held. Raises Fenced when none is."""
        return self._holding().epoch

    @property
    def holder(self) -> str:
        """Whom the lease names, for people."""
        return str(self._holding())

    @property
    def pid(self) -> int:
        """The process that the lease names. Raises Fenced when none is held."""
        return self._holding().pid

    def acquire(self) -> float:
        """Try to take the lease; 0.0 when it is held, else the seconds until asking again helps.

        Raises:
            Fenced: another process holds it and is alive; says which.
        """
        if self._held is not None:
            return 0.0
        try:
            return self._try_acquire()
        except OSError as error:
            raise StorageUnavailable(f"the lease of {self._spool.root}: {error}") from error

    def renew_due_in(self) -> float:
        """Seconds until ``renew`` writes again."""
        due = self._renewed_at + self.period_s / RENEWALS_PER_PERIOD
        return max(0.0, due - self._clock.monotonic())

    def renew(self) -> None:
        """Advance the counter when that is due."""
        if self._held is not None and self.renew_due_in() > 0:
            return
        holding = self._holding()
        began = self._clock.monotonic()
        try:
            self._refuse_if_newer(holding.epoch)
            self._write(replace(holding, counter=holding.counter + 1))
        except OSError as error:
            raise StorageUnavailable(f"the lease of {self._spool.root}: {error}") from error
        # Counted from before the write: an observer may have seen the counter move only later.
        self._renewed_at = began

    def check(self) -> None:
        """Return only if acting is allowed now. Safe to call from any thread.

        Raises:
            Fenced: a newer epoch exists, or the last renewal is a period old.
        """
        holding = self._holding()
        if self._clock.monotonic() - self._renewed_at >= self.period_s:
            raise Fenced(
                f"the lease on {self._spool.root} was not renewed for {self.period_s:g} s; "
                "nothing is done until it is"
            )
        if self._files.exists(self._spool.epoch_claim(holding.epoch + 1)):
            raise Fenced(f"epoch {holding.epoch} of {self._spool.root} has a successor")

    def release(self) -> None:
        """Mark a clean exit: everything of this epoch is committed and its logs are closed."""
        if self._held is None:
            return
        holding, self._held = self._held, None
        try:
            self._refuse_if_newer(holding.epoch)
            self._files.replace(
                self._spool.lease,
                dump_json(replace(holding, counter=holding.counter + 1, released=True)),
            )
        except (OSError, Fenced) as error:
            log.warning("Could not release the lease. epoch=%s reason=%s", holding.epoch, error)

    def _try_acquire(self) -> float:
        newest = self._newest_epoch()
        holder = self._read_holder()
        if holder is None or holder.epoch != newest:
            # A claim without its lease.json: the claimer died or is about to write it.
            holder = Holder(newest, 0, 0, "", "another process", 0, "", "just now")
            if newest == 0:
                return self._claim(1)
        elif holder.released:
            if holder.state_id == self._state_id:
                return self._continue(holder)
            return self._claim(newest + 1)
        elif self._is_dead(holder):
            log.info("Take over from a dead process. holder=%s epoch=%s", holder, newest)
            return self._claim(newest + 1)
        return self._observe(holder)

    def _observe(self, holder: Holder) -> float:
        now = self._clock.monotonic()
        seen = self._read_observation()
        fresh = _Observation(holder.epoch, holder.turn, holder.counter, now, self._process.boot)
        if (
            seen is None
            or seen.boot != fresh.boot
            or seen.since > now
            or seen.epoch != fresh.epoch
            or seen.turn != fresh.turn
        ):
            self._files.replace(self._observation_path, dump_json(fresh))
            return self.period_s
        if seen.counter != fresh.counter:
            self._files.replace(self._observation_path, dump_json(fresh))
            if now - seen.since > 2 * self.period_s:
                return self.period_s  # it lived at some time since; whether it lives is open
            raise Fenced(
                f"{holder} drives {self._spool.root}; stop it first, or wait for its lease to end"
            )
        left = seen.since + self.period_s - now
        if left > 0:
            return left
        log.info("Take over an expired lease. holder=%s epoch=%s", holder, holder.epoch)
        return self._claim(holder.epoch + 1)

    def _claim(self, epoch: int) -> float:
        try:
            self._files.create_exclusive(self._spool.epoch_claim(epoch), self._claim_text())
        except FileExistsError:
            return self.period_s / RENEWALS_PER_PERIOD  # somebody was first: look again
        return self._hold(epoch, turn=0)

    def _continue(self, holder: Holder) -> float:
        turn = holder.turn + 1
        try:
            self._files.create_exclusive(self._turn_path(holder.epoch, turn), self._claim_text())
        except FileExistsError:
            # Another run of ours took it; if it died before writing the lease, observe tells.
            return self._observe(replace(holder, turn=turn))
        # One that read lease.json long ago could create an old turn that was tidied away.
        if (holder.epoch, turn) != self._newest_turn() or self._newest_epoch() != holder.epoch:
            return self.period_s / RENEWALS_PER_PERIOD
        self._files.remove(self._turn_path(holder.epoch, turn - 1))
        self.continued = True
        return self._hold(holder.epoch, turn)

    def _hold(self, epoch: int, turn: int) -> float:
        process = self._process
        began = self._clock.monotonic()
        since = iso(self._clock.now())
        self._write(
            Holder(
                epoch, turn, 1, self._state_id, process.host, process.pid, process.identity, since
            )
        )
        self._renewed_at = began
        self._refuse_if_newer(epoch)
        log.info("Hold the lease. spool=%s epoch=%s turn=%s", self._spool.root, epoch, turn)
        return 0.0

    def _write(self, holder: Holder) -> None:
        self._files.replace(self._spool.lease, dump_json(holder))
        self._held = holder

    def _refuse_if_newer(self, epoch: int) -> None:
        newest = self._newest_epoch()
        if newest > epoch:
            self._held = None
            now = self._read_holder()
            raise Fenced(f"epoch {newest} of {self._spool.root} is driven by {now or 'another'}")

    def _holding(self) -> Holder:
        if self._held is None:
            raise Fenced(f"no lease on {self._spool.root} is held")
        return self._held

    def _newest_epoch(self) -> int:
        names = self._files.listdir(self._spool.leases)
        return max((int(name) for name in names if name.isdecimal()), default=0)

    def _newest_turn(self) -> tuple[int, int]:
        found = [(0, 0)]
        for name in self._files.listdir(self._state_dir):
            parts = name.split(".")
            if parts[0] == "turn" and len(parts) == 3 and all(map(str.isdecimal, parts[1:])):
                found.append((int(parts[1]), int(parts[2])))
        return max(found)

    def _read_holder(self) -> Holder | None:
        return _read_json(self._files, self._spool.lease, Holder)

    def _read_observation(self) -> _Observation | None:
        return _read_json(self._files, self._observation_path, _Observation)

    @property
    def _observation_path(self) -> Path:
        return self._state_dir / "observation.json"

    def _turn_path(self, epoch: int, turn: int) -> Path:
        return self._state_dir / f"turn.{epoch}.{turn}"

    def _claim_text(self) -> bytes:
        return (json.dumps({"host": self._process.host, "pid": self._process.pid}) + "\n").encode()


def _read_json(files: Files, path: Path, cls: type[_T]) -> _T | None:
    try:
        return load_json(files.read(path, 0, _READ_LIMIT), cls)
    except (FileNotFoundError, BadRecord):
        return None  # absent, stale or half visible: the caller looks again later
