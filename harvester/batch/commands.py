"""Runs the commands of batch systems: one executor, with a deadline and bounded output.

Adapters build argument vectors and read what came back; nothing else in the batch room starts
a process. A command never sees a shell.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol, runtime_checkable

from harvester.batch.port import BatchJob
from harvester.errors import BatchUnavailable

# A user with 20,000 jobs fills about 6 MB of squeue output; beyond this something is wrong.
OUTPUT_LIMIT_BYTES = 32 * 1024 * 1024
# How often a command is looked at whose descendants keep its pipes open after its exit.
_EXIT_CHECK_S = 0.2
_MESSAGE_BYTES = 2000

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that came to its end, whatever its exit code (negative: died by that signal)."""

    command: str
    returncode: int
    stdout: str
    stderr: str

    def unavailable(self, meaning: str) -> BatchUnavailable:
        """The error that says ``meaning`` about this command, with its own words attached."""
        words = self.stderr.strip()[-_MESSAGE_BYTES:] or "no message"
        return BatchUnavailable(
            f"{self.command.split(' ', 1)[0]} {meaning} (exit {self.returncode}): {words}",
            command=self.command,
            returncode=self.returncode,
            stderr=self.stderr,
        )


class Executor(Protocol):
    """Runs one command to its end."""

    def __call__(
        self, argv: Sequence[str], *, timeout_s: float, environment: Mapping[str, str]
    ) -> Completed:
        """Blocks for at most ``timeout_s``.

        Raises:
            BatchUnavailable: the command is not there, did not end in time, or printed more than
                the limit. Its process group has been killed then.
        """


@runtime_checkable
class SubmitsByCommand(Protocol):
    """A batch system whose submissions a person could type."""

    def submit_command(self, job: BatchJob, script: Path) -> tuple[str, ...]:
        """The command that submits ``script``, for people to see."""


def run_command(
    argv: Sequence[str], *, timeout_s: float, environment: Mapping[str, str]
) -> Completed:
    """The :class:`Executor` of production. Safe to call from worker threads."""
    command = shlex.join(argv)
    began = time.monotonic()
    process = _start(argv, command, environment)
    try:
        stdout, stderr = _collect(process, command, began + timeout_s)
        returncode = process.wait(max(0.0, began + timeout_s - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise _gave_up(command, f"did not answer within {timeout_s:g} s") from None
    finally:
        _end(process)
        duration = time.monotonic() - began
        _log.debug("Ran command=%s exit=%s duration_s=%.3f", command, process.returncode, duration)
    return Completed(
        command,
        returncode,
        stdout.decode("utf-8", "backslashreplace"),
        stderr.decode("utf-8", "backslashreplace"),
    )


def _start(
    argv: Sequence[str], command: str, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # a process group of its own, so that all of it can be killed
        )
    except OSError as error:
        reason = f"cannot be started ({error.strerror}); is the batch system on PATH?"
        raise _gave_up(command, reason) from error


def _collect(
    process: subprocess.Popen[bytes], command: str, deadline: float
) -> tuple[bytes, bytes]:
    """What the command wrote until both pipes closed, or it ended and they fell silent."""
    chunks: dict[IO[bytes], bytearray] = {}
    with selectors.DefaultSelector() as selector:
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            chunks[pipe] = bytearray()
            selector.register(pipe, selectors.EVENT_READ, pipe)
        while selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                raise subprocess.TimeoutExpired(command, 0.0)
            # Asked before the look: one that ends after it may have left its last words unread.
            has_ended = process.poll() is not None
            ready = selector.select(min(left, _EXIT_CHECK_S))
            if not ready and has_ended:
                break  # a background process of its own still holds the pipe
            for key, _ in ready:
                _read(key.data, chunks[key.data], command, selector)
    stdout, stderr = chunks.values()
    return bytes(stdout), bytes(stderr)


def _read(pipe: IO[bytes], into: bytearray, command: str, selector: selectors.BaseSelector) -> None:
    data = os.read(pipe.fileno(), 65536)
    if not data:
        selector.unregister(pipe)
    into += data
    if len(into) > OUTPUT_LIMIT_BYTES:
        raise _gave_up(command, f"printed more than {OUTPUT_LIMIT_BYTES} bytes")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leave nothing behind: no process of the group that still runs, no open pipe."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for pipe in (process.stdout, process.stderr):
        assert pipe is not None
        pipe.close()


def _gave_up(command: str, reason: str) -> BatchUnavailable:
    return BatchUnavailable(f"{command.split(' ', 1)[0]} {reason}", command=command)
