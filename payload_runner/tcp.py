"""Leader and agents over TCP inside the allocation.

A connection that breaks is made anew by the agent, and both sides send again what the other has
not seen; so every message arrives once. What crosses the wire is in ``wire``.
"""

from __future__ import annotations

import contextlib
import hmac
import select
import socket
from secrets import token_hex
from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple

from payload_runner.transport import LinkLost, Message
from payload_runner.wire import (
    Closed,
    Conversation,
    Stream,
    decode_frame,
    decode_object,
    encode_line,
    local_hosts,
    number_of,
    proof_of,
)

HANDSHAKE_S = 5.0
ATTEMPT_S = 1.0  # per address
RETRY_S = 0.2
# An agent that lives connects again within a moment; one that does not within this is lost.
AGENT_GRACE_S = 5.0
LEADER_GRACE_S = 10.0


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
        self._stream: Optional[Stream] = None
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
        except Closed:
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
                raise Closed("closed by the leader")
            self._stream.pump()
        except Closed:
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
            self._stream = Stream(_begin_connect(address), self._epoll)

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
            message = decode_frame(self._conversation, line)
            if message is not None:
                self._inbox.append(message)
        elif not self._challenge:
            self._answer(decode_object(line))
        else:
            self._accept(decode_object(line))

    def _answer(self, opening: Dict[str, Any]) -> None:
        """First line of the leader: its name and challenge. Prove ourselves and ask the same."""
        assert self._stream is not None
        if self._leader is not None and opening.get("leader") != self._leader:
            self._lost = "another leader answers in the place of ours"
            raise Closed(self._lost)
        self._their_challenge = str(opening.get("challenge"))
        self._challenge = token_hex(16)
        hello = {
            "node": self._node,
            "nonce": self._nonce,
            "challenge": self._challenge,
            "leader": str(opening.get("leader")),
            "received": self._conversation.received,
            "proof": proof_of(
                self._secret,
                "agent",
                str(self._node),
                self._nonce,
                self._their_challenge,
                self._challenge,
            ),
        }
        self._stream.write(encode_line(hello))

    def _accept(self, answer: Dict[str, Any]) -> None:
        """Second line of the leader: its proof, and how much of ours it has."""
        assert self._stream is not None
        leader = str(answer.get("leader"))
        wanted = proof_of(self._secret, "leader", leader, self._challenge, self._their_challenge)
        if not hmac.compare_digest(wanted, str(answer.get("proof"))):
            raise Closed("the other side does not know the secret")
        self._leader = leader
        self._up = True
        self._addresses.insert(0, self._addresses.pop())
        self._stream.write(self._conversation.resumed(number_of(answer, "received")))


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


class _Session:
    def __init__(self, nonce: str) -> None:
        self.nonce = nonce
        self.conversation = Conversation()
        self.stream: Optional[Stream] = None
        self.down_since = 0.0


class _Stranger:
    """A connection that has not proven itself."""

    def __init__(self, stream: Stream, since: float) -> None:
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
            except Closed:
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
            stranger = _Stranger(Stream(sock, self._epoll), self._monotonic())
            stranger.stream.write(
                encode_line({"leader": self._name, "challenge": stranger.challenge})
            )
            self._strangers[stranger.stream.fd] = stranger
            with contextlib.suppress(Closed):
                stranger.stream.pump()

    def _examine(self, stranger: _Stranger, got: List[Tuple[int, Message]]) -> None:
        lines, is_open = stranger.stream.lines(limit=4096)
        if not lines:
            if not is_open:
                self._refuse(stranger)
            return
        try:
            node = self._admit(stranger, decode_object(lines[0]))
        except Closed:
            self._refuse(stranger)
            return
        self._apply(node, lines[1:], is_open, got)

    def _admit(self, stranger: _Stranger, hello: Dict[str, Any]) -> int:
        node, nonce = number_of(hello, "node"), str(hello.get("nonce"))
        theirs = str(hello.get("challenge"))
        wanted = proof_of(self._secret, "agent", str(node), nonce, stranger.challenge, theirs)
        if not hmac.compare_digest(wanted, str(hello.get("proof"))):
            raise Closed("wrong secret")
        session = self._sessions.get(node)
        if (node, nonce) in self._gone or (session is not None and session.nonce != nonce):
            raise Closed("this node is taken")
        if session is None:
            session = self._sessions[node] = _Session(nonce)
        elif session.stream is not None:
            self._disconnect(node)
        stream = session.stream = stranger.stream
        del self._strangers[stream.fd]
        self._node_of[stream.fd] = node
        proof = proof_of(self._secret, "leader", self._name, theirs, stranger.challenge)
        received = session.conversation.received
        stream.write(encode_line({"leader": self._name, "proof": proof, "received": received}))
        stream.write(session.conversation.resumed(number_of(hello, "received")))
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
                message = decode_frame(conversation, line)
                if message is not None:
                    got.append((node, message))
        except Closed:
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
