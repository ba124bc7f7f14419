"""Payloads of several ranks, each in a container of its own: process groups and MPI."""

from __future__ import annotations

import contextlib
import secrets
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from payload_runner.placement import Slot
from payload_runner.protocol import Container, Shape
from tests.container_image import FILE, NAME, SEARCHED, Podman, make_root, require
from tests.hand_allocation import PLAN, Allocation
from tests.node_agent import ATTEMPT, AgentProcess, make_plan, processes_of

pytestmark = pytest.mark.live

IMAGE = Container(f"docker://{NAME}")
MPIEXEC = Path(sys.executable).with_name("mpiexec")  # of the extra "mpi"
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
# Rank 1 hands a word to rank 0 through shared memory.
MEET = """
word=/dev/shm/{word}
say() {{ echo "{variables} $(cat "$HARVESTER_HOSTFILE")"; }}
if [ "$RANK" = 1 ]; then say > $word.new && mv $word.new $word; exit; fi
until [ -e $word ]; do sleep 0.05; done
say; cat $word; rm $word
echo '{{"loss": 1}}' > output.json
"""
# Each rank adds its number up over MPI and shows where it runs.
SUM = """
import json, os
from mpi4py import MPI
world = MPI.COMM_WORLD
total, places = world.allreduce(world.rank), world.gather(os.getcwd())
assert os.path.exists("/only-in-the-image")
if world.rank == 0:
    json.dump({"loss": total, "message": " ".join(places)}, open("output.json", "w"))
"""


@pytest.mark.parametrize("name", sorted(SEARCHED))
def test_ranks_on_a_node_get_their_places_and_share_memory(tmp_path: Path, name: str) -> None:
    root = make_root(tmp_path / "images" / FILE, "mv", "rm")
    podman = Podman() if name == "podman" and shutil.which("podman") else None
    with contextlib.closing(podman) if podman else contextlib.nullcontext():
        if podman is not None:
            podman.add(root, NAME)
        require(name, root, podman)
        plan = make_plan(container_runtime=name, image_dir=str(root.parent))
        environ = dict(podman.environment) if podman else {}
        slot = Slot(node=0, hosts=("node0",), ranks=2, world_size=2, master_port=29500)
        shape = Shape(ranks_per_node=2, start="processes")
        variables = "/".join(f"${name}" for name in VARIABLES)
        command = MEET.format(word=f"harvester-{secrets.token_hex(8)}", variables=variables)
        with AgentProcess(tmp_path, plan, environ=environ) as agent:
            ended = agent.run(
                command, ATTEMPT, slot=slot, shape=shape, container=IMAGE, relay_output=True
            )
    assert (ended.state, ended.loss) == ("succeeded", 1.0), ended
    said = str(ended.stdout).splitlines()
    assert said == [f"{rank}/2/{rank}/0/127.0.0.1/29500 node0" for rank in (0, 1)]
    assert processes_of(ATTEMPT) == []


@pytest.fixture
def allocation(tmp_path: Path) -> Iterator[Callable[..., Allocation]]:
    made: list[Allocation] = []

    def build(**changes: object) -> Allocation:
        made.append(Allocation(tmp_path, replace(PLAN, **changes)))  # type: ignore[arg-type]
        return made[-1]

    yield build
    for one in made:
        one.kill_all()


def shown(runtime: str, *places: Path) -> tuple[str, ...]:
    """Options by which a runtime shows places of the host, this Python among them."""
    words = [str(place) for place in (Path("/usr"), *places)]
    if runtime == "bwrap":
        return tuple(word for place in words for word in ("--ro-bind", place, place))
    return tuple(word for place in words for word in ("--bind", f"{place}:{place}"))


@pytest.mark.skipif(not MPIEXEC.exists(), reason=f"there is no {MPIEXEC}")
@pytest.mark.parametrize("runtime", ["bwrap", "charliecloud"])
def test_mpi_ranks_in_containers_are_one_world(
    tmp_path: Path, allocation: Callable[..., Allocation], runtime: str
) -> None:
    root = make_root(tmp_path / "images" / FILE)
    require(runtime, root)
    (root / "only-in-the-image").touch()
    (root / sys.prefix.lstrip("/")).mkdir(parents=True, exist_ok=True)
    running = allocation(
        mpi_launcher=(str(MPIEXEC), "-n", "{ranks}"),
        container_runtime=runtime,
        container_options=shown(runtime, Path(sys.prefix)),
        image_dir=str(root.parent),
    )
    point = secrets.randbelow(10**9)
    running.define(
        f"exec {shlex.quote(sys.executable)} -c {shlex.quote(SUM)}",
        shape=Shape(nodes_min=2, nodes_max=2, ranks_per_node=2, start="mpi"),
        container=IMAGE,
    )
    running.order(point)
    running.tell("close")
    assert running.start().wait(120) == 0
    (ended,) = running.of("attempt_ended")
    assert (ended["state"], ended.get("loss")) == ("succeeded", 6.0), ended
    assert ended["message"] == " ".join(["/srv/workDir"] * 4)
    assert processes_of(f"1.{point}.1.1") == []
