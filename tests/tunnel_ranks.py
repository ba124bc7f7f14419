"""One rank of a tunnel whose agents' ends are in a test: ``tunnel_ranks.py DIRECTORY LEADER``.

Each rank but 0 writes the port that agents connect to into ``DIRECTORY/rank<rank>``; all leave
once ``DIRECTORY/over`` exists, and say so in ``DIRECTORY/left<rank>``.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from mpi4py import MPI

from payload_runner.tunnel import Tunnel


def main() -> None:
    directory, leader = Path(sys.argv[1]), sys.argv[2]
    listener = socket.create_server(("127.0.0.1", 0))
    place = directory / f"rank{MPI.COMM_WORLD.rank}"
    fresh = place.with_suffix(".new")
    fresh.write_text(str(listener.getsockname()[1]))
    fresh.replace(place)
    Tunnel(MPI.COMM_WORLD, listener, leader, (directory / "over").exists).run()
    (directory / f"left{MPI.COMM_WORLD.rank}").touch()


if __name__ == "__main__":
    main()
