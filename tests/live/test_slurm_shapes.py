"""Payloads of many ranks on a real Slurm: MPI through its launcher, and process groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from scripts.stack import Account
from tests.live.clusters import SlurmCluster
from tests.live.searching import Search

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
MPI_WAITING = """
import time
from mpi4py import MPI

MPI.COMM_WORLD.barrier()
open("at-work", "w").close()
time.sleep(600)
"""


@pytest.fixture
def ordinary(slurm_cluster: SlurmCluster, installed: Callable[[SlurmCluster], Account]) -> Account:
    return installed(slurm_cluster)


def finish(search: Search) -> tuple[Mapping[str, Any], ...]:
    """The points of a search that is done, each with its one true loss."""
    points = search.finish().points
    for point in points:
        assert point["state"] == "done", point
        assert abs(point["loss"] - (point["parameters"]["x"] - 0.25) ** 2) < 1e-6, point
    return points


# With hosts given it does not ask which batch system it is in.
HYDRA = "{bin}/mpiexec -launcher slurm -n {ranks} -ppn {ranks_per_node} -hosts {hosts}"


@pytest.mark.parametrize("launcher", ["srun", "hydra"])
def test_mpi_training_runs_on_two_and_three_nodes(
    slurm_cluster: SlurmCluster, ordinary: Account, launcher: str
) -> None:
    site: dict[str, object] = {"nodes": "3", "jobs": 1}
    if launcher == "hydra":
        site["mpi_launcher"] = HYDRA.replace("{bin}", str(ordinary.python.parent))
    with Search(slurm_cluster, ordinary, **site) as search:
        search.stack.start_central()
        shape = {"start": "mpi", "ranks_per_node": 2, "gpus_per_node": 2}
        search.task = search.submit("three", MPI_TRAINING, 2, nodes=3, **shape)
        two = search.submit("two", MPI_TRAINING, 2, nodes=2, **shape)
        search.stack.start_daemon()
        client = search.stack.client()
        search.wait(lambda: client.show(two)["state"] != "running", 120, "the smaller one is done")
        finish(search)
        for task, nodes in ((search.task, 3), (two, 2)):
            for point in client.points(task):
                assert len(point["attempts"]) == 1, point
                seats = [seat.split(":") for seat in point["message"].split()]
                assert len(seats) == 2 * nodes, point
                assert len({host for host, _ in seats}) == nodes, point
                assert {len(gpus.split(",")) for _, gpus in seats} == {2}, point
