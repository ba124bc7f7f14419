"""Runs the commands of a site's batch system on its login node, over the open connection."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence

from harvester.batch.commands import Completed, run_command
from harvester.errors import BatchUnavailable
from harvester.remote.link import Link, NoConnection
from harvester.remote.login import command_script, posix_line, session_command, split_end

_NOT_STARTED = (126, 127)  # exit codes of env(1) and timeout(1)
_TIMED_OUT = (124, 137)
_WORDS = 500

Run = Callable[..., Completed]


class RemoteExecutor:
    """The ``Executor`` of a site on another host. Its environment is the login node's own, and
    what adapters set on top of it: nothing of this host's goes over.
    """

    def __init__(self, link: Link, run: Run = run_command) -> None:
        self._link = link
        self._run = run

    def __call__(
        self, argv: Sequence[str], *, timeout_s: float, environment: Mapping[str, str]
    ) -> Completed:
        command, remote = shlex.join(argv), self._link.remote
        try:
            self._link.ensure()
        except NoConnection as error:
            raise BatchUnavailable(str(error), command=command) from error
        line = posix_line(command_script(argv, environment, remote.prologue, timeout_s))
        words = session_command(remote, self._link.socket, line)
        try:
            done = self._run(words, timeout_s=timeout_s, environment=os.environ)
        except BatchUnavailable as error:
            reason = f"{argv[0]} on {remote.host}: {error}"
            raise BatchUnavailable(reason, command=command) from error
        return read_end(command, remote.host, done)


def read_end(command: str, host: str, done: Completed) -> Completed:
    """What a command on ``host`` came to, from how its ssh session ended.

    Raises:
        BatchUnavailable: the connection ended first, or the command never began or never ended.
    """
    name = command.split(" ", 1)[0]
    ended = split_end(done.stderr)
    if ended is None:
        words = " ".join(done.stderr.split())[-_WORDS:] or "no message"
        raise BatchUnavailable(
            f"{name} was cut off: the connection to {host} ended ({words})",
            command=command,
            returncode=done.returncode,
            stderr=done.stderr,
        )
    stderr, code = ended
    if code in _NOT_STARTED:
        raise BatchUnavailable(
            f"{name} cannot be started on {host}; is the batch system on PATH there? A line in "
            f"remote.prologue can see to it: {stderr.strip()[-_WORDS:]}",
            command=command,
            returncode=code,
            stderr=stderr,
        )
    if code in _TIMED_OUT:
        raise BatchUnavailable(f"{name} did not end in time on {host}", command=command)
    return Completed(command, code, done.stdout, stderr)
