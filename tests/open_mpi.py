"""The Open MPI of the distribution, where one is installed beside the MPICH of our packages."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path

# mpi4py takes the MPI that it is told to; root may start ranks only where it says so; ranks that
# outnumber the cores are to give way to one another.
OPEN_MPI = {
    "MPI4PY_MPIABI": "openmpi",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_mpi_yield_when_idle": "1",
}


@functools.cache
def open_mpi() -> Path | None:
    """Its mpirun; None where there is none."""
    found = shutil.which("mpirun")
    if found is None:
        return None
    told = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
    return Path(found) if "Open MPI" in told.stdout else None
