"""An elastic payload for tests: a task farm of Python's standard library alone."""

from __future__ import annotations

import textwrap
from pathlib import Path

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

    finish = pathlib.Path("@finish@")
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


def farm(finish: Path) -> str:
    """The program. It works until ``finish`` is there; ``seen`` beside it tells its sizes.

    Each size is a word ``host:slots+host:slots`` as the host discovery said it.
    """
    return FARM.replace("@finish@", str(finish))
