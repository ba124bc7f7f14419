"""Requests to the file server on a site's login node, over one session of the open connection.

One request at a time, each with a deadline. A session that fails is dropped; the next request
begins another, not more often than every few seconds.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from harvester.remote.link import Link, NoConnection
from harvester.remote.login import install_script, posix_line, serve_script, session_command
from payload_runner.fileserver import GREETING, BrokenFrame, Frame, encode_frame, read_frame

RETRY_S = 5.0
# Banners and what login shells print before the server speaks.
_NOISE_BYTES = 64 * 1024
_START_AT_LEAST_S = 20.0
_LEAVES_S = 5.0
_WORDS = 500


class _Cut(Exception):
    """The session failed; what was asked for may or may not have happened."""


class Channel:
    """The session with the file server of one spool. Safe to call from several threads."""

    def __init__(
        self,
        link: Link,
        spool: Path,
        runner: Path,
        archive: Callable[[], bytes],
        monotonic: Callable[[], float],
    ) -> None:
        """``runner``: where the payload runner's zipapp lies there, ``archive``: its bytes."""
        self._link = link
        self._spool = spool
        self._runner = runner
        self._archive = archive
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._session: _Session | None = None
        self._failed_at = float("-inf")
        self.failure: str | None = None  # why there is no session; None: there is, or none yet
        self.requests = 0

    def request(self, head: Mapping[str, Any], body: bytes = b"") -> Frame:
        """One round trip.

        Raises:
            OSError: as the operation there did; with ENOTCONN or ETIMEDOUT it may or may not
                have happened, as with a file system that stalls.
        """
        timeout_s = self._link.remote.timeout_s
        if not self._lock.acquire(timeout=2 * timeout_s):
            raise OSError(errno.ETIMEDOUT, f"{self._link.remote.host} does not answer")
        try:
            return self._ask(encode_frame(head, body), timeout_s)
        finally:
            self._lock.release()

    def close(self) -> None:
        """End the session; the next request begins another."""
        with self._lock:
            if self._session is not None:
                self._session.end()
                self._session = None

    def _ask(self, frame: bytes, timeout_s: float) -> Frame:
        session = self._session or self._begin()
        self.requests += 1
        try:
            return session.ask(frame, self._monotonic() + timeout_s)
        except _Cut as error:
            self._session = None
            session.end()
            raise self._fail(str(error)) from error

    def _begin(self) -> _Session:
        if self._monotonic() - self._failed_at < RETRY_S:
            raise OSError(errno.ENOTCONN, self.failure or "no connection")
        try:
            self._link.ensure()
            session = self._start()
        except (NoConnection, _Cut) as error:
            raise self._fail(str(error)) from error
        self._session, self.failure = session, None
        return session

    def _start(self) -> _Session:
        """A session whose server has spoken; the server is brought there if that is needed."""
        try:
            return self._serve()
        except _Cut:
            if not self._link.is_open():
                raise
        self._install()
        return self._serve()

    def _serve(self) -> _Session:
        remote = self._link.remote
        line = posix_line(serve_script(remote, self._runner, self._spool))
        session = _Session(session_command(remote, self._link.socket, line), self._monotonic)
        limit_s = max(_START_AT_LEAST_S, remote.timeout_s)
        try:
            session.await_greeting(self._monotonic() + limit_s)
        except _Cut:
            session.end()
            raise
        return session

    def _install(self) -> None:
        remote = self._link.remote
        line = posix_line(install_script(self._runner))
        try:
            done = subprocess.run(
                session_command(remote, self._link.socket, line),
                input=self._archive(),
                capture_output=True,
                timeout=max(_START_AT_LEAST_S, remote.timeout_s),
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _Cut(f"{remote.host}: the payload runner cannot be brought: {error}") from error
        if done.returncode != 0:
            words = done.stderr.decode(errors="replace").strip()[-_WORDS:]
            raise _Cut(f"{remote.host}: the payload runner cannot be brought: {words}")

    def _fail(self, why: str) -> OSError:
        self._failed_at = self._monotonic()
        self.failure = why
        return OSError(errno.ENOTCONN, why)


class _Session:
    """One ssh session with a file server at its other end."""

    def __init__(self, command: tuple[str, ...], monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed by end()
        self._buffer = bytearray()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                bufsize=0,
                start_new_session=True,  # Ctrl-C is for us, which then end it in order
            )
        except OSError as error:
            self._said.close()
            raise _Cut(f"ssh cannot be started: {error.strerror}") from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin.fileno(), self._process.stdout.fileno()
        for descriptor in (self._stdin, self._stdout):
            os.set_blocking(descriptor, False)

    def await_greeting(self, deadline: float) -> None:
        """Wait until the server speaks; what comes before it is thrown away."""
        while (at := self._buffer.find(GREETING)) < 0:
            if len(self._buffer) > _NOISE_BYTES:
                raise _Cut("the login shell prints without end")
            self._receive(deadline)
        del self._buffer[: at + len(GREETING)]

    def ask(self, frame: bytes, deadline: float) -> Frame:
        """Send a frame and wait for its answer."""
        self._send(frame, deadline)
        try:
            return read_frame(lambda count: self._take(count, deadline))
        except BrokenFrame as error:
            raise _Cut(f"the file server answers nonsense: {error}") from error

    def end(self) -> None:
        """End the session at once; the server ends with its input."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._said):
            assert pipe is not None
            pipe.close()

    def _send(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            self._await(self._stdin, selectors.EVENT_WRITE, deadline)
            try:
                view = view[os.write(self._stdin, view) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise _Cut(self._last_words()) from error

    def _take(self, count: int, deadline: float) -> bytes:
        while len(self._buffer) < count:
            self._receive(deadline)
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def _receive(self, deadline: float) -> None:
        self._await(self._stdout, selectors.EVENT_READ, deadline)
        try:
            data = os.read(self._stdout, 1 << 20)
        except BlockingIOError:
            return
        if not data:
            raise _Cut(self._last_words())
        self._buffer += data

    def _await(self, descriptor: int, event: int, deadline: float) -> None:
        left = deadline - self._monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, event)
            if left <= 0 or not selector.select(left):
                raise _Cut("the login node does not answer in time")

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_LEAVES_S)  # its pipes are closed: it is on its way out
        self._said.seek(0)
        words = " ".join(self._said.read()[-4 * _WORDS :].decode(errors="replace").split())
        return f"the session ended: {words[-_WORDS:] or 'ssh did not say why'}"
