"""A payload of several processes on two nodes: its ranks meet, and each has its time to leave."""

from __future__ import annotations

import socket
import textwrap
from pathlib import Path

from payload_runner.placement import Slot
from payload_runner.protocol import CheckpointRule, Shape
from tests.hand_allocation import Allocation
from tests.node_agent import AgentProcess
from tests.support import wait_until

# Rank 0 collects a word from every other rank; its loss is their number.
MEET = textwrap.dedent(
    """
    import json, os, socket, time
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    where = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    if rank == 0:
        with socket.create_server(where) as server:
            came = set()
            while len(came) < size - 1:
                with server.accept()[0] as other:
                    came.add(other.recv(100).decode())
        json.dump({"loss": len(came), "message": " ".join(sorted(came))}, open("output.json", "w"))
    else:
        while True:
            try:
                with socket.create_connection(where) as to:
                    names = ("RANK", "LOCAL_RANK", "NODE_RANK")
                    to.sendall("/".join(os.environ[name] for name in names).encode())
                break
            except ConnectionRefusedError:
                time.sleep(0.02)
    """
)
SHAPE = Shape(nodes_min=2, nodes_max=2, ranks_per_node=2, start="processes")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def slot(node: int, port: int) -> Slot:
    hosts = ("vnode1", "vnode2")
    return Slot(node, ranks=2, first_rank=2 * node, world_size=4, hosts=hosts, master_port=port)


def test_ranks_of_two_nodes_meet(tmp_path: Path) -> None:
    port = free_port()
    with AgentProcess(tmp_path / "a") as first, AgentProcess(tmp_path / "b") as second:
        for node, agent in enumerate((first, second)):
            item = agent.add_input("meet.py", MEET.encode())
            agent.start("python3 -S meet.py", slot=slot(node, port), shape=SHAPE, files=(item,))
        ended = first.outcome("1.1.1.1")
        assert (ended.state, ended.loss, ended.message) == ("succeeded", 3.0, "1/1/0 2/0/1 3/1/1")
        assert second.outcome("1.1.1.1").loss is None


# At the warning rank 1 leaves at once, while rank 0 takes its time to save.
LEAVE = textwrap.dedent(
    """
    import os, pathlib, signal, sys, time
    def warned(*_):
        if os.environ["RANK"] != "0":
            sys.exit(3)
        time.sleep(1.5)
        pathlib.Path("saved").write_text("the last state")
        sys.exit(4)
    signal.signal(signal.SIGUSR2, warned)
    pathlib.Path("at-work").touch()
    while True:
        time.sleep(0.1)
    """
)


def test_first_rank_saves_in_peace_although_another_leaves_at_the_warning(tmp_path: Path) -> None:
    allocation = Allocation(tmp_path)
    try:
        (tmp_path / "leave.py").write_text(LEAVE)
        allocation.define(
            f"exec python3 -S {tmp_path / 'leave.py'}",
            shape=Shape(nodes_min=2, nodes_max=2, start="processes"),
            checkpoint=CheckpointRule(("saved",)),
            warn_s=60.0,
            kill_s=5.0,
        )
        allocation.order(1)
        leader = allocation.start()
        work = allocation.spool.work
        wait_until(lambda: len(list(work.glob("*/1.1.1.1/at-work"))) == 2, 60.0)
        allocation.tell("drain", reason="maintenance", now=True)
        assert leader.wait(90) == 0
        (ended,) = allocation.of("attempt_ended")
        assert (ended["state"], ended.get("progress")) == ("preempted", True)
    finally:
        allocation.kill_all()
