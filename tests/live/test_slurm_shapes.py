"""Payloads of many ranks on a real Slurm: MPI through its launcher, and process groups."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from harvester.mpi_launchers import usual_mpi_launcher
from harvester.spool.runner_events import read_runner_events
from scripts.stack import Account
from tests.elastic_farm import farm
from tests.live.clusters import SlurmCluster
from tests.live.searching import Search
from tests.open_mpi import OPEN_MPI, open_mpi

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]

# Data-parallel descent on (w - x)^2: every rank has its part of the data, gradients are averaged
# over MPI in every step. Afterwards all ranks agree on w, which is x.
MPI_TRAINING = """
import json, os, socket
from mpi4py import MPI

world = MPI.COMM_WORLD
x = json.load(open("input.json"))["x"]
mine = x + (world.rank - (world.size - 1) / 2)  # the parts differ, their mean is x
w = 0.0
for step in range(60):
    w -= 0.5 * world.allreduce(w - mine) / world.size
seats = world.gather((socket.gethostname(), os.environ["CUDA_VISIBLE_DEVICES"]))
if world.rank == 0:
    message = " ".join(f"{host}:{gpus}" for host, gpus in seats)
    json.dump({"loss": (w - 0.25) ** 2, "message": message}, open("output.json", "w"))
"""
# The same over sockets alone: rank 0 averages, whoever else asks it. No package is needed.
GROUP_TRAINING = """
import json, os, socket, time

rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
where = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
x = json.load(open("input.json"))["x"]
mine = x + (rank - (size - 1) / 2)


def connect():
    for _ in range(600):
        try:
            return socket.create_connection(where, timeout=120)
        except ConnectionRefusedError:  # rank 0 is not there yet
            time.sleep(0.1)
    raise SystemExit(f"nobody listens at {where}")


if rank == 0:
    server = socket.create_server(("", where[1]))
    server.settimeout(120)
    files = [server.accept()[0].makefile("rw") for _ in range(size - 1)]
    seats = [file.readline().strip() for file in files]
else:
    file = connect().makefile("rw")
    print(socket.gethostname(), os.environ["CUDA_VISIBLE_DEVICES"], sep=":", file=file, flush=True)
w = 0.0
for step in range(60):
    if rank == 0:
        told = [float(file.readline()) for file in files] + [w - mine]
        mean = sum(told) / size
        for file in files:
            print(mean, file=file, flush=True)
    else:
        print(w - mine, file=file, flush=True)
        mean = float(file.readline())
    w -= 0.5 * mean
if rank == 0:
    assert len(open(os.environ["HARVESTER_HOSTFILE"]).read().split()) >= 1
    own = f"{socket.gethostname()}:{os.environ['CUDA_VISIBLE_DEVICES']}"
    message = " ".join(sorted([own, *seats]))
    json.dump({"loss": (w - 0.25) ** 2, "message": message}, open("output.json", "w"))
"""
SINGLE = """
import json, os, socket, time

