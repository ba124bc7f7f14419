"""Whole searches on a real Slurm of 3 nodes with 4 GPUs each."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from scripts.stack import Account
from tests.live.conftest import SlurmCluster
from tests.live.searching import Search, install

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def ordinary(slurm_cluster: SlurmCluster) -> Iterator[Account]:
    """The cluster's ordinary user, with an installation that this user can read."""
    account = install(slurm_cluster)
    yield account
    assert account.code is not None
    shutil.rmtree(account.code.parent, ignore_errors=True)


def test_ordinary_user_searches_over_all_gpus_of_three_nodes(
    slurm_cluster: SlurmCluster, ordinary: Account
) -> None:
    with Search(slurm_cluster, ordinary, nodes="3", jobs=1) as search:
        search.start(36, seconds=2)
        books = search.finish()

        books.check(36)
        places = {point["attempts"][0]["node"] for point in books.points}
        assert places == {"node1", "node2", "node3"}
        assert len(books.attempts) == 36
        assert {job["User"] for job in books.jobs} == {"hpcuser"}


def test_root_searches(slurm_cluster: SlurmCluster) -> None:
    with Search(slurm_cluster, Account(), jobs=1, nodes="1") as search:
        search.start(6)
        search.finish().check(6)
