"""Leader and agents through a real MPI job, and what happens when that job ends."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from payload_runner.protocol import CheckpointRule, PayloadSpec, Shape, to_fields
from tests.hand_allocation import OK, PLAN, Allocation
from tests.support import wait_until

MPIEXEC = Path(sys.executable).with_name("mpiexec")  # of the extra "mpi"
pytestmark = pytest.mark.skipif(not MPIEXEC.exists(), reason=f"there is no {MPIEXEC}")
# A launcher that does not notice that its job has died: as srun, when a node is gone.
HANGS = 'nodes=$1; shift; "$0" -n "$nodes" "$@"; exec sleep 1000'
# The launcher of MPI payloads, for a host alone; the host of the second node is gone.
ALONE = 'case " $* " in *" --node 1 "*) echo no route to {hosts} >&2; exit 1; esac; exec "$@"'
Make = Callable[..., Allocation]
WHOLE_NODE = Shape(gpus_per_node=2)
# In the place of a launcher: mpiexec, but the runner's Python is told to forget its packages.
NO_PACKAGES = 'nodes=$1 python=$2; shift 2; exec "$0" -n "$nodes" "$python" -S "$@"'


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Allocation] = []

    def build(**changes: Any) -> Allocation:
        launcher = (str(MPIEXEC), "-n", "{nodes}")
        plan = replace(PLAN, **{"transport": "mpi", "launcher": launcher, **changes})
        made.append(Allocation(tmp_path, plan))
        return made[-1]

    yield build
    for allocation in made:
        allocation.kill_all()


def rank_pid(allocation: Allocation, rank: int) -> int:
    """The process of a rank of the tunnel."""
    for path in Path("/proc").iterdir():
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            environ = (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        ours = str(allocation.pyz).encode() in words and b"tunnel" in words
        if ours and words[0].endswith(b"python") and f"PMI_RANK={rank}".encode() in environ:
            return int(path.name)
    return 0


def test_payloads_on_two_nodes_end_with_their_results(make: Make) -> None:
    allocation = make()
    allocation.define(OK)
    allocation.order(*range(20))
    allocation.tell("close")
    assert allocation.start().wait(100) == 0
    assert allocation.states() == {str(number): "succeeded" for number in range(20)}
    assert allocation.of("agents_replaced") == []
    assert list(allocation.paths.incarnation("1", 0).root.glob("*box.*")) == []


@pytest.mark.fault("MPI job lost")
def test_lost_rank_costs_what_ran_and_fresh_agents_go_on_over_files(make: Make) -> None:
    allocation = make()
    allocation.define(
        "touch at-work; while ! test -e go-on; do sleep 0.1; done; " + OK,
        checkpoint=CheckpointRule(("saved",)),
        shape=WHOLE_NODE,
    )
    allocation.order(1, 2)
    leader = allocation.start()
    wait_until(lambda: len(list(allocation.spool.work.glob("*/1.*.1.1/at-work"))) == 2, 60)
    os.kill(rank_pid(allocation, 1), signal.SIGKILL)
    wait_until(lambda: len(allocation.states()) == 2, 60)
    ended = allocation.of("attempt_ended")
    assert {(item["state"], item["blame"]) for item in ended} == {("preempted", "site")}
    assert all("MPI" in item["reason"] for item in ended)
    assert len(allocation.of("agents_replaced")) == 1

    allocation.tell("define", **to_fields(PayloadSpec("ok", OK, shape=WHOLE_NODE)))
    allocation.order(3, 4, payload_id="ok")
    allocation.tell("close")
    assert leader.wait(100) == 0
    states = allocation.states()
    assert (states["3"], states["4"]) == ("succeeded", "succeeded")
    assert allocation.of("node_lost") == []
    assert len(list(allocation.paths.incarnation("1", 0).root.glob("outbox.*"))) == 2


@pytest.mark.fault("node lost")
@pytest.mark.fault("MPI job lost")
def test_job_that_dies_of_a_lost_node_is_gone_on_from_on_the_others(make: Make) -> None:
    allocation = make(
        launcher=("/bin/sh", "-c", HANGS, str(MPIEXEC), "{nodes}"),
        mpi_launcher=("/bin/sh", "-c", ALONE, "sh"),
    )
    allocation.define("touch at-work; sleep 1000; " + OK, shape=WHOLE_NODE)
    allocation.order(1, 2)
    leader = allocation.start()
    wait_until(lambda: len(list(allocation.spool.work.glob("*/1.*.1.1/at-work"))) == 2, 60)
    os.kill(rank_pid(allocation, 1), signal.SIGKILL)
    wait_until(lambda: len(allocation.states()) == 2, 60)
    ended = allocation.of("attempt_ended")
    assert {(item["state"], item["blame"]) for item in ended} == {("preempted", "site")}, ended
    assert len(allocation.of("agents_replaced")) == 1

    allocation.tell("define", **to_fields(PayloadSpec("ok", OK, shape=WHOLE_NODE)))
    allocation.order(3, 4, payload_id="ok")
    allocation.tell("close")
    assert leader.wait(100) == 0
    states = allocation.states()
    assert (states["3"], states["4"]) == ("succeeded", "succeeded")
    (lost,) = allocation.of("node_lost")
    assert "its agent ended with exit code 1" in lost["reason"]


@pytest.mark.fault("MPI job lost")
def test_python_without_mpi4py_goes_on_over_files_at_once(make: Make) -> None:
    # Isolated from the packages of this environment, as a centre's own interpreter would be.
    allocation = make(launcher=("/bin/sh", "-c", NO_PACKAGES, str(MPIEXEC), "{nodes}"))
    allocation.define(OK)
    allocation.order(1)
    allocation.tell("close")
    assert allocation.start().wait(100) == 0
    assert allocation.states() == {"1": "succeeded"}
    (replaced,) = allocation.of("agents_replaced")
    assert replaced["transport"] == "files"
