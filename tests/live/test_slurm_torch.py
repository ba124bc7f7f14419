"""Torch across the hosts of a real Slurm: a process group of several nodes."""

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
RATES = {"rate": {"method": "uniform", "dimension": {"low": 0.4, "high": 0.6}}}


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
