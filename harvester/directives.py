"""What a site's own directives must leave to the harvester, batch system by batch system. Pure.

Directives come last in a batch script, so that theirs would win: a job under another name is never
found again, and walltime, nodes and queue would pass every budget and policy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_NAME, _ARRAY, _OUTPUT = "name", "tasks in an array", "output file"
_WALLTIME = "walltime (queues[].bins, planning.walltime_max)"
_NODES = "nodes (queues[].bins, planning.nodes_max)"
_QUEUE, _QOS = "queue (queues[].name)", "QOS (queues[].name)"


def _option(*names: str) -> str:
    """A pattern of these options; of short ones the value may follow without a blank."""
    ends = (r"(?=[=\s]|$)" if name.startswith("--") else r"(?=[=\s\d]|$)" for name in names)
    found = "|".join(name + end for name, end in zip(names, ends, strict=True))
    return rf"(?:^|\s)(?:{found})"


_OURS: Mapping[str, Mapping[str, str]] = {
    "slurm": {
        _option("-J", "--job-name"): _NAME,
        _option("-t", "--time"): _WALLTIME,
        _option("-N", "--nodes"): _NODES,
        _option("-p", "--partition"): _QUEUE,
        _option("-q", "--qos"): _QOS,
        _option("-a", "--array"): _ARRAY,
        _option("-o", "--output"): _OUTPUT,
    },
    "pbs": {
        _option("-N"): _NAME,
        r"\bwalltime=": _WALLTIME,
        r"\b(?:select|nodes|nodect)=(?!.*\{nodes\})": f"{_NODES}; write {{nodes}} for the number",
        _option("-q"): _QUEUE,
        _option("-J"): _ARRAY,
        _option("-o"): _OUTPUT,
    },
    "gridengine": {
        _option("-N"): _NAME,
        r"\bh_rt=": _WALLTIME,
        r"(?:^|\s)-pe\s+(?!.*\{(?:slots|nodes)\})": f"{_NODES}; write {{slots}} for the number",
        _option("-q"): _QUEUE,
        _option("-t"): _ARRAY,
        _option("-o"): _OUTPUT,
    },
    "lsf": {
        _option("-J"): _NAME,
        _option("-W"): _WALLTIME,
        _option("-n", "-nnodes"): _NODES,
        _option("-q"): _QUEUE,
        _option("-o", "-oo"): _OUTPUT,
    },
    "flux": {
        _option("--job-name"): _NAME,
        _option("-t", "--time-limit"): _WALLTIME,
        _option("-N", "--nodes"): _NODES,
        _option("-q", "--queue"): _QUEUE,
        _option("--output"): _OUTPUT,
    },
}


def refusal(batch_system: object, line: str, queue_kinds: frozenset[str]) -> str | None:
    """Why a site's directive cannot be; None where it can.

    ``queue_kinds``: what the names of the queues are that it concerns. Beside a partition Slurm
    wants a QOS said at some centres, and the other way round.
    """
    if batch_system == "local":
        return "expected none: the local batch system has no directives"
    for pattern, what in _OURS.get(str(batch_system), {}).items():
        if (what is _QUEUE and queue_kinds == {"qos"}) or (
            what is _QOS and "qos" not in queue_kinds
        ):
            continue
        if re.search(pattern, line):
            return f"{line!r} sets the {what} of jobs, which is for the harvester to say"
    return None
