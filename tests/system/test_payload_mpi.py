"""MPI payloads through real launchers, MPICH's above all: leader, agents and ranks are here."""

from __future__ import annotations

import os
import secrets
import shlex
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from payload_runner.protocol import CheckpointRule, Container, Shape
from tests.hand_allocation import PLAN, Allocation
from tests.node_agent import processes_of
from tests.open_mpi import OPEN_MPI, open_mpi
from tests.support import wait_until

MPIEXEC = Path(sys.executable).with_name("mpiexec")  # of the extra "mpi"
pytestmark = pytest.mark.skipif(not MPIEXEC.exists(), reason=f"there is no {MPIEXEC}")

SHAPE = Shape(nodes_min=2, nodes_max=2, gpus_per_node=1, ranks_per_node=2, start="mpi")
# Every rank tells where it sits; the loss is the sum of the ranks.
SUM = textwrap.dedent(
    """
    import json, os
    from mpi4py import MPI
    world = MPI.COMM_WORLD
    names = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES")
    mine = "/".join(os.environ[name] for name in names)
    total, seats = world.allreduce(world.rank), world.gather(mine)
    assert json.load(open("input.json")) == {}
    if world.rank == 0:
        json.dump({"loss": total, "message": " ".join(seats)}, open("output.json", "w"))
    """
)
# Ranks that wait for one another for ever, after a checkpoint of rank 0.
WAIT = textwrap.dedent(
    """
    import os, signal, sys, time
    from mpi4py import MPI
    def warned(*_):
        open("saved", "w").write("state at the warning")
    if MPI.COMM_WORLD.rank == 0:
        signal.signal(signal.SIGUSR2, warned)
    open(f"at-work.{MPI.COMM_WORLD.rank}", "w").close()
    while True:
        time.sleep(0.1)
    """
)
Make = Callable[..., Allocation]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Allocation] = []

    def build(program: str, **changes: Any) -> Allocation:
        launcher = (str(MPIEXEC), "-n", "{ranks}")
        plan = replace(PLAN, **{"mpi_launcher": launcher, **changes})
        made.append(Allocation(tmp_path, plan))
        (tmp_path / "train.py").write_text(program)
        made[-1].define(
            f"exec {shlex.quote(sys.executable)} -m mpi4py {tmp_path / 'train.py'}",
            shape=SHAPE,
            checkpoint=CheckpointRule(("saved",)),
            warn_s=2.0,
            kill_s=1.0,
        )
        return made[-1]

    yield build
    for allocation in made:
        allocation.kill_all()


# Not somebody else's on this machine: its processes are looked for.
POINT = secrets.randbelow(10**9)
ATTEMPT = f"1.{POINT}.1.1"


def await_ranks(allocation: Allocation) -> None:
    """Wait until all four ranks are at work."""
    wait_until(lambda: len(list(allocation.spool.work.glob(f"*/{ATTEMPT}/at-work.*"))) == 4, 90.0)


def test_ranks_on_two_nodes_add_up_and_know_their_seats(make: Make) -> None:
    allocation = make(SUM)
    allocation.order(POINT)
    allocation.tell("close")
    assert allocation.start(PMI_RANK="7", PMI_SIZE="8", PMI_FD="99").wait(90) == 0
    (ended,) = allocation.of("attempt_ended")
    assert ended["state"] == "succeeded", ended
    assert ended["loss"] == 6.0
    assert ended["message"] == "0/0/0/4/0 1/1/0/4/0 2/0/1/4/0 3/1/1/4/0"
    (started,) = allocation.of("attempt_started")
    assert started["nodes"] == ["vnode1", "vnode2"]
    assert started["gpus"] == ["vnode1:0", "vnode2:0"]


@pytest.mark.skipif(open_mpi() is None, reason="there is no mpirun of Open MPI")
def test_ranks_under_open_mpi_add_up_and_know_their_seats(make: Make) -> None:
    launcher = (str(open_mpi()), "--oversubscribe", "-n", "{ranks}", "--bind-to", "none")
    allocation = make(SUM, mpi_launcher=launcher, environment=OPEN_MPI)
    allocation.order(POINT)
    allocation.tell("close")
    outer = {"OMPI_COMM_WORLD_RANK": "7", "PMIX_RANK": "7", "OMPI_MCA_ess_base_jobid": "1"}
    assert allocation.start(**outer, **OPEN_MPI).wait(90) == 0
    (ended,) = allocation.of("attempt_ended")
    assert ended["state"] == "succeeded", ended
    assert (ended["loss"], ended["message"]) == (6.0, "0/0/0/4/0 1/1/0/4/0 2/0/1/4/0 3/1/1/4/0")


