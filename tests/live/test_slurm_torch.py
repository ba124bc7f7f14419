"""Torch across the hosts of a real Slurm: a process group of several nodes, and real torchrun."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scripts.stack import Account
from tests.live.clusters import SlurmCluster
from tests.live.searching import Search, copy_environment

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(1800)]

HERE = Path(__file__).parent
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
# Importing torch on three nodes of a busy machine takes a minute, and every change does it again.
CHANGE_S = 240.0
RATES = {"rate": {"method": "uniform", "dimension": {"low": 0.4, "high": 0.6}}}
# Holds its nodes until it may go.
HOLDS = """
import json, pathlib, time
while not pathlib.Path("@go@").exists():
    time.sleep(0.1)
json.dump({"loss": 1.0}, open("output.json", "w"))
"""


@pytest.fixture
def ordinary(slurm_cluster: SlurmCluster, installed: Callable[[SlurmCluster], Account]) -> Account:
    return installed(slurm_cluster)


@pytest.fixture(scope="module")
def torch(slurm_cluster: SlurmCluster, torch_env: Path) -> Iterator[Path]:
    """An interpreter with torch that the cluster's ordinary user can start on every node."""
    home = slurm_cluster.directory(slurm_cluster.user)
    yield copy_environment(torch_env, home / "torch")
    shutil.rmtree(home)


def test_six_ranks_on_three_hosts_train_one_model(
    slurm_cluster: SlurmCluster, ordinary: Account, torch: Path
) -> None:
    with Search(slurm_cluster, ordinary, nodes="3", jobs=1) as search:
        search.stack.start_central()
        search.task = search.submit(
            "ddp",
            (HERE / "torch_ddp_training.py").read_text(),
            2,
            command=f"{torch} evaluate.py",
            space=RATES,
            start="processes",
            nodes=3,
            ranks_per_node=2,
            gpus_per_node=2,
            expected_minutes=2,
            environment=ONE_THREAD,
        )
        search.stack.start_daemon()
        for point in search.finish(900).points:
            assert (point["state"], len(point["attempts"])) == ("done", 1), point
            assert point["loss"] < 0.05
            told = json.loads(point["message"])
            assert (told["ranks"], told["spread"]) == (6, 0.0)
            assert told["hosts"] == [f"node{node}" for node in (1, 1, 2, 2, 3, 3)]


class Elastic:
    """A training under torchrun on what nodes there are, as an elastic evaluation."""

    def __init__(self, search: Search, shared: Path, torch: Path) -> None:
        self.search = search
        self.finish, self.seen = shared / "finish", shared / "seen"
        search.task = search.submit(
            "elastic",
            (HERE / "torch_elastic_training.py").read_text(),
            1,
            command=f"exec {torch} -m torch.distributed.run evaluate.py {self.finish} {self.seen}",
            checkpoint="checkpoint",
            elastic={"min_nodes": 1, "max_nodes": 3},
            gpus_per_node=4,
            expected_minutes=15,
            warn_seconds=2,
            kill_seconds=10,
            environment=ONE_THREAD,
        )

    def sizes(self) -> list[str]:
        """The numbers of nodes with which it has made progress so far, in order."""
        return self.seen.read_text().split() if self.seen.exists() else []

    def runs_on(self, nodes: int, *, after: int = 0) -> int:
        """Wait until it makes progress on so many nodes; the number of its sizes then.

        ``after``: it had so many sizes before.
        """

        def sees() -> int:
            sizes = self.sizes()
            return len(sizes) if len(sizes) > after and sizes[-1] == str(nodes) else 0

        claim = f"it trains on {nodes} nodes after {after} sizes; it had {self.sizes()}"
        return self.search.wait(sees, CHANGE_S, claim)


def test_torchrun_shrinks_and_grows_over_hosts_and_ends_with_what_it_saved(
    slurm_cluster: SlurmCluster, ordinary: Account, torch: Path
) -> None:
    shared = slurm_cluster.directory(slurm_cluster.user)
    go = shared / "go"
    try:
        with Search(slurm_cluster, ordinary, nodes="3", jobs=1, walltime="00:25:00") as search:
            search.stack.start_central()
            training = Elastic(search, shared, torch)
            search.stack.start_daemon()
            whole = training.runs_on(3)

            small = search.submit("small", HOLDS.replace("@go@", str(go)), 1, gpus_per_node=4)
            less = training.runs_on(2, after=whole)
            go.touch()
            client = search.stack.client()
            search.wait(lambda: client.show(small)["state"] != "running", 120, "the other is done")
            training.runs_on(3, after=less)
            training.finish.touch()

            (point,) = search.finish().points
            print(f"nodes with progress, in order: {point['message']}")
            assert (point["state"], len(point["attempts"])) == ("done", 1), point
            assert point["loss"] < 1e-3
            assert point["message"].split()[-2:] == ["2", "3"], "one node less, and one more"
    finally:
        shutil.rmtree(shared, ignore_errors=True)
