"""The environment variables that a payload gets. Pure."""

from __future__ import annotations

import re
from typing import Dict, Mapping, Optional

from payload_runner.placement import Slot
from payload_runner.protocol import Order

_SECRET = re.compile(
    r"TOKEN(?!IZER)|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_KEY|PRIVATE_KEY"
    r"|X509_USER|SLURM_JWT|SSH_AUTH_SOCK|SSH_AGENT",
    re.IGNORECASE,
)
# The agent is itself a rank of a launcher; a payload that starts MPI must not join that job.
_OUTER_RANK = re.compile(
    r"(PMI|PMIX|OMPI|PRTE|PALS|MPI_LOCAL|HYDRA|HYDI|MV2_COMM|JSM|FLUX_TASK)_?"
    r"|SLURM_(STEP|STEPID|PROCID|LOCALID|NODEID|NTASKS|NPROCS|GTIDS|SRUN|LAUNCH|TASK|CPU_BIND|UMASK)"
)
# How names begin by which launchers speak to the processes of one call: MPI's way to its process
# manager and network. "PMI" is PMIX as well.
OF_LAUNCHER = (
    *("PMI", "OMPI", "PRTE", "PALS", "MPI_LOCAL", "HYDRA", "HYDI", "MV2_COMM", "JSM"),
    *("SLURM_", "SLINGSHOT_", "FLUX_"),
)
# What a call that the leader itself is part of would pass on to another one. Tunables
# (OMPI_MCA_*, PMIX_MCA_*) stay, as sites set them for all.
_OUTER_CALL = re.compile(
    r"PMI_|PALS_|MPI_LOCAL|HYDI_|HYDRA_CONTROL|MV2_COMM|JSM_|FLUX_TASK|PMIX_(?!MCA_)"
    r"|OMPI_(COMM_WORLD|UNIVERSE|APP|FILE|NUM|FIRST|MCA_(ess|orte|prte|pmix|initial)_)"
    r"|PRTE_(?!MCA_|ALLOW_)|SRUN_"
    r"|SLURM_(STEP|STEPID|PROCID|LOCALID|NODEID|NTASKS|NPROCS|GTIDS|SRUN|LAUNCH|TASK_|CPU_BIND"
    r"|CPUS_PER_TASK|GPUS_PER_TASK|TRES_PER_TASK|MEM_PER|DISTRIBUTION|UMASK|EXACT|OVERLAP)"
)
_OURS = "HARVESTER_"
_GPU_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
    "ZE_AFFINITY_MASK",
)
_THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+")


class BadSegment(ValueError):
    """A segment name that must not reach a command line."""


def inherited(
    outer: Mapping[str, str], site: Mapping[str, str], payload: Mapping[str, str]
) -> Dict[str, str]:
    """What all payloads of a task share: the agent's environment without secrets and ranks.

    ``site`` and ``payload`` are the plan's and the task's own variables; later ones win.
    """
    kept = {
        name: value
        for name, value in outer.items()
        if not (
            name.startswith(_OURS)
            or name in _GPU_VARIABLES
            or _SECRET.search(name)
            or _OUTER_RANK.match(name)
        )
    }
    path = outer.get("PATH", "/usr/local/bin:/usr/bin:/bin")
    kept.update(site)
    kept.update(payload)
    kept["PATH"] = kept.get("PATH", path) + ":."
    return kept


def of_attempt(
    shared: Mapping[str, str],
    order: Order,
    *,
    workdir: str,
    deadline: float,
    threads: int,
    gpus: Mapping[str, str],
) -> Dict[str, str]:
    """The variables of one attempt: the ``shared`` ones and its own.

    ``deadline``: epoch seconds; ``threads`` 0, or numbers of threads given already: not for us
    to say.
    """
    added = {
        **shared,
        "HARVESTER_ATTEMPT": order.attempt,
        "HARVESTER_POINT": order.point,
        "HARVESTER_DEADLINE": f"{deadline:.0f}",
        "HARVESTER_WORKDIR": workdir,
        **gpus,
    }
    if threads and not any(name in shared for name in _THREADS):
        added.update(dict.fromkeys(_THREADS, str(threads)))
    if order.segment is not None:
        added["SEGMENT_NAME"] = order.segment
    return added


def for_launcher(outer: Mapping[str, str]) -> Dict[str, str]:
    """The environment of a launcher call: ours without the traces of one that we are part of."""
    return {name: value for name, value in outer.items() if not _OUTER_CALL.match(name)}


def of_launcher(environ: Mapping[str, str]) -> Dict[str, str]:
    """What a launcher told one of its processes, and MPI in it has to know."""
    return {
        name: value
        for name, value in environ.items()
        if name.startswith(OF_LAUNCHER) and not _SECRET.search(name)
    }


def of_rank(slot: Slot, local_rank: int, hostfile: str, meeting_host: str) -> Dict[str, str]:
    """The rendezvous variables of one process of a payload of several."""
    return {
        "MASTER_ADDR": meeting_host,
        "MASTER_PORT": str(slot.master_port),
        "WORLD_SIZE": str(slot.world_size),
        "RANK": str(slot.first_rank + local_rank),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(slot.ranks),
        "NODE_RANK": str(slot.first_rank // max(1, slot.ranks)),
        "HARVESTER_HOSTFILE": hostfile,
    }


def fill_command(command: str, segment: Optional[str]) -> str:
    """The command with ``%SEGMENT_NAME`` replaced.

    Raises:
        BadSegment: a name with other characters than letters, digits and ``._-``.
    """
    if segment is not None and not _SEGMENT.fullmatch(segment):
        raise BadSegment(f"segment name {segment!r:.80}: only letters, digits and ._- are allowed")
    return command.replace("%SEGMENT_NAME", segment or "")
