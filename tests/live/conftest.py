"""The real servers that live tests use, brought up once a session and taken down after it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scripts.stack import TOP, Account
from tests.live.clusters import (
    GRID_STATE,
    SHARED,
    SLURM_STATE,
    GridCluster,
    SlurmCluster,
    run_testbed,
    why_no_gridengine,
    why_no_slurm,
)
from tests.live.searching import Cluster, install


@pytest.fixture(scope="session")
def torch_env() -> Path:
    """An environment with torch, of its own, which is made once."""
    place = TOP / ".venv-torch"
    made = subprocess.run(
        [TOP / "scripts/venv", "torch"],
        env={**os.environ, "HARVESTER_VENV": str(place)},
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    return place


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[SlurmCluster]:
    reason = why_no_slurm()
    if reason:
        pytest.skip(reason)
    was_up = (SLURM_STATE / "run" / "slurmctld.pid").exists()
    cluster = SlurmCluster(nodes=3, gpus=4, user="hpcuser", shared=SHARED)
    cluster.heal()
    yield cluster
    if not was_up:  # somebody's own cluster is left as it was
        run_testbed("slurm-down", "--purge")


@pytest.fixture(scope="session")
def grid() -> Iterator[GridCluster]:
    reason = why_no_gridengine()
    if reason:
        pytest.skip(reason)
    was_up = (GRID_STATE / "run" / "qmaster.pid").exists()
    cluster = GridCluster()
    cluster.heal()
    yield cluster
    if not was_up:
        run_testbed("sge-down", "--purge")


@pytest.fixture(scope="session")
def installed() -> Iterator[Callable[[Cluster], Account]]:
    """The ordinary user of a cluster, with an installation that this user can read.

    One for the whole session: the clusters share the user and the file system.
    """
    accounts: dict[str, Account] = {}

    def account(cluster: Cluster) -> Account:
        if cluster.user not in accounts:
            accounts[cluster.user] = install(cluster)
        return accounts[cluster.user]

    yield account
    for made in accounts.values():
        assert made.code is not None
        shutil.rmtree(made.code.parent, ignore_errors=True)
