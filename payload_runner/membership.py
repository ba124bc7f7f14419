"""What an elastic payload finds on each of its nodes: who takes part, as files and variables.

The host file is replaced whenever nodes join or leave. Beside it lies a script that prints it in
the form of Horovod's host discovery: a line ``host:slots`` for each node. ``torchrun`` without
options finds its own in ``PET_*`` variables.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Dict, Tuple

from payload_runner.placement import Slot
from payload_runner.protocol import Shape

HOST_FILE = ".harvester-hosts"
DISCOVERY_FILE = ".harvester-discover-hosts.sh"
_DISCOVERY = """#!/bin/sh
# Prints the hosts that take part now, one a line, each with its number of slots.
while read -r host; do echo "$host:{slots}"; done < "$(dirname "$0")/{hosts}"
"""
# Every change of nodes restarts all workers; torchrun counts some of them as failures.
_RESTARTS = 1000


def write_files(workdir: Path, slot: Slot) -> None:
    """The host file and the script beside it. Raises OSError."""
    write_hosts(workdir, slot.hosts)
    script = workdir / DISCOVERY_FILE
    script.write_text(_DISCOVERY.format(slots=slot.ranks, hosts=HOST_FILE), encoding="utf-8")
    script.chmod(0o700)


def write_hosts(workdir: Path, hosts: Tuple[str, ...]) -> None:
    """Replace the host file; readers see the old or the new one. Raises OSError."""
    beside = workdir / f"{HOST_FILE}.new"
    beside.unlink(missing_ok=True)  # the payload may have put a link there
    beside.write_text("".join(f"{host}\n" for host in hosts), encoding="utf-8")
    os.replace(beside, workdir / HOST_FILE)


def variables(slot: Slot, shape: Shape, attempt: str, workdir: str, address: str) -> Dict[str, str]:
    """The variables of the command on one node.

    ``workdir``: as the payload sees it; ``address``: where others reach its first node.
    """
    first = slot.first_rank == 0
    return {
        "HARVESTER_NODES_MIN": str(shape.nodes_min),
        "HARVESTER_NODES_MAX": str(shape.nodes_max),
        "HARVESTER_HOSTFILE": f"{workdir}/{HOST_FILE}",
        "HARVESTER_HOST_DISCOVERY": f"{workdir}/{DISCOVERY_FILE}",
        "MASTER_ADDR": address,
        "MASTER_PORT": str(slot.master_port),
        "NODE_RANK": str(slot.first_rank // max(1, slot.ranks)),
        "LOCAL_WORLD_SIZE": str(slot.ranks),
        "PET_NNODES": f"{shape.nodes_min}:{shape.nodes_max}",
        "PET_NPROC_PER_NODE": str(slot.ranks),
        "PET_MAX_RESTARTS": str(_RESTARTS),
        "PET_RDZV_BACKEND": "c10d",
        "PET_RDZV_ENDPOINT": f"{address}:{slot.master_port}",
        "PET_RDZV_ID": attempt,
        "PET_RDZV_CONF": f"is_host={int(first)},last_call_timeout=2",
        # With a shared store those that join later wait for an address that nobody publishes
        # (torch 2.13, dynamic_rendezvous: the bootstrap information stays that of the first round).
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
