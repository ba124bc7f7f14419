"""How clients and scheduler of the local batch system talk: one JSON line each way.

Over a unix socket in the private directory; the peer must be the same user.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_MESSAGE_BYTES = 64 * 1024 * 1024  # a submission carries its environment; a listing all jobs

Message = Mapping[str, Any]  # JSON from another process


def listen(directory: Path) -> socket.socket:
    """A non-blocking listener in ``directory``; what a dead predecessor left is removed.

    Only for the holder of the directory's lock.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    unlisten(directory)
    with _short(directory) as path:
        listener.bind(path)
    listener.listen(64)
    listener.setblocking(False)
    return listener


def unlisten(directory: Path) -> None:
    """Take the socket's name away: nobody new can connect."""
    with _short(directory) as path, contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def connect(directory: Path, timeout_s: float) -> socket.socket:
    """A connection to the scheduler of ``directory``.

    Raises:
        FileNotFoundError, ConnectionRefusedError: none is there.
    """
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    client.settimeout(timeout_s)
    try:
        with _short(directory) as path:
            client.connect(path)
    except BaseException:
        client.close()
        raise
    return client


def send_message(peer: socket.socket, message: Message) -> None:
    """Send one JSON object and a newline; raises OSError."""
    peer.sendall(json.dumps(message).encode("ascii") + b"\n")


def read_message(peer: socket.socket) -> Message:
    """One JSON object, ended by a newline.

    Raises:
        OSError: the peer was too slow, said too much or nonsense, or left before its newline.
    """
    data = bytearray()
    while not data.endswith(b"\n"):
        chunk = peer.recv(1 << 18)
        data += chunk
        if not chunk or len(data) > _MESSAGE_BYTES:
            raise ConnectionAbortedError("no whole message came")
    try:
        value = json.loads(data)
    except ValueError as error:
        raise ConnectionAbortedError("what came is not JSON") from error
    if not isinstance(value, dict):
        raise ConnectionAbortedError("what came is not a JSON object")
    return value


def is_same_user(peer: socket.socket) -> bool:
    """Whether the other end belongs to this user; the kernel vouches for it."""
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    return bool(uid == os.getuid())


@contextlib.contextmanager
def _short(directory: Path) -> Iterator[str]:
    """The socket's path in a form that fits into the 107 bytes of a unix address."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/socket"
    finally:
        os.close(fd)
