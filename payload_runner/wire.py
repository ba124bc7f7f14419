"""The wire between leader and agents: frames, numbers that outlive a connection, proofs.

Newline-framed JSON. A connection opens with a challenge both ways: each side proves with an HMAC
that it knows the incarnation's secret, which itself never crosses the wire. Then frames are
``[seq, kind, fields]`` and ``[0, "ack", seq]``.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import select
import socket
from collections import deque
from pathlib import Path
from typing import Any, Deque, Dict, List, Optional, Tuple

from payload_runner.transport import Message

MAX_FRAME_BYTES = 4 * 1024 * 1024
ACK_EVERY = 64  # acknowledgements only bound the memory of the other side
_READ_BYTES = 64 * 1024  # below what the C library asks the kernel for anew each time
# A host that vanished without a word is noticed after about 10 + 4 * 5 s.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 4))
_USER_TIMEOUT_MS = 30_000


# One for all: making an encoder costs as much as a frame.
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class Closed(Exception):
    """This connection is over; the session may go on over another."""


class Conversation:
    """One side's numbers: what it sent that is not acknowledged, and what it has received."""

    def __init__(self) -> None:
        self.received = 0
        self._reported = 0
        self._next = 1
        self._unacknowledged: Deque[Tuple[int, bytes]] = deque()

    def outgoing(self, kind: str, fields: Dict[str, Any]) -> Tuple[int, bytes]:
        """Number a message and encode its frame, which is kept until acknowledged."""
        seq, self._next = self._next, self._next + 1
        frame = encode_line([seq, kind, fields])
        self._unacknowledged.append((seq, frame))
        return seq, frame

    def take(self, seq: int) -> bool:
        """Whether a received frame is new. Raises Closed if one before it is missing."""
        if seq <= self.received:
            return False
        if seq != self.received + 1:
            raise Closed("a frame is missing")
        self.received = seq
        return True

    def acknowledged(self, seq: int) -> None:
        """The other side has everything up to ``seq``."""
        while self._unacknowledged and self._unacknowledged[0][0] <= seq:
            self._unacknowledged.popleft()

    def acknowledgement(self) -> bytes:
        """The acknowledgement that is due, or nothing."""
        if self.received - self._reported < ACK_EVERY:
            return b""
        self._reported = self.received
        return encode_line([0, "ack", self.received])

    def resumed(self, seq: int) -> bytes:
        """Everything that a side which has received up to ``seq`` still lacks."""
        self.acknowledged(seq)
        return b"".join(frame for _, frame in self._unacknowledged)


class Stream:
    """A connected socket that carries lines and never blocks."""

    def __init__(self, sock: socket.socket, epoll: select.epoll) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self._epoll = epoll
        self._in = bytearray()
        self._out = bytearray()
        self._writing = False
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)
        epoll.register(self.fd, select.EPOLLIN)

    def lines(self, limit: int = MAX_FRAME_BYTES) -> Tuple[List[bytes], bool]:
        """The complete lines that have come, and whether the connection is still open."""
        is_open = True
        while True:
            try:
                data = self.sock.recv(_READ_BYTES)
            except BlockingIOError:
                break
            except OSError:
                is_open = False
                break
            if not data:
                is_open = False
                break
            self._in += data
            if len(data) < _READ_BYTES:
                break
        *complete, rest = self._in.split(b"\n")
        self._in = rest
        if len(rest) > limit:
            is_open = False
        return [bytes(line) for line in complete], is_open

    def write(self, data: bytes) -> None:
        """Queue; :meth:`pump` sends."""
        self._out += data

    def pump(self) -> None:
        """Send what the socket takes now. Raises Closed."""
        while self._out:
            try:
                sent = self.sock.send(self._out)
            except BlockingIOError:
                break
            except OSError as error:
                raise Closed(str(error)) from error
            del self._out[:sent]
        self._want_write(bool(self._out))

    def close(self) -> None:
        """Close the socket and forget it. Calling twice is safe."""
        with contextlib.suppress(OSError, ValueError):
            self._epoll.unregister(self.fd)
        self.sock.close()

    def _want_write(self, wanted: bool) -> None:
        if wanted != self._writing:
            self._writing = wanted
            mask = select.EPOLLIN | (select.EPOLLOUT if wanted else 0)
            self._epoll.modify(self.fd, mask)


def encode_line(value: Any) -> bytes:
    """One line of JSON. Raises ValueError for NaN and Infinity."""
    return _encode(value).encode("ascii") + b"\n"


def decode_frame(conversation: Conversation, line: bytes) -> Optional[Message]:
    """The message of a frame, or None for an acknowledgement or one that has come before."""
    try:
        seq, kind, fields = json.loads(line)
    except (ValueError, TypeError):
        raise Closed("not a frame") from None
    if seq == 0:
        conversation.acknowledged(int(fields))
        return None
    if not isinstance(fields, dict) or not isinstance(kind, str) or not isinstance(seq, int):
        raise Closed("not a frame")
    return (kind, fields) if conversation.take(seq) else None


def decode_object(line: bytes) -> Dict[str, Any]:
    """A line of the opening. Raises Closed for anything but an object."""
    try:
        value = json.loads(line)
    except ValueError:
        raise Closed("not JSON") from None
    if not isinstance(value, dict):
        raise Closed("not an object")
    return value


def number_of(fields: Dict[str, Any], key: str) -> int:
    """A count among the fields. Raises Closed."""
    value = fields.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise Closed(f"no {key}")
    return value


def proof_of(secret: bytes, *parts: str) -> str:
    """What only one who knows the secret can say about ``parts``."""
    # Length-prefixed, so that no two lists of parts give one text.
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return hmac.new(secret, text.encode(), "sha256").hexdigest()


def local_hosts() -> Tuple[str, ...]:
    """The IPv4 addresses and the name under which other nodes may reach this machine.

    The address behind the host name first; the bare name last, as asking for it may take long.
    """
    found = []
    name = socket.gethostname()
    with contextlib.suppress(OSError):
        found.append(socket.gethostbyname(name))
    with contextlib.suppress(OSError):
        found += _addresses_in(Path("/proc/net/fib_trie").read_text())
    found.append(name)
    return tuple(host for host in dict.fromkeys(found) if not host.startswith("127."))


def _addresses_in(fib_trie: str) -> List[str]:
    """The machine's own addresses in the kernel's routing trie."""
    found = []
    address = ""
    for line in fib_trie.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] in ("|--", "+--"):
            address = words[1]
        elif "host" in words and "LOCAL" in words:
            found.append(address)
    return found
