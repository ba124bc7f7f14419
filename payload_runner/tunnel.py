"""The MPI transport: the streams between agents and leader, carried by an MPI job.

For sites whose nodes talk to each other through MPI only. The launcher starts one of these per
node in the agent's place. Before MPI is initialised, as nothing may fork after it, it starts the
agent proper, which connects to it over the node's loopback; rank 0, on the leader's host, connects
to the leader for all others. So leader and agents speak to each other exactly as over TCP, neither
holds MPI's memory, and the end of the MPI job is a broken connection to them, not their own end.

MPI is probed between short sleeps: a blocking receive would burn a core that payloads need.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple

# Nothing else of ours: this process lives beside an agent on every node.
from payload_runner.launched import die_with_parent, node_from

EX_USAGE, EX_UNAVAILABLE = 64, 69
# Between two probes: soon after something came, then ever less often. A result is to be known
# within 50 ms; 50 wake-ups a second are under 1 % of a core.
PAUSE_S = (0.001, 0.02)
CHUNK_BYTES = 64 * 1024
MAX_SENDING = 256  # messages on their way; beyond it no socket is read
_TAG = 71
_HEADER = struct.Struct("!cI")  # what, number of the connection on the agent's side
_OPEN, _DATA, _CLOSE, _BYE, _OVER = b"O", b"D", b"C", b"B", b"X"

Key = Tuple[int, int]  # rank of the agent's side, number of the connection there


def main(argv: List[str], command: Sequence[str]) -> int:
    """Serve one node until all agents have ended; its agent's exit code. ``command``: this runner.

    Returns EX_UNAVAILABLE where there is no MPI.
    """
    leader, given = _option(argv, "--leader"), _option(argv, "--node")
    node = int(given) if given and given.isdigit() else node_from(os.environ)
    if not leader or node is None:
        print("payload-runner tunnel: no leader or no node to serve", file=sys.stderr)
        return EX_USAGE
    leader = leader.split(",")[0]
    listener = socket.create_server(("127.0.0.1", 0))
    # Rank 0 is on the leader's host; its agent needs no tunnel.
    near = leader if node == 0 else f"127.0.0.1:{listener.getsockname()[1]}"
    # Of an option that comes twice the last counts.
    words = [*argv, "--transport", "tcp", "--leader", near, "--node", str(node)]
    agent = subprocess.Popen([*command, "agent", *words], preexec_fn=die_with_parent)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: agent.terminate())
    for number in (signal.SIGUSR1, signal.SIGUSR2):  # warnings for the leader, as in the agent
        signal.signal(number, lambda *_: None)
    try:
        world = _world()
    except (ImportError, RuntimeError) as error:
        agent.terminate()
        agent.wait()
        print(f"payload-runner tunnel: no MPI here: {error}", file=sys.stderr)
        return EX_UNAVAILABLE
    Tunnel(world, listener, leader, lambda: agent.poll() is not None).run()
    return agent.wait()


def _option(argv: Sequence[str], name: str) -> Optional[str]:
    places = [at for at, word in enumerate(argv[:-1]) if word == name]
    return argv[places[-1] + 1] if places else None


def _world() -> Any:  # Any: mpi4py's communicator
    import mpi4py

    mpi4py.rc.thread_level = "single"
    from mpi4py import MPI

    return MPI.COMM_WORLD


class Tunnel:
    """One rank: carries what connects to ``listener`` to rank 0, which connects it to the leader.

    ``over`` says whether this rank's own agent has ended; ``run`` returns once all have.
    """

    def __init__(
        self, world: Any, listener: socket.socket, leader: str, over: Callable[[], bool]
    ) -> None:
        self._world = world
        self._rank: int = world.Get_rank()
        self._others = set(range(1, world.Get_size()))
        self._leader = leader
        self._over = over
        self._selector = selectors.DefaultSelector()
        self._links: Dict[Key, _Link] = {}
        self._count = 0
        self._sending: List[Tuple[Any, bytes]] = []
        self._gone: Set[int] = set()  # ranks whose agents have ended
        self._said_bye = False
        self._done = False
        self._listener = listener
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, None)

    def run(self) -> None:
        """Carry until every rank's agent has ended."""
        pause, longest = PAUSE_S
        while not self._done:
            busy = self._hear_ranks()
            busy = self._hear_sockets(0.0 if busy else pause) or busy
            pause = PAUSE_S[0] if busy else min(pause * 1.5, longest)
            self._sending = [item for item in self._sending if not item[0].Test()]
            self._say_goodbye()
        for link in list(self._links.values()):
            self._drop(link)
        while self._sending:
            self._selector.select(PAUSE_S[0])
            self._sending = [item for item in self._sending if not item[0].Test()]
        self._selector.close()
        self._listener.close()

    # --- between ranks ---

    def _send(self, to: int, what: bytes, number: int, data: bytes = b"") -> None:
        message = _HEADER.pack(what, number) + data
        self._sending.append((self._world.Isend(message, dest=to, tag=_TAG), message))

    def _hear_ranks(self) -> bool:
        from mpi4py import MPI

        status, heard = MPI.Status(), False
        while True:
            found = self._world.Improbe(tag=_TAG, status=status)
            if found is None:
                return heard
            heard = True
            data = bytearray(status.Get_count(MPI.BYTE))
            found.Recv(data)
            what, number = _HEADER.unpack_from(data)
            self._take(status.Get_source(), what, number, bytes(data[_HEADER.size :]))

    def _take(self, source: int, what: bytes, number: int, data: bytes) -> None:
        # The hub keeps a link by its agent's rank; an agent's side by its own.
        key = (source if self._rank == 0 else self._rank, number)
        link = self._links.get(key)
        if what == _OPEN:
            self._connect(key)
        elif what == _DATA and link is not None:
            link.write(data)
        elif what == _CLOSE and link is not None:
            self._drop(link)
        elif what == _BYE:
            self._gone.add(source)
        elif what == _OVER:
            self._done = True

    def _say_goodbye(self) -> None:
        """All leave together: whoever finalised MPI before the others would spin in it."""
        if not self._over():
            return
        if self._rank != 0:
            if not self._said_bye:
                self._said_bye = True
                self._send(0, _BYE, 0)
        elif self._gone >= self._others:
            for rank in self._others:
                self._send(rank, _OVER, 0)
            self._done = True

    # --- sockets ---

    def _hear_sockets(self, pause: float) -> bool:
        if len(self._sending) > MAX_SENDING:
            return False
        heard = False
        for key, mask in self._selector.select(pause):
            heard = True
            link: Optional[_Link] = key.data
            if link is None:
                self._accept()
                continue
            if mask & selectors.EVENT_WRITE:
                link.pump()
            if mask & selectors.EVENT_READ:
                self._read(link)
        return heard

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        self._count += 1
        key = (self._rank, self._count)
        self._links[key] = _Link(key, sock, self._selector)
        self._send(0, _OPEN, self._count)

    def _connect(self, key: Key) -> None:
        host, _, port = self._leader.rpartition(":")
        try:
            sock = socket.create_connection((host, int(port)), timeout=1.0)
        except OSError:
            self._send(key[0], _CLOSE, key[1])
            return
        self._links[key] = _Link(key, sock, self._selector)

    def _read(self, link: _Link) -> None:
        try:
            data = link.sock.recv(CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        to = link.key[0] if self._rank == 0 else 0
        if data:
            self._send(to, _DATA, link.key[1], data)
        else:
            self._send(to, _CLOSE, link.key[1])
            self._drop(link)

    def _drop(self, link: _Link) -> None:
        self._links.pop(link.key, None)
        link.close()


class _Link:
    """A socket at one end of a tunnelled connection."""

    def __init__(self, key: Key, sock: socket.socket, selector: selectors.BaseSelector) -> None:
        self.key = key
        self.sock = sock
        self._selector = selector
        self._out = bytearray()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(sock, selectors.EVENT_READ, self)

    def write(self, data: bytes) -> None:
        self._out += data
        self.pump()

    def pump(self) -> None:
        """Send what the socket takes; a broken one is noticed when it is read."""
        try:
            while self._out:
                del self._out[: self.sock.send(self._out)]
        except BlockingIOError:
            pass
        except OSError:
            self._out.clear()
        write = selectors.EVENT_WRITE if self._out else 0
        self._selector.modify(self.sock, selectors.EVENT_READ | write, self)

    def close(self) -> None:
        """Send what goes at once, and close."""
        if self._out:
            with contextlib.suppress(OSError):
                self.sock.setblocking(True)
                self.sock.settimeout(1.0)
                self.sock.sendall(self._out)
        self._selector.unregister(self.sock)
        self.sock.close()
