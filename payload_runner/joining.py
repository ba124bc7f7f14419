"""Which transport leader and agents take: TCP inside the allocation, else file logs; or MPI.

MPI is ``tunnel``'s: to both sides it is TCP on the loopback of their node.
"""

from __future__ import annotations

import secrets
import select
import time
from typing import Any, Callable, Dict, List, Optional, Protocol, Tuple

from payload_runner import filelink, tcp
from payload_runner.protocol import AllocationPlan, IncarnationPaths
from payload_runner.transport import (
    TRANSPORTS,
    AgentLink,
    AgentPort,
    AgentStart,
    LinkLost,
    Message,
    read_secret,
)

CONNECT_S = 5.0  # an agent tries TCP for this long before it goes over to files


def connect(
    start: AgentStart, plan: AllocationPlan, *, monotonic: Callable[[], float] = time.monotonic
) -> AgentLink:
    """The agent's link to its leader: TCP, or files where TCP does not come up in 5 s.

    Raises:
        LinkLost: TCP was demanded and the leader does not answer.
        OSError: the secret cannot be read, or the outbox cannot be written.
    """
    assert start.node is not None
    secret = read_secret(start.paths)
    nonce = secrets.token_hex(4)
    if start.transport != "files" and start.leader:
        link = tcp.TcpLink(start.leader, secret, start.node, nonce, monotonic)
        if link.wait_connected(CONNECT_S):
            return link
        link.close()
        if start.transport == "tcp":
            raise LinkLost(f"no leader answers at {', '.join(start.leader)}")
    local = plan.filesystem == "local"
    return filelink.FileLink(start.paths, secret, start.node, nonce, monotonic, local=local)


def listen(
    plan: AllocationPlan,
    paths: IncarnationPaths,
    secret: bytes,
    *,
    loopback: bool,
    monotonic: Callable[[], float] = time.monotonic,
) -> Tuple[AgentPort, Tuple[str, ...]]:
    """The leader's port and the addresses that agents are to be told.

    ``loopback``: all agents run on this machine, so nobody else can connect.

    Raises:
        ValueError: a transport that this release does not have.
        OSError: no socket to listen on, though TCP was demanded.
    """
    if plan.transport not in TRANSPORTS:
        known = ", ".join(TRANSPORTS)
        raise ValueError(f"allocation.json: transport: got {plan.transport!r}; one of {known}")
    local = plan.filesystem == "local"
    if plan.transport == "mpi":
        # Rank 0 of the tunnel runs on this host and brings the streams of all nodes.
        port = tcp.TcpPort(secret, monotonic, loopback=True)
        return port, port.addresses
    if plan.transport == "files":
        return filelink.FilePort(paths, secret, plan.nodes, monotonic, local=local), ()
    tcp_port = tcp.TcpPort(secret, monotonic, loopback=loopback)
    if plan.transport == "tcp":
        return tcp_port, tcp_port.addresses
    file_port = filelink.FilePort(paths, secret, plan.nodes, monotonic, local=local)
    return EitherPort(tcp_port, file_port, plan.nodes), tcp_port.addresses


class ScanningPort(AgentPort, Protocol):
    """A port that has to look for its agents."""

    def stop_scanning(self) -> None:
        """Everyone is here: look for no more agents."""


class EitherPort:
    """Agents that came over TCP and agents that came over files, as one port."""

    def __init__(self, tcp: AgentPort, files: ScanningPort, nodes: int) -> None:
        self._ports: Tuple[AgentPort, AgentPort] = (tcp, files)
        self._files = files
        self._nodes = nodes
        self._of: Dict[int, AgentPort] = {}
        self._epoll = select.epoll()
        for port in self._ports:
            fd = port.fileno()
            if fd is not None:
                self._epoll.register(fd, select.EPOLLIN)

    def fileno(self) -> Optional[int]:
        return self._epoll.fileno()

    def wait_s(self) -> Optional[float]:
        waits = [wait for wait in (port.wait_s() for port in self._ports) if wait is not None]
        return min(waits, default=None)

    def receive(self) -> List[Tuple[int, Message]]:
        got = []
        for port in self._ports:
            for node, message in port.receive():
                # First come, first served: a node does not speak over both.
                if self._of.setdefault(node, port) is port:
                    got.append((node, message))
        if len(self._of) >= self._nodes:
            self._files.stop_scanning()
        return got

    def send(self, node: int, kind: str, fields: Dict[str, Any]) -> None:
        port = self._of.get(node)
        if port is not None:
            port.send(node, kind, fields)

    def flush(self) -> None:
        for port in self._ports:
            port.flush()

    def lost(self) -> List[Tuple[int, str]]:
        return [
            (node, reason)
            for port in self._ports
            for node, reason in port.lost()
            if self._of.get(node) is port
        ]

    def drop(self, node: int) -> None:
        for port in self._ports:
            port.drop(node)

    def close(self) -> None:
        for port in self._ports:
            port.close()
        self._epoll.close()
