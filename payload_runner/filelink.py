"""Leader and agents over the shared file system, where they cannot connect.

Two logs per node (rule 19): the agent writes ``outbox.<node>.<nonce>.log``, the leader answers in
``inbox.<node>.<nonce>.log``. Each opens with a proof that its writer knows the incarnation's
secret. ``alive`` records tell a silent partner from a dead one; the limit outlasts the stalls that
shared file systems are known for.
"""

from __future__ import annotations

import contextlib
import hmac
import re
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

from payload_runner.files import Files, RealFiles
from payload_runner.inotify import OVERFLOW, Inotify, open_inotify
from payload_runner.logfile import LogReader, LogWriter, Record, RecordTooLarge
from payload_runner.protocol import IncarnationPaths
from payload_runner.shrinking import fitted
from payload_runner.transport import LinkLost, Message

ALIVE_S = 10.0
SILENCE_S = 180.0
_OUTBOX = re.compile(r"outbox\.(\d+)\.([0-9a-f]+)\.log")
# Poll intervals (shortest, longest): a shared file system is asked ever more seldom.
_LOCAL_POLL_S = (0.02, 0.5)
_SHARED_POLL_S = (0.25, 2.0)
# After these words of an agent something to do will come soon.
_ANSWERED = ("hello", "attempt_ended")


class _Backoff:
    """When to look next: soon after something came, then ever more seldom."""

    def __init__(self, local: bool, monotonic: Callable[[], float]) -> None:
        self._shortest, self._longest = _LOCAL_POLL_S if local else _SHARED_POLL_S
        self._monotonic = monotonic
        self._interval = self._shortest
        self._next = monotonic()

    def due_in(self) -> float:
        return max(0.0, self._next - self._monotonic())

    def looked(self, found: bool) -> None:
        self._interval = self._shortest if found else min(self._interval * 1.5, self._longest)
        self._next = self._monotonic() + self._interval


class _Half:
    """What both sides of a pair of logs do: write one, read the other, show signs of life."""

    def __init__(
        self,
        writer: LogWriter,
        reader: LogReader,
        wanted_proof: str,
        monotonic: Callable[[], float],
    ) -> None:
        self.writer = writer
        self.reader = reader
        self._wanted_proof = wanted_proof
        self._monotonic = monotonic
        self._proven = False
        self.refused = False
        self.closed = False
        self.heard = monotonic()
        self._said = monotonic()
        self._seq = 0

    def poll(self) -> List[Message]:
        """New messages; raises OSError as the file system does."""
        found = []
        for record in self.reader.poll().records:
            self.heard = self._monotonic()
            if record.seq <= self._seq:
                continue
            self._seq = record.seq
            message = self._take(record)
            if message is not None:
                found.append(message)
        return found

    def append(self, kind: str, fields: Dict[str, Any]) -> int:
        self._said = self._monotonic()
        try:
            return self.writer.append(kind, fields)
        except RecordTooLarge:
            return self.writer.append(kind, fitted(kind, fields))

    def show_life(self) -> None:
        if self._monotonic() - self._said >= ALIVE_S:
            self.append("alive", {})

    @property
    def silent_s(self) -> float:
        return self._monotonic() - self.heard

    def _take(self, record: Record) -> Optional[Message]:
        if not self._proven:
            proof = str(record.fields.get("proof"))
            self._proven = record.kind == "join" and hmac.compare_digest(proof, self._wanted_proof)
            self.refused = not self._proven
        elif record.kind == "bye":
            self.closed = True
        elif record.kind != "alive" and not self.refused:
            return record.kind, record.fields
        return None


class FileLink:
    """:class:`~payload_runner.transport.AgentLink` over a pair of logs."""

    def __init__(
        self,
        paths: IncarnationPaths,
        secret: bytes,
        node: int,
        nonce: str,
        monotonic: Callable[[], float],
        *,
        local: bool,
        silence_s: float = SILENCE_S,
        files: Optional[Files] = None,
    ) -> None:
        files = files or RealFiles()
        self._silence_s = silence_s
        self._backoff = _Backoff(local, monotonic)
        writer = LogWriter(files, paths.outbox(node, nonce), time.time, monotonic)
        reader = LogReader(files, paths.inbox(node, nonce), monotonic)
        self._half = _Half(writer, reader, _proof(secret, "leader", node, nonce), monotonic)
        self._inotify = _watching(paths) if local else None
        self._half.append("join", {"proof": _proof(secret, "agent", node, nonce)})
        writer.commit()
        self._closed = False

    def fileno(self) -> Optional[int]:
        return None if self._inotify is None else self._inotify.fileno()

    def wait_s(self) -> Optional[float]:
        return self._backoff.due_in()

    def receive(self) -> List[Message]:
        hinted = _changed(self._inotify, "inbox.")
        if not hinted and self._backoff.due_in() > 0:
            return []
        try:
            found = self._half.poll()
        except OSError:  # a stalled or stale file system; the silence limit decides
            found = []
        self._backoff.looked(bool(found))
        self._check(found)
        return found

    def send(self, kind: str, fields: Dict[str, Any]) -> int:
        if kind in _ANSWERED:
            self._backoff.looked(True)
        return self._half.append(kind, fields)

    def flush(self) -> None:
        self._half.show_life()
        _commit(self._half.writer)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._half.append("bye", {})
        _close(self._half.writer)
        if self._inotify is not None:
            self._inotify.close()

    def _check(self, found: List[Message]) -> None:
        if self._half.refused:
            raise LinkLost("what answers in the leader's place does not know the secret")
        if found:
            return
        if self._half.closed:
            raise LinkLost("the leader has closed")
        if self._half.silent_s > self._silence_s:
            raise LinkLost(f"no word from the leader for {self._half.silent_s:.0f} s")


