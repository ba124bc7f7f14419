"""Torch's DistributedDataParallel on two nodes, started by the agents."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from payload_runner.protocol import Shape
from tests.hand_allocation import PLAN, Allocation

TRAINING = Path(__file__).with_name("torch_ddp_training.py")
SHAPE = Shape(nodes_min=2, nodes_max=2, gpus_per_node=2, ranks_per_node=2, start="processes")

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def allocation(tmp_path: Path) -> Iterator[Allocation]:
    made = Allocation(tmp_path, replace(PLAN, walltime_s=1200.0))
    yield made
    made.kill_all()


def test_four_ranks_on_two_nodes_train_one_model(allocation: Allocation, torch_env: Path) -> None:
    python = shlex.quote(str(torch_env / "bin/python"))
    allocation.define(
        # The names of virtual nodes mean nothing to the network.
        f"GLOO_SOCKET_IFNAME=lo exec {python} {shlex.quote(str(TRAINING))}",
        shape=SHAPE,
        environment={"OMP_NUM_THREADS": "1"},
    )
    allocation.order(1, parameters={"rate": 0.5})
    allocation.order(2, parameters={"rate": 0.01})
    allocation.tell("close")
    assert allocation.start().wait(900) == 0
    ended = {item["attempt"]: item for item in allocation.of("attempt_ended")}
    assert {item["state"] for item in ended.values()} == {"succeeded"}, ended
    for item in ended.values():
        told = json.loads(item["message"])
        assert told["ranks"] == 4
        assert told["spread"] == 0.0, "the ranks do not agree on the weights"
    assert ended["1.1.1.1"]["loss"] < 0.05 < ended["1.2.1.1"]["loss"]