time.sleep(2)
x = json.load(open("input.json"))["x"]
message = f"{socket.gethostname()}:{os.environ['CUDA_VISIBLE_DEVICES']}"
json.dump({"loss": (x - 0.25) ** 2, "message": message}, open("output.json", "w"))
"""


@pytest.fixture
def ordinary(slurm_cluster: SlurmCluster, installed: Callable[[SlurmCluster], Account]) -> Account:
    return installed(slurm_cluster)


def seats_of(search: Search, task: str) -> list[list[str]]:
    """What the ranks of each point of a search that is done said: ``node:gpu,gpu``.

    Each point has its one true loss, and took one attempt.
    """
    points = tuple(search.stack.client().points(task))
    for point in points:
        assert point["state"] == "done", point
        assert abs(point["loss"] - (point["parameters"]["x"] - 0.25) ** 2) < 1e-6, point
        assert len(point["attempts"]) == 1, point
    return [point["message"].split() for point in points]


def nodes_of(seats: list[str]) -> set[str]:
    return {seat.partition(":")[0] for seat in seats}


def run_all(search: Search, tasks: list[str]) -> None:
    """Run a daemon until all these searches are done and nothing is left in flight."""
    search.stack.start_daemon()
    run_out(search, tasks)


def run_out(search: Search, tasks: list[str]) -> None:
    """Wait until all these searches are done and nothing is left in flight."""
    client = search.stack.client()

    def done() -> bool:
        return all(client.show(task)["state"] != "running" for task in tasks)

    search.wait(done, 300, "all searches are done")
    search.task = tasks[0]
    search.finish()


# With hosts given it does not ask which batch system it is in.
HYDRA = "{bin}/mpiexec -launcher slurm -n {ranks} -ppn {ranks_per_node} -hosts {hosts}"


def launched_by(launcher: str, ordinary: Account) -> dict[str, object]:
    """What a site file says of an MPI launcher."""
    if launcher == "hydra":
        return {"mpi_launcher": HYDRA.replace("{bin}", str(ordinary.python.parent))}
    if launcher == "open mpi":
        mpirun = open_mpi()
        if mpirun is None:
            pytest.skip("there is no mpirun of Open MPI; run scripts/testbed/install")
        words = usual_mpi_launcher("slurm", ["mpirun"])[1:]
        return {
            "mpi_launcher": shlex.join([str(mpirun), *words]),
            "environment": json.dumps(OPEN_MPI),
        }
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["srun", "hydra", "open mpi"])
def test_mpi_training_runs_on_two_and_three_nodes(
    slurm_cluster: SlurmCluster, ordinary: Account, launcher: str
) -> None:
    site = {"nodes": "3", "jobs": 1, **launched_by(launcher, ordinary)}
    with Search(slurm_cluster, ordinary, **site) as search:
        search.stack.start_central()
        shape = {"start": "mpi", "ranks_per_node": 2, "gpus_per_node": 2}
        three = search.submit("three", MPI_TRAINING, 2, nodes=3, **shape)
        two = search.submit("two", MPI_TRAINING, 2, nodes=2, **shape)
        run_all(search, [three, two])
        for task, nodes in ((three, 3), (two, 2)):
            for seats in seats_of(search, task):
                assert len(seats) == 2 * nodes, seats
                assert len(nodes_of(seats)) == nodes, seats
                assert {seat.count(",") for seat in seats} == {1}, "two GPUs for each rank to see"


def test_one_allocation_runs_every_kind_of_payload(
    slurm_cluster: SlurmCluster, ordinary: Account
) -> None:
    """The elastic one has all nodes until others wait; then they take turns, none in vain."""
    shared = slurm_cluster.directory(slurm_cluster.user)
    finish, seen = shared / "finish", shared / "seen"

    def sizes() -> list[int]:
        words = seen.read_text().split() if seen.exists() else []
        return [len(word.split("+")) for word in words]

    with Search(slurm_cluster, ordinary, nodes="3", jobs=1) as search:
        search.stack.start_central()
        # Time enough for all of it even where everything is slow.
        elastic = search.submit(
            "elastic",
            farm(finish),
            1,
            elastic={"min_nodes": 1, "max_nodes": 3},
            gpus_per_node=3,
            expected_minutes=5,
        )
        search.stack.start_daemon()
        search.wait(lambda: sizes()[-1:] == [3], 120, "the elastic one has all three nodes")

        expected: dict[str, object] = {"expected_minutes": 1}
        group = {"start": "processes", **expected}
        ranks = {"ranks_per_node": 2, "gpus_per_node": 4, "nodes": 3}
        single = search.submit("single", SINGLE, 12, gpus_per_node=1, **expected)
        shared_gpu = search.submit("shared", SINGLE, 4, gpus_per_node=0.5, **expected)
        node = search.submit("node", GROUP_TRAINING, 3, ranks_per_node=4, gpus_per_node=4, **group)
        nodes = search.submit(
            "nodes", GROUP_TRAINING, 2, nodes=2, ranks_per_node=2, gpus_per_node=2, **group
        )
        mpi = search.submit("mpi", MPI_TRAINING, 2, start="mpi", **ranks, **expected)
        search.wait(lambda: sizes()[-1:] < [3], 120, "it has given nodes back to those that wait")
        client = search.stack.client()
        search.wait(lambda: client.show(single)["state"] != "running", 120, "holes are filled")
        finish.touch()
        run_out(search, [elastic, mpi, single, shared_gpu, node, nodes])
        assert len(search.books().jobs) == 1, "one allocation was to be enough"

        (point,) = search.stack.client().points(elastic)
        assert (point["state"], point["loss"], len(point["attempts"])) == ("done", 0.0, 1)
        assert len(seats_of(search, single)) == 12
        assert len(seats_of(search, shared_gpu)) == 4
        found = [
            (len(seats), len(nodes_of(seats)))
            for task in (node, nodes, mpi)
            for seats in seats_of(search, task)
        ]
        # Of the process groups all ranks speak, of MPI as well.
        assert found == [(4, 1)] * 3 + [(4, 2)] * 2 + [(6, 3)] * 2
        (tag,) = search.stack.tags()
        chart = search.stack.harvester("alloc", "show", tag, "--timeline")
        print(chart)
        rows = {line.split()[0] for line in chart.partition("\n\n")[0].splitlines()[1:]}
        assert rows >= {f"node{node}:{gpu}" for node in (1, 2, 3) for gpu in range(4)}
    shutil.rmtree(shared, ignore_errors=True)


@pytest.mark.fault("MPI job lost")
@pytest.mark.slow
def test_search_goes_on_when_the_mpi_job_that_carries_it_is_lost(
    slurm_cluster: SlurmCluster, ordinary: Account
) -> None:
    launcher = "srun --mpi=pmi2 --ntasks-per-node=1 --overlap --kill-on-bad-exit=1"
    site: dict[str, object] = {"nodes": "3", "jobs": 1, "boot_margin": "0s"}
    with Search(
        slurm_cluster,
        ordinary,
        transport="mpi",
        launcher=launcher,
        python=ordinary.python,
        **site,
    ) as search:
        search.start(18, seconds=8)
        search.started_jobs()
        (tag,) = search.stack.tags()
        seen = [event.kind for event in read_runner_events(search.spool, tag)]
        assert "attempt_started" in seen
        assert "agents_replaced" not in seen, "MPI did not come up"
        os.kill(tunnel_of(search, 1), signal.SIGKILL)
        books = search.finish()
        books.check(18)
        events = read_runner_events(search.spool, tag)
        (replaced,) = [event for event in events if event.kind == "agents_replaced"]
        after = [item for item in events if item.kind == "attempt_ended" and item.at > replaced.at]
        assert "succeeded" in {item.fields["state"] for item in after}
        assert "node_lost" not in {event.kind for event in events}


@pytest.mark.fault("node lost")
@pytest.mark.fault("MPI job lost")
@pytest.mark.slow
def test_lost_node_that_takes_the_mpi_job_along_leaves_work_for_the_others(
    slurm_cluster: SlurmCluster, ordinary: Account
) -> None:
    launcher = "srun --mpi=pmi2 --ntasks-per-node=1 --overlap --kill-on-bad-exit=1"
    site: dict[str, object] = {"nodes": "3", "jobs": 1, "boot_margin": "0s"}
    with Search(
        slurm_cluster,
        ordinary,
        transport="mpi",
        launcher=launcher,
        python=ordinary.python,
        **site,
    ) as search:
        search.start(18, seconds=8)
        search.started_jobs()
        (tag,) = search.stack.tags()
        busy = sorted({point["node"] for point in search.stack.status()["points"]})
        slurm_cluster.kill(busy[-1])
        os.kill(tunnel_of(search, 1), signal.SIGKILL)
        try:
            search.wait(lambda: search.live("ended"), 240, "the lost node's job has ended")
        finally:
            slurm_cluster.heal()
        books = search.finish()
        books.check(18)
        events = read_runner_events(search.spool, tag)
        (replaced,) = [event for event in events if event.kind == "agents_replaced"]
        assert replaced.fields["transport"] == "files"


def tunnel_of(search: Search, rank: int) -> int:
    """The process of a rank of the MPI job that carries leader and agents."""
    for path in Path("/proc").iterdir():
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            environ = (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        python = words[0].endswith(b"python")
        ours = python and b"tunnel" in words and str(search.spool).encode() in words
        if ours and f"PMI_RANK={rank}".encode() in environ:
            return int(path.name)
    raise AssertionError(f"there is no rank {rank} of the tunnel")
