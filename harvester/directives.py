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


# Short options without a value: others may stand right behind them, as in -Hp.
_SBATCH_FLAGS, _QSUB_FLAGS, _FLUX_FLAGS = "bhHIOQsuvVW", "fGhIVXz", "x"


def _option(*names: str) -> str:
    """A pattern of these options; of short ones a number may follow without a blank."""
    ends = (r"(?=[=\s]|$)" if name.startswith("--") else r"(?=[=\s\d]|$)" for name in names)
    found = "|".join(name + end for name, end in zip(names, ends, strict=True))
    return rf"(?:^|\s)(?:{found})"


def _getopt(flags: str, *names: str) -> str:
    """The same where getopt reads them: any value without a blank, bundles, abbreviations."""
    found = "|".join(_getopt_forms(flags, name) for name in names)
    return rf"(?:^|\s)(?:{found})"


def _getopt_forms(flags: str, name: str) -> str:
    if not name.startswith("--"):
        return f"-[{flags}]*{name[1:]}"
    abbreviations = (name[:length] for length in range(len("--x"), len(name) + 1))
    return rf"(?:{'|'.join(abbreviations)})(?=[=\s]|$)"


_OURS: Mapping[str, Mapping[str, str]] = {
    "slurm": {
        _getopt(_SBATCH_FLAGS, "-J", "--job-name"): _NAME,
        _getopt(_SBATCH_FLAGS, "-t", "--time"): _WALLTIME,
        _getopt(_SBATCH_FLAGS, "-N", "--nodes"): _NODES,
        _getopt(_SBATCH_FLAGS, "-p", "--partition"): _QUEUE,
        _getopt(_SBATCH_FLAGS, "-q", "--qos"): _QOS,
        _getopt(_SBATCH_FLAGS, "-a", "--array"): _ARRAY,
        _getopt(_SBATCH_FLAGS, "-o", "--output"): _OUTPUT,
    },
    "pbs": {
        _getopt(_QSUB_FLAGS, "-N"): _NAME,
        r"\bwalltime=": _WALLTIME,
        r"\b(?:select|nodes|nodect)=(?!.*\{nodes\})": f"{_NODES}; write {{nodes}} for the number",
        _getopt(_QSUB_FLAGS, "-q"): _QUEUE,
        _getopt(_QSUB_FLAGS, "-J"): _ARRAY,
        _getopt(_QSUB_FLAGS, "-o"): _OUTPUT,
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
        _getopt(_FLUX_FLAGS, "--job-name"): _NAME,
        _getopt(_FLUX_FLAGS, "-t", "--time-limit"): _WALLTIME,
        _getopt(_FLUX_FLAGS, "-N", "--nodes"): _NODES,
        _getopt(_FLUX_FLAGS, "-q", "--queue"): _QUEUE,
        _getopt(_FLUX_FLAGS, "--output"): _OUTPUT,
    },
}


def refusal(batch_system: object, line: str, queue_kinds: frozenset[str]) -> str | None:
    """Why a site's directive cannot be; None where it can.

    ``queue_kinds``: what the names of the queues are that it concerns. Beside a partition Slurm
    wants a QOS said at some centres, and the other way round.
    """
    if batch_system == "local":
        return "expected none: the local batch system has no directives"
    # Batch systems take quotes and backslashes off, so that '"-p" debug' is -p.
    unquoted = re.sub(r"[\"'\\]", "", line)
    for pattern, what in _OURS.get(str(batch_system), {}).items():
        if (what is _QUEUE and queue_kinds == {"qos"}) or (
            what is _QOS and "qos" not in queue_kinds
        ):
            continue
        if re.search(pattern, unquoted):
            return f"{line!r} sets the {what} of jobs, which is for the harvester to say"
    return None
