"""An elastic evaluation on a real Slurm: its nodes are hosts of their own, and come and go."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from scripts.stack import Account
from tests.elastic_farm import farm
from tests.live.conftest import SlurmCluster
from tests.live.searching import Search, install

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]

SMALL = """
import json, pathlib, time
while not pathlib.Path("@go@").exists():
    time.sleep(0.1)
json.dump({"loss": 1.0}, open("output.json", "w"))
"""


@pytest.fixture
def ordinary(slurm_cluster: SlurmCluster) -> Iterator[Account]:
    """The cluster's ordinary user, with an installation that this user can read."""
    account = install(slurm_cluster)
    yield account
    assert account.code is not None
    shutil.rmtree(account.code.parent, ignore_errors=True)


def test_idle_nodes_are_lent_and_taken_back_when_another_evaluation_waits(
    slurm_cluster: SlurmCluster, ordinary: Account
) -> None:
    shared = slurm_cluster.directory(slurm_cluster.user)
    finish, seen, go = (shared / name for name in ("finish", "seen", "go"))

    def sizes() -> list[int]:
        words = seen.read_text().split() if seen.exists() else []
        return [len(word.split("+")) for word in words]

    with Search(slurm_cluster, ordinary, nodes="3", jobs=1) as search:
        search.stack.start_central()
        shape = {"elastic": {"min_nodes": 1, "max_nodes": 3}, "gpus_per_node": 4}
        search.task = search.submit("farm", farm(finish), 1, expected_minutes=6, **shape)
        search.stack.start_daemon()
        search.wait(lambda: sizes() == [3], 120, "it has all three nodes")

        small = search.submit("small", SMALL.replace("@go@", str(go)), 1, gpus_per_node=4)
        search.wait(lambda: sizes() == [3, 2], 120, "one node was taken back")
        go.touch()
        client = search.stack.client()
        search.wait(lambda: client.show(small)["state"] != "running", 120, "the other is done")
        search.wait(lambda: sizes() == [3, 2, 3], 120, "the node was lent again")
        finish.touch()

        (point,) = search.finish().points
        assert (point["state"], point["loss"], len(point["attempts"])) == ("done", 0.0, 1)
    shutil.rmtree(shared, ignore_errors=True)