def test_rank_that_fails_ends_the_others_and_its_words_are_told(make: Make) -> None:
    fails = WAIT.replace("while True:", "while MPI.COMM_WORLD.rank != 3:")
    allocation = make(fails + "sys.exit('rank 3 has had enough')\n")
    allocation.order(POINT)
    allocation.tell("close")
    assert allocation.start().wait(90) == 0
    (ended,) = allocation.of("attempt_ended")
    assert (ended["state"], ended["blame"]) == ("failed", "point")
    assert "rank 3 has had enough" in ended["stderr"]
    assert processes_of(ATTEMPT) == []


@pytest.mark.fault("walltime or preemption")
def test_end_of_the_walltime_reaches_every_rank_and_keeps_the_checkpoint(make: Make) -> None:
    allocation = make(WAIT, idle_exit_s=1.0)
    allocation.order(POINT)
    leader = allocation.start()
    await_ranks(allocation)
    allocation.tell("drain", reason="enough", now=True)
    assert leader.wait(60) == 0
    (ended,) = allocation.of("attempt_ended")
    assert (ended["state"], ended["blame"]) == ("preempted", "site")
    assert ended["progress"] is True
    assert processes_of(ATTEMPT) == []


def test_stopped_payload_leaves_no_rank_and_no_launcher(make: Make) -> None:
    allocation = make(WAIT)
    allocation.order(POINT)
    leader = allocation.start()
    await_ranks(allocation)
    allocation.tell("stop", attempt=ATTEMPT, outcome="pruned", reason="the others are better")
    allocation.tell("close")
    assert leader.wait(60) == 0
    assert allocation.states() == {str(POINT): "pruned"}
    assert processes_of(ATTEMPT) == []


@pytest.mark.fault("agent killed")
def test_agent_that_dies_is_to_blame_and_its_ranks_go(make: Make) -> None:
    allocation = make(WAIT)
    allocation.order(POINT)
    leader = allocation.start()
    await_ranks(allocation)
    os.kill(allocation.pid_of(1), signal.SIGKILL)
    (ended,) = wait_until(lambda: allocation.of("attempt_ended"), 60.0)
    assert (ended["state"], ended["blame"]) == ("failed", "node")
    assert "node vnode2 was lost" in ended["reason"]
    allocation.tell("close")
    assert leader.wait(60) == 0
    assert processes_of(ATTEMPT) == []


@pytest.mark.fault("launcher broken")
def test_launcher_that_is_missing_blames_the_site(make: Make) -> None:
    allocation = make(SUM, mpi_launcher=("/nowhere/mpiexec", "-n", "{ranks}"))
    allocation.order(POINT)
    allocation.tell("close")
    assert allocation.start().wait(60) == 0
    (ended,) = allocation.of("attempt_ended")
    assert (ended["state"], ended["blame"]) == ("failed", "site")
    assert "/nowhere/mpiexec" in ended["reason"]


@pytest.mark.fault("launcher broken")
def test_launcher_that_starts_nothing_blames_the_site_with_its_words(make: Make) -> None:
    says = ("/bin/sh", "-c", "echo no such partition >&2; exit 3")
    allocation = make(SUM, mpi_launcher=says)
    allocation.order(POINT)
    allocation.tell("close")
    assert allocation.start().wait(60) == 0
    (ended,) = allocation.of("attempt_ended")
    assert (ended["state"], ended["blame"]) == ("failed", "site")
    assert "exit code 3 before a rank began" in ended["reason"]
    assert "no such partition" in ended["reason"]


def test_podman_hands_in_what_the_launcher_tells_each_rank(make: Make, tmp_path: Path) -> None:
    program = tmp_path / "programs" / "podman-hpc"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$@"; exit 1\n')
    program.chmod(0o755)
    allocation = make(SUM, container_runtime="podman-hpc", mpi_launcher=("env", "PMI_RANK=0"))
    allocation.define(
        "train", shape=Shape(ranks_per_node=1, start="mpi"), container=Container("docker://x")
    )
    allocation.order(POINT)
    allocation.tell("close")
    assert allocation.start(PATH=f"{program.parent}:{os.environ['PATH']}").wait(60) == 0
    (ended,) = allocation.of("attempt_ended")
    words = ended["stdout"].split(" --volume ")[0]
    named = set(words.split(" --env ")[1:])
    assert {"RANK", "MASTER_ADDR", "HARVESTER_ATTEMPT", "PMI*", "SLURM_*"} <= named
    assert "--ipc host" in words
