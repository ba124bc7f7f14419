"""An elastic payload in a real allocation: its nodes come and go while it works."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from payload_runner.protocol import PayloadSpec, Shape, to_fields
from tests.elastic_farm import farm
from tests.hand_allocation import OK, Allocation
from tests.support import wait_until

ELASTIC = Shape(nodes_min=1, nodes_max=2, gpus_per_node=2, start="elastic")


@pytest.fixture
def allocation(tmp_path: Path) -> Iterator[Allocation]:
    made = Allocation(tmp_path)
    yield made
    made.kill_all()


def resized(allocation: Allocation) -> list[str]:
    return ["+".join(fields["nodes"]) for fields in allocation.of("attempt_resized")]


def test_an_elastic_payload_shrinks_grows_survives_a_lost_node_and_misses_nothing(
    allocation: Allocation, tmp_path: Path
) -> None:
    program, finish, seen, go = (tmp_path / name for name in ("farm.py", "finish", "seen", "go"))
    program.write_text(farm(finish))
    allocation.define(f"python3 -S {program}", shape=ELASTIC, warn_s=2.0, kill_s=2.0)
    rigid = f"until [ -e {go} ]; do sleep 0.1; done; {OK}"
    allocation.tell("define", **to_fields(PayloadSpec("p2", rigid, shape=Shape(gpus_per_node=2))))
    allocation.order(1)
    leader = allocation.start()
    both, alone = "vnode1:1+vnode2:1", "vnode1:1"

    def sees(*sizes: str) -> None:
        # At its end: on a busy machine it may begin before the second node has joined.
        last = slice(-len(sizes), None)
        wait_until(lambda: seen.exists() and seen.read_text().split()[last] == list(sizes), 120.0)

    sees(both)
    allocation.order(2, payload_id="p2", expected_s=1.0)
    sees(both, alone)
    go.touch()
    sees(both, alone, both)
    assert allocation.states() == {"2": "succeeded"}
    os.kill(allocation.pid_of(1), signal.SIGKILL)
    sees(both, alone, both, alone)
    assert resized(allocation)[-3:] == ["vnode1", "vnode1+vnode2", "vnode1"]

    allocation.tell("close")
    finish.touch()
    assert leader.wait(60) == 0
    (ended,) = [item for item in allocation.of("attempt_ended") if item["attempt"] == "1.1.1.1"]
    assert (ended["state"], ended["loss"]) == ("succeeded", 0.0)


def test_an_elastic_payload_that_fails_on_its_first_node_fails(allocation: Allocation) -> None:
    command = 'test "$NODE_RANK" != 0 || exit 3; sleep 60'
    allocation.define(command, shape=ELASTIC)
    allocation.order(1)
    allocation.tell("close")
    assert allocation.start().wait(60) == 0
    (ended,) = allocation.of("attempt_ended")
    assert (ended["state"], ended["blame"], ended["exit_code"]) == ("failed", "point", 3)
