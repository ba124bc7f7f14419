"""Leader and agents over TCP inside the allocation.

Newline-framed JSON. A connection opens with a challenge both ways: each side proves with an HMAC
that it knows the incarnation's secret, which itself never crosses the wire. Then frames are
``[seq, kind, fields]`` and ``[0, "ack", seq]``. A connection that breaks is made anew by the
agent, and both sides send again what the other has not seen; so every message arrives once.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import select
import socket
from collections import deque
from pathlib import Path
from secrets import token_hex
from typing import Any, Callable, Deque, Dict, List, Optional, Sequence, Set, Tuple

from payload_runner.transport import LinkLost, Message

MAX_FRAME_BYTES = 4 * 1024 * 1024
ACK_EVERY = 64  # acknowledgements only bound the memory of the other side
HANDSHAKE_S = 5.0
ATTEMPT_S = 1.0  # per address
RETRY_S = 0.2
# An agent that lives connects again within a moment; one that does not within this is lost.
AGENT_GRACE_S = 5.0
LEADER_GRACE_S = 10.0
# A host that vanished without a word is noticed after about 10 + 4 * 5 s.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 4))
_USER_TIMEOUT_MS = 30_000


class _Closed(Exception):
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
        frame = _line([seq, kind, fields])
        self._unacknowledged.append((seq, frame))
        return seq, frame

    def take(self, seq: int) -> bool:
        """Whether a received frame is new. Raises _Closed if one before it is missing."""
        if seq <= self.received:
            return False
        if seq != self.received + 1:
            raise _Closed("a frame is missing")
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
        return _line([0, "ack", self.received])

    def resumed(self, seq: int) -> bytes:
        """Everything that a side which has received up to ``seq`` still lacks."""
        self.acknowledged(seq)
        return b"".join(frame for _, frame in self._unacknowledged)


class _Stream:
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
                data = self.sock.recv(256 * 1024)
            except BlockingIOError:
                break
            except OSError:
                is_open = False
                break
            if not data:
                is_open = False
                break
            self._in += data
            if len(data) < 256 * 1024:
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
        """Send what the socket takes now. Raises _Closed."""
        while self._out:
            try:
                sent = self.sock.send(self._out)
            except BlockingIOError:
                break
            except OSError as error:
                raise _Closed(str(error)) from error
            del self._out[:sent]
        self._want_write(bool(self._out))

    def close(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._epoll.unregister(self.fd)
        self.sock.close()

    def _want_write(self, wanted: bool) -> None:
        if wanted != self._writing:
            self._writing = wanted
            mask = select.EPOLLIN | (select.EPOLLOUT if wanted else 0)
            self._epoll.modify(self.fd, mask)


# --- the agent's side ---


class TcpLink:
    """:class:`~payload_runner.transport.AgentLink` over TCP, reconnecting by itself."""

    def __init__(
        self,
        addresses: Sequence[str],
        secret: bytes,
        node: int,
        nonce: str,
        monotonic: Callable[[], float],
        *,
        grace_s: float = LEADER_GRACE_S,
    ) -> None:
        self._addresses = list(addresses)
        self._secret = secret
        self._node = node
        self._nonce = nonce
        self._monotonic = monotonic
        self._grace_s = grace_s
        self._epoll = select.epoll()
        self._conversation = Conversation()
        self._inbox: List[Message] = []
        self._leader: Optional[str] = None  # the one we once agreed with
        self._stream: Optional[_Stream] = None
        self._up = False
        self._down_since = monotonic()
        self._attempt_since = 0.0
        self._retry_at = 0.0
        self._challenge = ""
        self._their_challenge = ""
        self._lost: Optional[str] = None

    def wait_connected(self, timeout_s: float) -> bool:
        """Wait for the first connection to stand; False if it does not in time."""
        until = self._monotonic() + timeout_s
        while not self._up and self._monotonic() < until:
            self._advance()
            if not self._up:
                select.select([self._epoll], [], [], 0.05)
        return self._up

    def fileno(self) -> Optional[int]:
        return self._epoll.fileno()

    def wait_s(self) -> Optional[float]:
        return None if self._up else RETRY_S

    def receive(self) -> List[Message]:
        self._advance()
        got, self._inbox = self._inbox, []
        if self._lost is not None and not got:
            raise LinkLost(self._lost)
        return got

    def send(self, kind: str, fields: Dict[str, Any]) -> int:
        seq, frame = self._conversation.outgoing(kind, fields)
        if self._up and self._stream is not None:
            self._stream.write(frame)
        return seq

    def flush(self) -> None:
        if not self._up:
            self._advance()
        if not self._up or self._stream is None:
            return
        self._stream.write(self._conversation.acknowledgement())
        try:
            self._stream.pump()
        except _Closed:
            self._disconnect()

    def close(self) -> None:
        if self._epoll.closed:
            return
        self.flush()
        if self._stream is not None:
            self._stream.close()
        self._epoll.close()

    def _advance(self) -> None:
        now = self._monotonic()
        if not self._up:
            if now - self._down_since > self._grace_s:
                self._lost = self._lost or "the leader does not answer any more"
                return
            self._reconnect(now)
        if self._stream is None:
            return
        try:
            lines, is_open = self._stream.lines()
            for line in lines:
                self._take(line)
            if not is_open:
                raise _Closed("closed by the leader")
            self._stream.pump()
        except _Closed:
            self._disconnect()

    def _reconnect(self, now: float) -> None:
        if self._stream is not None:
            if now - self._attempt_since > ATTEMPT_S:
                self._disconnect()
            return
        if now < self._retry_at:
            return
        # Round and round through the addresses; the one that worked stays in front.
        address = self._addresses.pop(0)
        self._addresses.append(address)
        self._attempt_since = now
        self._retry_at = now + RETRY_S / len(self._addresses)
        with contextlib.suppress(OSError):
            self._stream = _Stream(_begin_connect(address), self._epoll)

    def _disconnect(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        if self._up:
            self._up = False
            self._down_since = self._monotonic()
        self._challenge = ""

    def _take(self, line: bytes) -> None:
        if self._up:
            message = _frame(self._conversation, line)
            if message is not None:
                self._inbox.append(message)
        elif not self._challenge:
            self._answer(_object(line))
        else:
            self._accept(_object(line))

    def _answer(self, opening: Dict[str, Any]) -> None:
        """First line of the leader: its name and challenge. Prove ourselves and ask the same."""
        assert self._stream is not None
        if self._leader is not None and opening.get("leader") != self._leader:
            self._lost = "another leader answers in the place of ours"
            raise _Closed(self._lost)
        self._their_challenge = str(opening.get("challenge"))
        self._challenge = token_hex(16)
        hello = {
            "node": self._node,
            "nonce": self._nonce,
            "challenge": self._challenge,
            "leader": str(opening.get("leader")),
            "received": self._conversation.received,
            "proof": _proof(
                self._secret,
                "agent",
                str(self._node),
                self._nonce,
                self._their_challenge,
                self._challenge,
            ),
        }
        self._stream.write(_line(hello))

    def _accept(self, answer: Dict[str, Any]) -> None:
        """Second line of the leader: its proof, and how much of ours it has."""
        assert self._stream is not None
        leader = str(answer.get("leader"))
        wanted = _proof(self._secret, "leader", leader, self._challenge, self._their_challenge)
        if not hmac.compare_digest(wanted, str(answer.get("proof"))):
            raise _Closed("the other side does not know the secret")
        self._leader = leader
        self._up = True
        self._addresses.insert(0, self._addresses.pop())
        self._stream.write(self._conversation.resumed(_number(answer, "received")))


def _begin_connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    family, kind, protocol, _, where = socket.getaddrinfo(
        host.strip("[]"), int(port), type=socket.SOCK_STREAM
    )[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        sock.connect_ex(where)
    except OSError:
        sock.close()
        raise
    return sock


# --- the leader's side ---


class _Session:
    def __init__(self, nonce: str) -> None:
        self.nonce = nonce
        self.conversation = Conversation()
        self.stream: Optional[_Stream] = None
        self.down_since = 0.0


class _Stranger:
    """A connection that has not proven itself."""

    def __init__(self, stream: _Stream, since: float) -> None:
        self.stream = stream
        self.since = since
        self.challenge = token_hex(16)


class TcpPort:
    """:class:`~payload_runner.transport.AgentPort` over TCP."""

    def __init__(
        self,
        secret: bytes,
        monotonic: Callable[[], float],
        *,
        loopback: bool,
        grace_s: float = AGENT_GRACE_S,
    ) -> None:
        self._secret = secret
        self._monotonic = monotonic
        self._grace_s = grace_s
        self._name = token_hex(8)
        self._epoll = select.epoll()
        self._listener = socket.create_server(("127.0.0.1" if loopback else "", 0), backlog=1024)
        self._listener.setblocking(False)
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        self._sessions: Dict[int, _Session] = {}
        self._node_of: Dict[int, int] = {}  # by descriptor
        self._strangers: Dict[int, _Stranger] = {}
        self._gone: Set[Tuple[int, str]] = set()  # lost agents: they cannot come back
        self._dirty: Set[int] = set()  # nodes with something to send
        port = self._listener.getsockname()[1]
        hosts = ("127.0.0.1",) if loopback else local_hosts()
        self.addresses: Tuple[str, ...] = tuple(f"{host}:{port}" for host in hosts)

    def fileno(self) -> Optional[int]:
        return self._epoll.fileno()

    def wait_s(self) -> Optional[float]:
        down = any(session.stream is None for session in self._sessions.values())
        return 0.5 if down or self._strangers else None

    def receive(self) -> List[Tuple[int, Message]]:
        got: List[Tuple[int, Message]] = []
        for fd, _ in self._epoll.poll(0):
            if fd == self._listener.fileno():
                self._welcome()
            elif fd in self._strangers:
                self._examine(self._strangers[fd], got)
            elif fd in self._node_of:
                self._read(self._node_of[fd], got)
        self._turn_away()
        return got

    def send(self, node: int, kind: str, fields: Dict[str, Any]) -> None:
        session = self._sessions.get(node)
        if session is None:
            return
        _, frame = session.conversation.outgoing(kind, fields)
        if session.stream is not None:
            session.stream.write(frame)
            self._dirty.add(node)

    def flush(self) -> None:
        for node in list(self._dirty):
            session = self._sessions.get(node)
            if session is None or session.stream is None:
                continue
            session.stream.write(session.conversation.acknowledgement())
            try:
                session.stream.pump()
            except _Closed:
                self._disconnect(node)
        self._dirty.clear()

    def lost(self) -> List[Tuple[int, str]]:
        now = self._monotonic()
        found = [
            node
            for node, session in self._sessions.items()
            if session.stream is None and now - session.down_since > self._grace_s
        ]
        for node in found:
            self.drop(node)
        reason = f"its agent closed the connection and did not come back in {self._grace_s:g} s"
        return [(node, reason) for node in found]

    def drop(self, node: int) -> None:
        session = self._sessions.pop(node, None)
        if session is None:
            return
        self._gone.add((node, session.nonce))
        if session.stream is not None:
            self._node_of.pop(session.stream.fd, None)
            session.stream.close()

    def close(self) -> None:
        if self._epoll.closed:
            return
        self.flush()
        for node in list(self._sessions):
            self.drop(node)
        for stranger in self._strangers.values():
            stranger.stream.close()
        self._strangers.clear()
        self._listener.close()
        self._epoll.close()

    def _welcome(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:  # out of descriptors, or gone before we took it
                return
            stranger = _Stranger(_Stream(sock, self._epoll), self._monotonic())
            stranger.stream.write(_line({"leader": self._name, "challenge": stranger.challenge}))
            self._strangers[stranger.stream.fd] = stranger
            with contextlib.suppress(_Closed):
                stranger.stream.pump()

    def _examine(self, stranger: _Stranger, got: List[Tuple[int, Message]]) -> None:
        lines, is_open = stranger.stream.lines(limit=4096)
        if not lines:
            if not is_open:
                self._refuse(stranger)
            return
        try:
            node = self._admit(stranger, _object(lines[0]))
        except _Closed:
            self._refuse(stranger)
            return
        self._apply(node, lines[1:], is_open, got)

    def _admit(self, stranger: _Stranger, hello: Dict[str, Any]) -> int:
        node, nonce = _number(hello, "node"), str(hello.get("nonce"))
        theirs = str(hello.get("challenge"))
        wanted = _proof(self._secret, "agent", str(node), nonce, stranger.challenge, theirs)
        if not hmac.compare_digest(wanted, str(hello.get("proof"))):
            raise _Closed("wrong secret")
        session = self._sessions.get(node)
        if (node, nonce) in self._gone or (session is not None and session.nonce != nonce):
            raise _Closed("this node is taken")
        if session is None:
            session = self._sessions[node] = _Session(nonce)
        elif session.stream is not None:
            self._disconnect(node)
        stream = session.stream = stranger.stream
        del self._strangers[stream.fd]
        self._node_of[stream.fd] = node
        proof = _proof(self._secret, "leader", self._name, theirs, stranger.challenge)
        received = session.conversation.received
        stream.write(_line({"leader": self._name, "proof": proof, "received": received}))
        stream.write(session.conversation.resumed(_number(hello, "received")))
        self._dirty.add(node)
        return node

    def _refuse(self, stranger: _Stranger) -> None:
        del self._strangers[stranger.stream.fd]
        stranger.stream.close()

    def _turn_away(self) -> None:
        if not self._strangers:
            return
        limit = self._monotonic() - HANDSHAKE_S
        for stranger in list(self._strangers.values()):
            if stranger.since < limit:
                self._refuse(stranger)

    def _read(self, node: int, got: List[Tuple[int, Message]]) -> None:
        stream = self._sessions[node].stream
        assert stream is not None
        self._apply(node, *stream.lines(), got)
        self._dirty.add(node)  # an acknowledgement may be due, or the socket takes more

    def _apply(
        self, node: int, lines: List[bytes], is_open: bool, got: List[Tuple[int, Message]]
    ) -> None:
        conversation = self._sessions[node].conversation
        try:
            for line in lines:
                message = _frame(conversation, line)
                if message is not None:
                    got.append((node, message))
        except _Closed:
            is_open = False
        if not is_open:
            self._disconnect(node)

    def _disconnect(self, node: int) -> None:
        session = self._sessions[node]
        if session.stream is not None:
            self._node_of.pop(session.stream.fd, None)
            session.stream.close()
            session.stream = None
            session.down_since = self._monotonic()


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


# --- frames ---


def _line(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def _frame(conversation: Conversation, line: bytes) -> Optional[Message]:
    """The message of a frame, or None for an acknowledgement or one that has come before."""
    try:
        seq, kind, fields = json.loads(line)
    except (ValueError, TypeError):
        raise _Closed("not a frame") from None
    if seq == 0:
        conversation.acknowledged(int(fields))
        return None
    if not isinstance(fields, dict) or not isinstance(kind, str) or not isinstance(seq, int):
        raise _Closed("not a frame")
    return (kind, fields) if conversation.take(seq) else None


def _object(line: bytes) -> Dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        raise _Closed("not JSON") from None
    if not isinstance(value, dict):
        raise _Closed("not an object")
    return value


def _number(fields: Dict[str, Any], key: str) -> int:
    value = fields.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _Closed(f"no {key}")
    return value


def _proof(secret: bytes, *parts: str) -> str:
    # Length-prefixed, so that no two lists of parts give one text.
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return hmac.new(secret, text.encode(), "sha256").hexdigest()
