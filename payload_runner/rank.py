"""The shim that the site's launcher starts for each rank of an MPI payload.

It asks the agent of its node for a seat (see ``seats``) and becomes the payload by exec, so that
the launcher keeps a process under the number that it knows, with the descriptors and variables
through which MPI finds its process manager.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import sys
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from payload_runner.environment import of_launcher
from payload_runner.seats import MESSAGE_LIMIT, address_of

EX_UNAVAILABLE, EX_IOERR, EX_CANNOT_RUN = 69, 74, 126
_ANSWER_S = 60.0  # an agent that lives answers at once; its loop may be busy with a large file
# Slurm's comes last: other launchers pass on what the batch script had of it.
_RANK_VARIABLES = (
    "FLUX_TASK_RANK",
    "JSM_NAMESPACE_RANK",
    "PALS_RANKID",
    "OMPI_COMM_WORLD_RANK",
    "PMIX_RANK",
    "PMI_RANK",
    "SLURM_PROCID",
)


class NoSeat(Exception):
    """Nobody on this host expects this rank."""


def argv_of(tag: str, attempt: str, ranks_per_node: int, nodes: Sequence[int]) -> Tuple[str, ...]:
    """The arguments behind ``rank``; ``nodes`` are the agents' numbers in rank order."""
    return (tag, attempt, str(ranks_per_node), ",".join(map(str, nodes)))


def main(argv: List[str]) -> int:
    """Become a rank of the payload; returns an exit code only when that cannot be."""
    parser = argparse.ArgumentParser(prog="payload-runner rank")
    parser.add_argument("tag")
    parser.add_argument("attempt")
    parser.add_argument("ranks_per_node", type=int)
    parser.add_argument("nodes")
    given = parser.parse_args(argv)
    rank = rank_from(os.environ)
    nodes = [int(node) for node in given.nodes.split(",")]
    try:
        agent = _find_agent(given.tag, given.attempt, _likely_first(nodes, rank, given))
        with agent:
            _become(agent, rank)
    except NoSeat as error:
        return _refuse(EX_UNAVAILABLE, given.attempt, error)
    except OSError as error:
        return _refuse(EX_IOERR, given.attempt, error)
    return EX_CANNOT_RUN


def rank_from(environ: Mapping[str, str]) -> Optional[int]:
    """This process's rank as its launcher says it."""
    for name in _RANK_VARIABLES:
        if environ.get(name, "").isdigit():
            return int(environ[name])
    return None


def _likely_first(nodes: List[int], rank: Optional[int], given: argparse.Namespace) -> List[int]:
    """Launchers fill node after node; where one does not, any agent of this host will do."""
    place = 0 if rank is None else rank // max(1, given.ranks_per_node)
    return [*nodes[place : place + 1], *nodes[:place], *nodes[place + 1 :]]


def _find_agent(tag: str, attempt: str, nodes: Sequence[int]) -> socket.socket:
    for node in nodes:
        agent = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        agent.settimeout(_ANSWER_S)
        try:
            agent.connect(address_of(tag, attempt, node))
        except ConnectionRefusedError:  # that agent is on another host, or gone
            agent.close()
            continue
        return agent
    raise NoSeat(f"no agent on {socket.gethostname()} expects ranks of it")


def _become(agent: socket.socket, rank: Optional[int]) -> None:
    agent.send(json.dumps({"rank": rank}).encode())
    data, fds, _, _ = socket.recv_fds(agent, MESSAGE_LIMIT, 3)
    word: Dict[str, Any] = json.loads(data or '{"refused": "its agent wants no more ranks"}')
    if len(fds) != 3:
        raise NoSeat(str(word.get("refused")))
    play_fd, stdout, stderr = fds
    # The file's position is shared by all who hold it.
    play = json.loads(os.pread(play_fd, os.fstat(play_fd).st_size, 0))
    environment = _environment(play["environment"], word["variables"], rank)
    os.close(play_fd)
    os.chdir(play["workdir"])
    if word["cores"]:
        with contextlib.suppress(OSError):  # the launcher has confined us to others
            os.sched_setaffinity(0, word["cores"])
    with contextlib.suppress(OSError):  # some launchers have made it a leader already
        os.setsid()
    _redirect(stdout, stderr)
    os.execve(play["argv"][0], play["argv"], environment)


def _environment(
    shared: Mapping[str, str], own: Mapping[str, str], rank: Optional[int]
) -> Dict[str, str]:
    numbered = {} if rank is None else {"RANK": str(rank)}
    return {**shared, **of_launcher(os.environ), **own, **numbered}


def _redirect(stdout: int, stderr: int) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    for fd, target in ((null, 0), (stdout, 1), (stderr, 2)):
        os.dup2(fd, target)
        os.close(fd)


def _refuse(code: int, attempt: str, error: Exception) -> int:
    print(f"payload-runner rank of {attempt}: {error}", file=sys.stderr)
    return code
