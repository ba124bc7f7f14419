"""Starts the agents: one launcher call for all nodes, one a node, or one process each here."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Callable, List, Mapping, Optional, Sequence, Tuple

from payload_runner import guardian
from payload_runner.launches import launch_words
from payload_runner.placement import Slot
from payload_runner.protocol import AllocationPlan
from payload_runner.transport import AgentStart

TERMINATE_S = 3.0
MAX_CALLS = 64  # to start agents again; a launcher is a process on the leader's host
_WAIT_STEP_S = 0.02


class Agents:
    """The processes that the leader started, and which of them are gone."""

    def __init__(self, per_node: bool) -> None:
        self._per_node = per_node
        self._processes: List[Tuple[int, subprocess.Popen[bytes]]] = []
        self._reported: List[int] = []
        self._guardian: Optional[guardian.Guardian] = None

    def start(self, node: int, argv: Sequence[str]) -> None:
        """Start one process. Raises OSError."""
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)
        self._processes.append((node, process))

    def guard(self) -> None:
        """From now on see to their end even if this process is killed.

        Raises:
            OSError: no other process can be started.
        """
        self._guardian = guardian.of_agents([process.pid for _, process in self._processes])

    def gone(self) -> List[Tuple[int, str]]:
        """Processes that ended since the last call: (node, how). Under a launcher: node 0 for it.

        The end of a launcher says nothing of single nodes; ``per_node`` tells.
        """
        found = []
        for node, process in self._processes:
            code = process.poll()
            if code is not None and node not in self._reported:
                self._reported.append(node)
                found.append((node, _how(code)))
        return found

    @property
    def per_node(self) -> bool:
        """Whether each process is the agent of one node."""
        return self._per_node

    def wait(self, timeout_s: float) -> bool:
        """Wait for all to leave by themselves; False if some have not in time."""
        until = time.monotonic() + timeout_s
        while any(process.poll() is None for _, process in self._processes):
            if time.monotonic() >= until:
                return False
            time.sleep(_WAIT_STEP_S)
        return True

    def end(self, leave_s: float) -> None:
        """Give all ``leave_s`` to leave by themselves, then SIGTERM, then SIGKILL."""
        if not self.wait(leave_s):
            self._signal(signal.SIGTERM)
            if not self.wait(TERMINATE_S):
                self._signal(signal.SIGKILL)
                self.wait(TERMINATE_S)
        if self._guardian is not None:
            self._guardian.dismiss()

    def _signal(self, number: signal.Signals) -> None:
        for _, process in self._processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, number)


def start_agents(
    plan: AllocationPlan, start: AgentStart, command: Sequence[str], environ: Mapping[str, str]
) -> Agents:
    """Start an agent for each node of the plan.

    ``command`` starts this runner. With a launcher its environment tells each agent its node;
    without one all run here, named after the virtual nodes of the local batch system.

    Raises:
        OSError: the launcher or the interpreter cannot be started, or the batch system gave
            another number of hosts than were planned.
    """
    if start.transport == "mpi" and (is_by_host(plan) or not plan.launcher):
        start = replace(start, transport="tcp")  # nothing here starts MPI; all is on loopback
    agents = Agents(per_node=is_by_host(plan) or not plan.launcher)
    try:
        _start_all(agents, plan, start, command, environ)
        agents.guard()
    except OSError:
        agents.end(0.0)
        raise
    return agents


def restart_agents(
    plan: AllocationPlan, start: AgentStart, command: Sequence[str], hosts: Mapping[int, str]
) -> Agents:
    """Start agents again on ``hosts`` (by node), by a launcher call each: one may be gone.

    Raises:
        OSError: the launcher cannot be started.
    """
    agents = Agents(per_node=True)
    try:
        for node, host in hosts.items():
            there = launch_words(plan, [Slot(node, hosts=(host,))], Path(os.devnull))
            words = replace(start, node=node).argv()
            agents.start(node, [*there, *command, "agent", *words])
        agents.guard()
    except OSError:
        agents.end(0.0)
        raise
    return agents


def can_restart(plan: AllocationPlan, hosts: Mapping[int, str]) -> bool:
    """Whether the site's launcher can be called for each of these hosts."""
    told_hosts = any("{hosts}" in word or "{host_slots}" in word for word in plan.mpi_launcher)
    return told_hosts and 0 < len(hosts) <= MAX_CALLS


