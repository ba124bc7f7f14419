"""A real ``torchrun`` as an elastic payload: it shrinks, grows, loses a node, and is resumed."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from payload_runner.protocol import (
    CheckpointRule,
    FileRef,
    PayloadSpec,
    Shape,
    from_fields,
    to_fields,
)
from tests.hand_allocation import OK, Allocation
from tests.support import wait_until

# Importing torch alone takes half a minute on a busy machine; every change of nodes does it again.
CHANGE_S = 240.0
TRAINING = Path(__file__).with_name("torch_elastic_training.py")
SHAPE = Shape(nodes_min=1, nodes_max=2, gpus_per_node=2, start="elastic")

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def torchrun(torch_env: Path) -> Path:
    return torch_env / "bin/torchrun"


class Training:
    """The training in a real allocation of two virtual nodes."""

    def __init__(self, root: Path, torchrun: Path) -> None:
        root.mkdir()
        self.seen, self.finish = root / "seen", root / "finish"
        self.allocation = Allocation(root)
        # The names of virtual nodes mean nothing to the network.
        files = shlex.join([str(TRAINING), str(self.finish), str(self.seen)])
        self.allocation.define(
            f"GLOO_SOCKET_IFNAME=lo exec {shlex.quote(str(torchrun))} {files}",
            shape=SHAPE,
            warn_s=3.0,
            kill_s=15.0,
            environment={"OMP_NUM_THREADS": "1"},
            checkpoint=CheckpointRule(("checkpoint",), interval_s=1.0),
        )

    def order(self, **more: Any) -> None:
        self.allocation.order(1, **more)

    def runs_on(self, *sizes: int) -> None:
        """Wait until it has made progress on these numbers of nodes, one after another."""

        def sees() -> bool:
            assert "1" not in self.allocation.states(), self.allocation.of("attempt_ended")
            seen = self.seen.read_text().split() if self.seen.exists() else []
            return seen == [str(size) for size in sizes]

        wait_until(sees, CHANGE_S)

    def end(self) -> dict[str, Any]:
        """Its end, once it is told."""

        def ended() -> list[dict[str, Any]]:
            told = self.allocation.of("attempt_ended")
            return [item for item in told if item["attempt"].startswith("1.1.")]

        return wait_until(ended, CHANGE_S)[0]


@pytest.fixture
def trainings(tmp_path: Path, torchrun: Path) -> Iterator[tuple[Training, Training]]:
    both = Training(tmp_path / "first", torchrun), Training(tmp_path / "second", torchrun)
    yield both
    for training in both:
        training.allocation.kill_all()


def test_torchrun_shrinks_grows_loses_a_node_and_is_resumed(
    trainings: tuple[Training, Training],
) -> None:
    training, resumed = trainings
    allocation = training.allocation
    # It holds the node until the training has gone on without it.
    enough = training.finish.with_name("enough")
    command = f"until [ -e {enough} ]; do sleep 0.2; done; {OK}"
    small = PayloadSpec("p2", command, shape=Shape(gpus_per_node=2))
    allocation.tell("define", **to_fields(small))
    training.order()
    allocation.start()
    training.runs_on(2)

    allocation.order(2, payload_id="p2", expected_s=5.0)
    training.runs_on(2, 1)
    enough.touch()
    training.runs_on(2, 1, 2)
    assert allocation.states() == {"2": "succeeded"}
    os.kill(allocation.pid_of(1), signal.SIGKILL)
    training.runs_on(2, 1, 2, 1)

    allocation.tell("drain", reason="maintenance", now=True)
    ended = training.end()
    assert (ended["state"], ended["progress"]) == ("preempted", True)
    newest = from_fields(FileRef, allocation.of("checkpoint")[-1]["file"])
    copy = resumed.allocation.spool.committed(newest)
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(allocation.spool.committed(newest), copy)

    resumed.order(checkpoint=to_fields(newest), checkpoint_of="1.1.1.1")
    resumed.allocation.start()
    resumed.runs_on(2, 1, 2, 1, 2)
    resumed.finish.touch()
    ended = resumed.end()
    assert (ended["state"], ended["message"]) == ("succeeded", "2 1 2 1 2")
    assert ended["loss"] < 1e-3
