"""What a process that a launcher has just started needs first.

Imports next to nothing: the tunnel takes it for its whole life, beside an agent, on every node.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from typing import Mapping, Optional, Tuple

_PR_SET_PDEATHSIG = 1
# Where launchers tell a process its number; one agent per node, so the rank is the node. Slurm's
# comes last: a batch script has it too (0), and other launchers pass it on to all they start.
NODE_VARIABLES = (
    "FLUX_TASK_RANK",
    "JSM_NAMESPACE_RANK",
    "PALS_RANKID",
    "OMPI_COMM_WORLD_RANK",
    "PMIX_RANK",
    "PMI_RANK",
    "SLURM_NODEID",
)


def node_from(environ: Mapping[str, str]) -> Optional[int]:
    """The node index that the launcher put into the environment, if it did."""
    for name in NODE_VARIABLES:
        if environ.get(name, "").isdigit():
            return int(environ[name])
    return None


def runner_command(main_file: str, python: str) -> Tuple[str, ...]:
    """The argv that starts this very runner again: its zipapp, or the package.

    ``main_file``: the file of the running ``__main__`` module.
    """
    parent = os.path.dirname(os.path.abspath(main_file))
    while parent != os.path.dirname(parent):
        if os.path.isfile(parent):  # inside a zipapp a "directory" is the archive
            return (python, parent)
        parent = os.path.dirname(parent)
    return (python, "-m", "payload_runner")


def die_with_parent() -> None:
    """For a child just started: SIGTERM for it when the process that started it ends."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
