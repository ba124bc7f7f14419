"""How MPI payloads are launched where a site file does not say: by the family of its launcher.

Every call runs beside the one that holds the agents, on whole nodes: agents pin the ranks that
they seat. Where the centre's default does not fit the MPI of the payloads (``srun --mpi=...``), or
mpirun is not Open MPI's, ``runner.mpi_launcher`` says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

PLACEHOLDERS = (
    "{nodes}",
    "{ranks}",
    "{ranks_per_node}",
    "{hosts}",
    "{host_slots}",
    "{cores}",
    "{gpus}",
    "{erf}",
)

_USUAL: Mapping[str, str] = {
    # --exact would confine the ranks to cores that Slurm chooses, and not those of their GPUs.
    "srun": "--overlap --nodes={nodes} --nodelist={hosts} --ntasks={ranks} "
    "--ntasks-per-node={ranks_per_node} --cpu-bind=none --kill-on-bad-exit=1",
    # MPICH's and PALS's; without --cpu-bind, which only PALS knows.
    "mpiexec": "-n {ranks} -ppn {ranks_per_node} -hosts {hosts}",
    # Open MPI's. In Slurm's eyes our jobs have a task per node, which it takes for its limit.
    "mpirun": "-n {ranks} --host {host_slots} "
    "--map-by ppr:{ranks_per_node}:node:OVERSUBSCRIBE --bind-to none",
    "jsrun": "--erf_input {erf} -b none",
}
# All virtual nodes are this machine.
_LOCAL = ("mpiexec", "-n", "{ranks}")


def usual_mpi_launcher(batch_system: str, launcher: Sequence[str]) -> tuple[str, ...]:
    """What launches MPI payloads beside agents of this launcher; () where none is known to."""
    if batch_system == "local":
        return _LOCAL
    words = _USUAL.get(PurePosixPath(launcher[0]).name) if launcher else None
    return () if words is None else (launcher[0], *words.split())