def _start_all(
    agents: Agents,
    plan: AllocationPlan,
    start: AgentStart,
    command: Sequence[str],
    environ: Mapping[str, str],
) -> None:
    if is_by_host(plan):

        def agent(node: int) -> Sequence[str]:
            return [*command, "agent", *replace(start, node=node).argv()]

        for node, argv in enumerate(calls_by_host(plan, agent, environ)):
            agents.start(node, argv)
        return
    if plan.launcher:
        role = "tunnel" if start.transport == "mpi" else "agent"
        agents.start(0, [*launcher_words(plan), *command, role, *start.argv()])
        return
    hosts = virtual_hosts(environ, plan.nodes)
    for node in range(plan.nodes):
        mine = replace(start, node=node, host=hosts[node])
        agents.start(node, [*command, "agent", *mine.argv()])


def launcher_words(plan: AllocationPlan) -> Tuple[str, ...]:
    """The launcher with ``{nodes}``, ``{cores}`` and ``{gpus}`` (of a node) filled in.

    srun knows its allocation; jsrun, mpiexec and flux run are told how many agents to start.
    """
    values = {
        "{nodes}": plan.nodes,
        "{cores}": plan.node.cores,
        "{gpus}": plan.node.gpus,
    }
    words = []
    for word in plan.launcher:
        for name, value in values.items():
            word = word.replace(name, str(value))
        words.append(word)
    return tuple(words)


def is_by_host(plan: AllocationPlan) -> bool:
    """Whether the launcher is Grid Engine's qrsh, which starts one process on one host a call."""
    return bool(plan.launcher) and Path(plan.launcher[0]).name == "qrsh"


def calls_by_host(
    plan: AllocationPlan, command: Callable[[int], Sequence[str]], environ: Mapping[str, str]
) -> Tuple[Tuple[str, ...], ...]:
    """What runs ``command(node)`` on each host that Grid Engine gave us.

    The first host is this one and needs no launcher: where the batch script counts as one of the
    job's tasks, there would be no slot left for it. On the others qrsh hands what it is given to
    a shell.

    Raises:
        OSError: the list of hosts cannot be read, or is not of the planned length.
    """
    hosts = granted_hosts(environ)
    if len(hosts) != plan.nodes:
        raise OSError(
            f"Grid Engine gave slots on {len(hosts)} hosts, {plan.nodes} were asked for; expected "
            "a parallel environment whose allocation_rule is the slots of one node (-pe)"
        )
    others = [
        (*launcher_words(plan), host, f"exec {shlex.join(command(node))}")
        for node, host in enumerate(hosts[1:], start=1)
    ]
    return (tuple(command(0)), *others)


def granted_hosts(environ: Mapping[str, str]) -> Tuple[str, ...]:
    """The hosts of a Grid Engine job, its first one first; it is ours. Raises OSError."""
    listed = environ.get("PE_HOSTFILE")
    if not listed:
        return (os.uname().nodename,)  # a job without a parallel environment
    lines = Path(listed).read_text().splitlines()
    # Slots of a host from two queues are a line each.
    return tuple(dict.fromkeys(line.split()[0] for line in lines if line.strip()))


def virtual_hosts(environ: Mapping[str, str], nodes: int) -> Tuple[Optional[str], ...]:
    """Names of the nodes of an allocation that lies on this machine alone."""
    given = [name for name in environ.get("HARVESTER_LOCAL_NODES", "").split(",") if name]
    if len(given) >= nodes:
        return tuple(given[:nodes])
    return (None,) if nodes == 1 else tuple(f"node{node}" for node in range(nodes))


def _how(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
