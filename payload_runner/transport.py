"""How the leader and its agents talk: the port, its messages, and how an agent is started.

Messages are a kind and JSON fields. Leader to agent::

    define       PayloadSpec; before the first run that names it
    run          {"order": Order, "slot": Slot, "remaining_s": seconds until the drain point};
                 with "queued": true only if it is still queued there
    queue        {"order", "remaining_s"}: to be run once one of the same shape has ended well
                 here, in its slot
    withdraw     {}: hand back what is queued
    stop         {"attempt", "outcome": "pruned" | "cancelled", "reason"}
    drain        {"reason", "remaining_s", "now", "outcome": "timed_out" | "preempted"}: end what
                 runs, all of it committed within remaining_s; may come again with less time
    hosts        {"attempt", "hosts"}: an elastic payload has these nodes now
    give_back    {"attempt", "reason"}: an elastic payload is to leave this node, with notice
    send_output  {"attempt"}: relay its kept stdout and stderr
    launch_ended {"attempt", "code", "said"}: the launcher call of an MPI payload is over, with its
                 last words; no code: it was never made
    leave        {}: nothing runs any more; exit

Agent to leader: ``hello {"node", "host", "shape": NodeShape, "pid"}`` first, then the records of
``protocol``: attempt_started, reports, checkpoint, checkpoint_refused, attempt_ended. Each node of
a multi-node payload sends its own start and end; the leader makes one of them. Before the start of
an MPI payload comes ``ready {"attempt"}``: ranks may be launched; ``abort {"attempt"}``: its ranks
were killed, and so should be their launcher. An ``attempt_ended`` may carry ``next``: the queued
attempt that begins in its slot now, whose start is told by that alone unless it has a
checkpoint to resume from; ``unstarted {"attempts"}``: what was queued is queued no more.

Acknowledgements and signs of life are the transports' own business and never show here. Which
transport is taken is decided in ``joining``.
"""

from __future__ import annotations

import argparse
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Protocol, Sequence, Tuple

from payload_runner.launched import NODE_VARIABLES, node_from
from payload_runner.protocol import IncarnationPaths, SpoolPaths

Message = Tuple[str, Dict[str, Any]]  # kind, fields; Any because they are JSON

TRANSPORTS = ("auto", "tcp", "files", "mpi")


class LinkLost(Exception):
    """The other side is gone for good, or never was ours."""


class AgentLink(Protocol):
    """The agent's side. One thread; nothing here blocks for longer than one file commit."""

    def fileno(self) -> Optional[int]:
        """A descriptor, the same for life, readable when something may have come; None: poll."""

    def wait_s(self) -> Optional[float]:
        """Seconds until ``receive`` and ``flush`` are due though the descriptor is silent."""

    def receive(self) -> List[Message]:
        """What has come, in order, each message once.

        Raises:
            LinkLost: the leader is gone for good.
        """

    def send(self, kind: str, fields: Dict[str, Any]) -> int:
        """Queue a message; returns its number. Delivered in order, applied once."""

    def flush(self) -> None:
        """Hand over what is queued, as far as that goes without waiting for the other side."""

    def close(self) -> None:
        """Flush and close. Calling twice is safe."""


class AgentPort(Protocol):
    """The leader's side: all agents at once. One thread; never waits for an agent."""

    def fileno(self) -> Optional[int]:
        """As :meth:`AgentLink.fileno`."""

    def wait_s(self) -> Optional[float]:
        """As :meth:`AgentLink.wait_s`."""

    def receive(self) -> List[Tuple[int, Message]]:
        """What has come: (node index, message), per agent in order, each message once."""

    def send(self, node: int, kind: str, fields: Dict[str, Any]) -> None:
        """Queue a message. For a node that has not joined or is lost it is dropped."""

    def flush(self) -> None:
        """Hand over what is queued."""

    def lost(self) -> List[Tuple[int, str]]:
        """Agents lost since the last call, each once, with the reason; they cannot come back."""

    def drop(self, node: int) -> None:
        """Forget an agent that is known to be gone; ``lost`` will not name it."""

    def close(self) -> None:
        """Close everything; agents then find their leader gone."""


@dataclass(frozen=True)
class AgentStart:
    """What an agent is told on its command line; the secret comes from its file only."""

    spool: Path
    tag: str
    incarnation: str  # name of its directory
    leader: Tuple[str, ...] = ()  # "host:port"; () with the file transport
    transport: str = "auto"
    node: Optional[int] = None  # None: as the launcher's environment says
    host: Optional[str] = None  # a virtual node's name; None: the machine's

    @property
    def paths(self) -> IncarnationPaths:
        return IncarnationPaths(SpoolPaths(self.spool).allocation(self.tag).root / self.incarnation)

    def argv(self) -> Tuple[str, ...]:
        """The arguments behind ``agent``; :meth:`parse` reads them."""
        words = [str(self.spool), self.tag, self.incarnation, "--transport", self.transport]
        if self.leader:
            words += ["--leader", ",".join(self.leader)]
        if self.node is not None:
            words += ["--node", str(self.node)]
        if self.host is not None:
            words += ["--host", self.host]
        return tuple(words)

    @classmethod
    def parse(cls, argv: Sequence[str], environ: Mapping[str, str]) -> AgentStart:
        """Read what :meth:`argv` wrote; node and host are never None afterwards.

        Raises:
            SystemExit: wrong arguments, or neither they nor the environment name the node.
        """
        parser = argparse.ArgumentParser(prog="payload-runner agent")
        parser.add_argument("spool", type=Path)
        parser.add_argument("tag")
        parser.add_argument("incarnation")
        parser.add_argument("--transport", choices=TRANSPORTS, default="auto")
        parser.add_argument("--leader", default="")
        parser.add_argument("--node", type=int, default=node_from(environ))
        parser.add_argument("--host", default=socket.gethostname().split(".")[0])
        given = parser.parse_args(argv)
        if given.node is None:
            parser.error(f"which node is this? Give --node, or one of {', '.join(NODE_VARIABLES)}")
        leader = tuple(item for item in given.leader.split(",") if item)
        return cls(
            given.spool,
            given.tag,
            given.incarnation,
            leader,
            given.transport,
            given.node,
            given.host,
        )


def read_secret(paths: IncarnationPaths) -> bytes:
    """The secret that leader and agents of one incarnation share. Raises OSError."""
    return paths.secret.read_bytes().strip()


def make_secret() -> bytes:
    """A new secret, as it is written to its file."""
    return secrets.token_hex(32).encode() + b"\n"