class FilePort:
    """:class:`~payload_runner.transport.AgentPort` over a pair of logs per node."""

    def __init__(
        self,
        paths: IncarnationPaths,
        secret: bytes,
        nodes: int,
        monotonic: Callable[[], float],
        *,
        local: bool,
        silence_s: float = SILENCE_S,
        files: Optional[Files] = None,
    ) -> None:
        self._paths = paths
        self._secret = secret
        self._nodes = nodes
        self._monotonic = monotonic
        self._local = local
        self._silence_s = silence_s
        self._files = files or RealFiles()
        self._halves: Dict[int, _Half] = {}
        self._backoffs: Dict[int, _Backoff] = {}
        self._seen: Dict[str, None] = {}  # outboxes taken or refused
        self._lost: List[Tuple[int, str]] = []
        self._scanning = True
        self._scan = _Backoff(local, monotonic)
        self._inotify = _watching(paths) if local else None
        self._closed = False

    def fileno(self) -> Optional[int]:
        return None if self._inotify is None else self._inotify.fileno()

    def wait_s(self) -> Optional[float]:
        waits = [backoff.due_in() for backoff in self._backoffs.values()]
        if self._scanning:
            waits.append(self._scan.due_in())
        return min(waits, default=None)

    def stop_scanning(self) -> None:
        """Everyone is here: look for no more agents."""
        self._scanning = False
        if not self._halves and self._inotify is not None:
            self._inotify.close()
            self._inotify = None

    def receive(self) -> List[Tuple[int, Message]]:
        hinted = _changed(self._inotify, "outbox.")
        if self._scanning and (hinted or self._scan.due_in() <= 0):
            self._look_for_agents()
        got: List[Tuple[int, Message]] = []
        for node in list(self._halves):
            if hinted or self._backoffs[node].due_in() <= 0:
                got += [(node, message) for message in self._poll(node)]
        return got

    def send(self, node: int, kind: str, fields: Dict[str, Any]) -> None:
        half = self._halves.get(node)
        if half is not None:
            half.append(kind, fields)

    def flush(self) -> None:
        for half in self._halves.values():
            half.show_life()
            _commit(half.writer)

    def lost(self) -> List[Tuple[int, str]]:
        for node, half in list(self._halves.items()):
            if half.silent_s > self._silence_s:
                self._lose(node, f"no word from its agent for {half.silent_s:.0f} s")
        found, self._lost = self._lost, []
        return found

    def drop(self, node: int) -> None:
        half = self._halves.pop(node, None)
        if half is not None:
            del self._backoffs[node]
            _close(half.writer)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for node, half in list(self._halves.items()):
            half.append("bye", {})
            self.drop(node)
        if self._inotify is not None:
            self._inotify.close()

    def _lose(self, node: int, reason: str) -> None:
        self.drop(node)
        self._lost.append((node, reason))

    def _look_for_agents(self) -> None:
        try:
            names = self._files.listdir(self._paths.root)
        except OSError:
            names = ()
        before = len(self._seen)
        for name in names:
            match = _OUTBOX.fullmatch(name)
            if match and name not in self._seen:
                self._meet(name, int(match.group(1)), match.group(2))
        self._scan.looked(len(self._seen) > before)
        self._scanning = len(self._halves) < self._nodes

    def _meet(self, name: str, node: int, nonce: str) -> None:
        if node in self._halves:
            return  # its node is taken; looked at again should that one be lost
        self._seen[name] = None
        writer = LogWriter(self._files, self._paths.inbox(node, nonce), time.time, self._monotonic)
        reader = LogReader(self._files, self._paths.outbox(node, nonce), self._monotonic)
        wanted = _proof(self._secret, "agent", node, nonce)
        half = _Half(writer, reader, wanted, self._monotonic)
        half.append("join", {"proof": _proof(self._secret, "leader", node, nonce)})
        _commit(writer)
        self._halves[node] = half
        self._backoffs[node] = _Backoff(self._local, self._monotonic)

    def _poll(self, node: int) -> List[Message]:
        half = self._halves[node]
        try:
            found = half.poll()
        except OSError:  # as in FileLink.receive
            found = []
        self._backoffs[node].looked(bool(found))
        if half.refused:
            self.drop(node)
            self._scanning = True
        elif half.closed:
            self._lose(node, "its agent has left")
        return found


def _watching(paths: IncarnationPaths) -> Optional[Inotify]:
    inotify = open_inotify()
    if inotify is None:
        return None
    try:
        inotify.watch(str(paths.root))
    except OSError:
        inotify.close()
        return None
    return inotify


def _changed(inotify: Optional[Inotify], box: str) -> bool:
    """Whether a log of that kind changed; the leader's event log lies in the same directory."""
    changes = [] if inotify is None else inotify.changes()
    return any(name.startswith(box) or mask & OVERFLOW for _, name, mask in changes)


def _commit(writer: LogWriter) -> None:
    try:
        writer.commit()
    except OSError:
        # The records stay buffered and go out with a later commit; silence is what the other
        # side will notice if there is none.
        return


def _close(writer: LogWriter) -> None:
    # Last words that cannot be written: as above.
    with contextlib.suppress(OSError):
        writer.close()


def _proof(secret: bytes, side: str, node: int, nonce: str) -> str:
    return hmac.new(secret, f"{side} {node} {nonce}".encode(), "sha256").hexdigest()
