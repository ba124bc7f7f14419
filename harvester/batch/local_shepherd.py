"""A job's shepherd: the process between the scheduler and a running job of the local system.

It is the child subreaper of everything the batch script starts, so that no process of the job
can leave its sight by setsid or a double fork, and it keeps the job's walltime. It needs nobody:
when the scheduler dies, the job goes on, is ended in time, and its end lies on disk.

From the scheduler it takes SIGTERM (end the job: cancelled) and SIGUSR1 (end it: requeued).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from harvester.batch.local_processes import descendants, send_signal
from harvester.batch.local_queue import JobSpec, Placement
from harvester.batch.local_records import REQUEUED, EndRecord, Records
from harvester.batch.port import JobEnd

MARK = "HARVESTER_LOCAL_MARK"
_PR_SET_CHILD_SUBREAPER = 36
_CONTROL = frozenset({signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP})
_SWEEP_S = 0.05  # between rounds of SIGKILL: time for processes that fork to be seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Flock:
    """One start of a job, for its shepherd."""

    spec: JobSpec
    placement: Placement
    restarts: int
    kill_s: float
    gpu_variable: str


def mark(records: Records, job: str, restarts: int) -> str:
    """The environment entry that every process of this start of the job is born with."""
    return f"{MARK}={records.directory}:{job}.{restarts}"


def become_subreaper() -> None:
    """Orphans below this process become its children, not init's."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def fork_shepherd(records: Records, flock: Flock) -> tuple[int, int]:
    """A shepherd that waits for a byte, and the descriptor to write it to.

    It starts nothing before that byte, so the caller can record its pid first; if the descriptor
    is closed without one, it leaves and has the job queued again.
    """
    ready, go = os.pipe()
    # Blocked before the fork: a signal must not find the scheduler's handlers in the child.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _CONTROL)
    pid = os.fork()
    if pid == 0:
        _live(records, flock, ready)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    os.close(ready)
    return pid, go


def _live(records: Records, flock: Flock, ready: int) -> NoReturn:
    try:
        os.setsid()
        _close_all_but(ready)
        signal.set_wakeup_fd(-1)
        become_subreaper()
        if os.read(ready, 1):
            os.close(ready)
            _Shepherd(records, flock).tend()
        else:
            reason = "the scheduler died before the job was started"
            end = EndRecord(end=REQUEUED, reason=reason, at=time.time())
            records.save_end(flock.spec.id, flock.restarts, end)
    except BaseException:  # noqa: BLE001 - the edge of a process: it must not return to its parent
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(0)


def _close_all_but(keep: int) -> None:
    """The scheduler's lock, socket and pidfds are not this process's."""
    highest = max(map(int, os.listdir("/proc/self/fd")))
    os.closerange(3, keep)
    os.closerange(keep + 1, highest + 1)


class _Shepherd:
    def __init__(self, records: Records, flock: Flock) -> None:
        self._records = records
        self._flock = flock
        self._spec = flock.spec
        began = time.monotonic()
        self._end_at = began + self._spec.walltime_s
        warned = 0 < self._spec.warn_s < self._spec.walltime_s
        self._warn_at = self._end_at - self._spec.warn_s if warned else self._end_at
        self._script = 0
        self._exit_code: int | None = None  # of the script; negative: died by that signal

    def tend(self) -> None:
        """Run the job from its start to the record of its end."""
        environment = self._environment()
        script = self._records.write_script(self._spec, self._flock.restarts)
        self._script = os.fork()
        if self._script == 0:
            _become_script(script, self._spec.directory, environment)
        why = self._watch()
        self._clear()
        self._records.save_end(self._spec.id, self._flock.restarts, self._end(why))

    def _environment(self) -> dict[str, str]:
        name, _, value = mark(self._records, self._spec.id, self._flock.restarts).partition("=")
        return {
            **self._spec.environment,
            name: value,
            "HARVESTER_LOCAL_JOB_ID": self._spec.id,
            "HARVESTER_LOCAL_RESTART": str(self._flock.restarts),
            "HARVESTER_LOCAL_NODES": ",".join(self._flock.placement.node_names),
            "HARVESTER_LOCAL_END": f"{time.time() + self._spec.walltime_s:.3f}",
            self._flock.gpu_variable: ",".join(map(str, self._flock.placement.gpus)),
        }

    def _watch(self) -> str | None:
        """Wait for the script's end (None), or for a reason to end it (an end's value)."""
        while True:
            number = _wait(min(self._warn_at, self._end_at))
            if number == signal.SIGCHLD:
                self._reap()
                if self._exit_code is not None:
                    return None
            elif number == signal.SIGUSR1:
                return REQUEUED
            elif number is not None:
                return JobEnd.CANCELLED.value
            elif time.monotonic() >= self._end_at:
                return JobEnd.TIMED_OUT.value
            elif time.monotonic() >= self._warn_at:
                self._warn_at = self._end_at
                os.kill(self._script, signal.SIGUSR1)  # not reaped yet, so the pid is still its

    def _clear(self) -> None:
        """End every process of the job: SIGTERM; ``kill_s`` later SIGKILL until none is left."""
        if not self._reap():
            return
        self._signal_all(signal.SIGTERM)
        self._signal_all(signal.SIGCONT)  # a stopped process cannot hear the first
        kill_at = time.monotonic() + self._flock.kill_s
        while self._reap():
            if time.monotonic() >= kill_at:
                self._signal_all(signal.SIGKILL)
                _wait(time.monotonic() + _SWEEP_S)
            else:
                _wait(kill_at)

    def _signal_all(self, number: signal.Signals) -> None:
        for process in descendants([os.getpid()]):
            send_signal(process, number)

    def _reap(self) -> bool:
        """Collect dead children; whether any are left. No child left means no descendant left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._script:
                self._exit_code = os.waitstatus_to_exitcode(status)

    def _end(self, why: str | None) -> EndRecord:
        code = self._exit_code or 0
        how = f"exit {code}" if code >= 0 else f"killed by signal {-code}"
        end = why or (JobEnd.FAILED if code else JobEnd.COMPLETED).value
        return EndRecord(end=end, reason=how, at=time.time())


def _wait(until: float) -> int | None:
    """The next control signal, or None at ``until`` (monotonic)."""
    found = signal.sigtimedwait(_CONTROL, max(0.0, until - time.monotonic()))
    return None if found is None else found.si_signo


def _become_script(script: Path, directory: str, environment: Mapping[str, str]) -> NoReturn:
    """Turn the forked child into the batch script, or exit 127 with the reason in server.log."""
    try:
        os.setsid()
        os.chdir(directory)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        output = os.open("batch.out", flags, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        # Python ignores SIGPIPE, and a signal that is ignored stays so across exec.
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execve("/bin/bash", ["bash", str(script)], dict(environment))
    except BaseException:  # noqa: BLE001 - the edge of a process: it must not return to its parent
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(127)
