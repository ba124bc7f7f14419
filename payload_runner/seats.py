"""Seats on a node for the ranks of an MPI payload.

The site's launcher starts a small shim per rank (``rank``). It asks the agent of its node for a
seat over an abstract socket, and gets what it is to become: command, environment, directory and
the pipes of its output as descriptors, cores and variables of its own as JSON. So ranks are
watched, signalled and listened to by the agent, although they are children of the launcher's.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import struct
from dataclasses import dataclass
from typing import Any, Callable, Dict, FrozenSet, Optional, Tuple

from payload_runner.loop import Loop

MESSAGE_LIMIT = 16 * 1024  # of a word between shim and agent; what is large comes as a file
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid of SO_PEERCRED: unix(7)


@dataclass(frozen=True)
class Play:
    """What every rank of a node becomes; handed over as a file in memory."""

    argv: Tuple[str, ...]
    environment: Dict[str, str]
    workdir: str


@dataclass(frozen=True)
class Seat:
    """What one rank gets of its own. The descriptors are the caller's to close."""

    variables: Dict[str, str]
    cores: FrozenSet[int]
    stdout: int
    stderr: int


def address_of(tag: str, attempt: str, node: int) -> str:
    """Where the agent of a node gives away the seats of an attempt: an abstract unix socket."""
    named = hashlib.sha256(f"{tag}/{attempt}/{node}".encode()).hexdigest()[:40]
    return f"\0harvester-ranks/{named}"


class Seats:
    """Gives away ``count`` seats at an address, each once. Runs in the agent's loop."""

    def __init__(
        self,
        loop: Loop,
        address: str,
        play: Play,
        *,
        first_rank: int,
        count: int,
        take: Callable[[int, int], Seat],
    ) -> None:
        """``take(local rank, process id)`` opens a seat for a rank that has come.

        Raises:
            OSError: the address is taken, or the kernel has no files in memory.
        """
        self._loop = loop
        self._first_rank = first_rank
        self._free = list(range(count))
        self._take = take
        self._guests: Dict[int, socket.socket] = {}
        self._play = os.memfd_create("harvester-play")
        os.write(self._play, json.dumps(play.__dict__).encode())
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._listener.bind(address)
            self._listener.listen(count + 16)
        except OSError:
            self._listener.close()
            os.close(self._play)
            raise
        self._listener.setblocking(False)
        loop.watch(self._listener.fileno(), self._welcome)

    def close(self) -> None:
        """Give no more seats away. Calling twice is safe."""
        if self._listener.fileno() < 0:
            return
        self._loop.unwatch(self._listener.fileno())
        self._listener.close()
        os.close(self._play)
        for fd in list(self._guests):
            self._dismiss(fd)

    def _welcome(self) -> None:
        try:
            guest, _ = self._listener.accept()
        except OSError:  # gone before we took it, or out of descriptors
            return
        if _peer(guest)[1] != os.getuid():
            guest.close()
            return
        guest.setblocking(False)
        fd = guest.fileno()
        self._guests[fd] = guest
        self._loop.watch(fd, lambda: self._serve(fd))

    def _serve(self, fd: int) -> None:
        guest = self._guests[fd]
        try:
            with contextlib.suppress(BlockingIOError, OSError):
                self._answer(guest, guest.recv(MESSAGE_LIMIT))
        finally:
            self._dismiss(fd)

    def _answer(self, guest: socket.socket, asked: bytes) -> None:
        local = self._choose(asked)
        if local is None:
            guest.send(json.dumps({"refused": "every seat of this node is taken"}).encode())
            return
        seat = self._take(local, _peer(guest)[0])
        word = {"variables": seat.variables, "cores": sorted(seat.cores)}
        try:
            data, fds = json.dumps(word).encode(), [self._play, seat.stdout, seat.stderr]
            socket.send_fds(guest, [data], fds)
        finally:
            os.close(seat.stdout)
            os.close(seat.stderr)

    def _choose(self, asked: bytes) -> Optional[int]:
        """The seat that goes with the launcher's rank; any other where it counts differently."""
        rank = _rank_in(asked)
        wanted = None if rank is None else rank - self._first_rank
        if wanted in self._free:
            self._free.remove(wanted)
            return wanted
        return self._free.pop(0) if self._free else None

    def _dismiss(self, fd: int) -> None:
        guest = self._guests.pop(fd)
        self._loop.unwatch(fd)
        guest.close()


def _peer(guest: socket.socket) -> Tuple[int, int]:
    """Process and user id of the other side, as the kernel knows them."""
    data = guest.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(data)
    return int(pid), int(uid)


def _rank_in(asked: bytes) -> Optional[int]:
    try:
        found: Any = json.loads(asked)
    except ValueError:
        return None
    rank = found.get("rank") if isinstance(found, dict) else None
    return rank if isinstance(rank, int) else None
