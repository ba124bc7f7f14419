"""An elastic payload in a real allocation: its nodes come and go while it works."""

from __future__ import annotations

import os
import signal
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from payload_runner.protocol import PayloadSpec, Shape, to_fields
from tests.hand_allocation import OK, Allocation
from tests.support import wait_until

# The first node deals out squares to be added up and takes back what a lost worker was given;
# every node works, for as long as it may. No square is missed or counted twice if the sum is right.
FARM = textwrap.dedent(
    """
    import json, os, pathlib, queue, signal, socket, subprocess, threading, time

    where = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    warned = threading.Event()
    signal.signal(signal.SIGUSR2, lambda *_: warned.set())

    def work():
        while True:
            try:
                with socket.create_connection(where) as to, to.makefile("rw") as talk:
                    for line in talk:
                        time.sleep(0.01)
                        if warned.is_set():
                            return
                        print(int(line) ** 2, file=talk, flush=True)
                    return
            except ConnectionRefusedError:
                time.sleep(0.02)

    def serve(connection):
        with connection, connection.makefile("rw") as talk:
            while not over.is_set():
                number = todo.get()
                try:
                    print(number, file=talk, flush=True)
                    done[number] = int(talk.readline())
                except (OSError, ValueError):
                    todo.put(number)
                    return

    if os.environ["NODE_RANK"] != "0":
        work()
        raise SystemExit(0)

    finish = pathlib.Path(json.load(open("input.json"))["finish"])
    over, todo, done, sizes = threading.Event(), queue.SimpleQueue(), {}, []
    server = socket.create_server(where, backlog=8)
    threading.Thread(
        target=lambda: [
            threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
            for _ in iter(int, 1)
        ],
        daemon=True,
    ).start()
    threading.Thread(target=work, daemon=True).start()
    count = 0
    while not finish.exists() or len(done) < count:
        if not finish.exists() and count < len(done) + 20:
            todo.put(count)
            count += 1
        hosts = subprocess.run(
            os.environ["HARVESTER_HOST_DISCOVERY"], capture_output=True, text=True
        ).stdout.split()
        if not sizes or sizes[-1] != hosts:
            sizes.append(hosts)
            finish.with_name("seen").write_text(" ".join("+".join(names) for names in sizes))
        time.sleep(0.02)
    over.set()
    missing = sum(number ** 2 for number in range(count)) - sum(done.values())
    json.dump({"loss": missing}, open("output.json", "w"))
    """
)
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
    farm, finish, seen, go = (tmp_path / name for name in ("farm.py", "finish", "seen", "go"))
    farm.write_text(FARM)
    allocation.define(f"python3 -S {farm}", shape=ELASTIC, warn_s=2.0, kill_s=2.0)
    rigid = f"until [ -e {go} ]; do sleep 0.1; done; {OK}"
    allocation.tell("define", **to_fields(PayloadSpec("p2", rigid, shape=Shape(gpus_per_node=2))))
    allocation.order(1, parameters={"finish": str(finish)})
    leader = allocation.start()
    both, alone = "vnode1:1+vnode2:1", "vnode1:1"

    def sees(*sizes: str) -> None:
        # At its end: on a busy machine it may begin before the second node has joined.
        last = slice(-len(sizes), None)
        wait_until(lambda: seen.exists() and seen.read_text().split()[last] == list(sizes))

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
