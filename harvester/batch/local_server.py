"""The scheduler process of the local batch system: ``python -m harvester.batch.local_server DIR``.

One per directory (flock), started on demand by the first submission, gone when there was no job
for a minute. It answers requests on a unix socket, starts queued jobs, and writes the accounting.
It sleeps in one select: clients, the ends of shepherds (pidfds) and signals wake it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

from harvester.batch.local_jobs import Jobs, RequestRefused, reap
from harvester.batch.local_records import Records
from harvester.batch.local_shepherd import become_subreaper
from harvester.batch.local_wire import (
    Message,
    connect,
    is_same_user,
    listen,
    read_message,
    send_message,
    unlisten,
)
from payload_runner.protocol import BadRecord

IDLE_S = 60.0
_CLIENT_S = 5.0  # a client that is slower than this is cut off
_LOCK_WAIT_S = 5.0  # for a predecessor that is on its way out


class Server:
    """Clients, signals and the ends of shepherds, in one select. The caller holds the lock."""

    def __init__(self, records: Records, idle_s: float) -> None:
        self._records = records
        self._idle_s = idle_s
        self._jobs = Jobs(records, self._wait_for)
        self._leaving: list[socket.socket] = []  # clients that wait for our end
        self._stopped = False
        self._selector = selectors.DefaultSelector()
        self._listener = self._listen()
        self._wakeup, self._signals = socket.socketpair()

    def serve(self) -> None:
        """Run until idle for long enough, or told to stop; jobs that run are not touched then."""
        self._catch_signals()
        become_subreaper()
        self._jobs.recover()
        idle_since = time.monotonic()
        while not self._stopped:
            self._jobs.start()
            if self._jobs:
                idle_since = time.monotonic()
            left = None if self._jobs else idle_since + self._idle_s - time.monotonic()
            if left is not None and (left <= 0 or self._leaving):
                if self._try_to_leave():
                    return
                continue
            for key, _ in self._selector.select(left):
                self._handle(key)

    # --- waking up ---

    def _listen(self) -> socket.socket:
        listener = listen(self._records.directory)
        self._selector.register(listener, selectors.EVENT_READ, "client")
        return listener

    def _catch_signals(self) -> None:
        self._wakeup.setblocking(False)
        self._signals.setblocking(False)
        signal.set_wakeup_fd(self._signals.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _ignore)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._stop)
        self._selector.register(self._wakeup, selectors.EVENT_READ, "signal")

    def _stop(self, *_: object) -> None:
        self._stopped = True

    def _handle(self, key: selectors.SelectorKey) -> None:
        if key.data == "client":
            self._serve_clients()
        elif key.data == "signal":
            with contextlib.suppress(BlockingIOError):
                self._wakeup.recv(4096)
            reap()
        else:
            self._selector.unregister(key.fileobj)
            os.close(key.fd)
            self._jobs.settle(key.data)

    def _wait_for(self, pidfd: int, job_id: str) -> None:
        self._selector.register(pidfd, selectors.EVENT_READ, job_id)

    def _try_to_leave(self) -> bool:
        """Close the door, look once more whether somebody stands in it, and go."""
        unlisten(self._records.directory)
        self._serve_clients()
        self._selector.unregister(self._listener)
        self._listener.close()
        if self._jobs:
            self._listener = self._listen()
            return False
        return True

    # --- clients ---

    def _serve_clients(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except BlockingIOError:
                return
            try:
                self._serve(client)
            except OSError:
                client.close()  # it went away or was too slow; the others wait
            except Exception:  # noqa: BLE001 - one bad request must not end the scheduler
                traceback.print_exc()
                client.close()

    def _serve(self, client: socket.socket) -> None:
        client.settimeout(_CLIENT_S)
        if not is_same_user(client):
            client.close()
            return
        request = read_message(client)
        if request.get("do") == "leave":
            self._leaving.append(client)
            self._jobs.cancel_all()
            return
        with client:
            send_message(client, self._answer(request))

    def _answer(self, request: Message) -> Message:
        try:
            return {"ok": self._jobs.do(request)}
        except (RequestRefused, BadRecord) as error:
            return {"refused": str(error)}
        except OSError as error:
            return {"failed": f"the scheduler cannot write its records: {error}"}


def main(argv: list[str]) -> int:
    """Become the scheduler of a directory; returns in the first process once it listens.

    Returns 0 as well when another scheduler answers there already.
    """
    os.umask(0o077)
    records = Records(Path(argv[0]).resolve())
    idle_s = float(argv[1]) if len(argv) > 1 else IDLE_S
    records.prepare()
    lock = _take_lock(records)
    if lock is None:
        return 0
    records.roll_accounting()
    server = Server(records, idle_s)
    if os.fork():
        os._exit(0)  # not through Python's exit: the socket belongs to the child now
    os.setsid()
    try:
        server.serve()
    except Exception:  # noqa: BLE001 - the edge of the process; the log keeps the reason
        traceback.print_exc()
        return 70
    return 0


def _take_lock(records: Records) -> int | None:
    """The lock's descriptor, which keeps it; None when another scheduler answers."""
    fd = os.open(records.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    give_up = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            pass
        try:
            connect(records.directory, 1.0).close()
        except OSError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.01)  # the holder is coming up or going away
        else:
            os.close(fd)
            return None


def _ignore(*_: object) -> None:
    """A handler, so that the signal reaches the wake-up descriptor."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
