"""The environment of a payload in a container, and of the runtime that starts it. Pure.

A container gets what the harvester, the site file and the task say, what the image says, and of the
host's own variables only those that mean the same inside. Everything else (module systems, shells,
Conda, agents, host paths) stays out.
"""

from __future__ import annotations

import re
from typing import Collection, Dict, FrozenSet, Iterable, Mapping

from payload_runner.protocol import CONTAINER_WORKDIR

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Of the host's variables: who and where the job is, locale, and settings of libraries.
_SAME_INSIDE = re.compile(
    r"USER|LOGNAME|LANG|LC_\w+|TZ|TERM"
    r"|(SLURM|PBS|LSB|LSF|FLUX|SGE|JOB|NCCL|RCCL|UCX|FI|OMP|KMP|GOMP|MKL|OPENBLAS|NUMEXPR"
    r"|CUDA|NVIDIA|HSA|HIP|ROCR|ROCM|ZE|ZES|SYCL|MPICH|MPIR_CVAR|OMPI_MCA|TORCH|PYTORCH|TF|XLA"
    r"|JAX|HF|WANDB)_\w+"
    r"|CUDA_VISIBLE_DEVICES|(https?|no|all)_proxy|(HTTPS?|NO|ALL)_PROXY"
)
_PROXY = re.compile(r"\w+_proxy", re.IGNORECASE)
# They name places of the host, which the container does not have.
_HOST_PLACES = ("CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "ROCM_PATH", "HIP_PATH", "MPICH_DIR")
# Nothing of the host's programs may end up in the image's.
_HOST_ONLY = frozenset(
    ("HOME", "LD_LIBRARY_PATH", "LD_PRELOAD", "PATH", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV")
)
_APPTAINER = r"PATH|(APPTAINER|SINGULARITY)_(?!DOCKER_)\w+"
_PODMAN = r"PATH|HOME|XDG_\w+|CONTAINERS_\w+|PODMANHPC_\w+|REGISTRY_AUTH_FILE|TMPDIR"
# What a runtime reads itself. Podman hands none of it on; the others do.
_OF_RUNTIME = {
    "apptainer": re.compile(_APPTAINER),
    "podman": re.compile(_PODMAN),
    "podman-hpc": re.compile(_PODMAN),
    "shifter": re.compile(r"PATH|HOME|SHIFTER_\w+"),
    "singularity": re.compile(_APPTAINER),
}
# Ranks of a node that copy from one another's memory (process_vm_readv) must know their process
# ids, which containers hide. MPICH, Cray MPICH, Open MPI 4 and 5, libfabric; UCX sees it by itself.
NO_SINGLE_COPY = {
    "MPIR_CVAR_CH4_CMA_ENABLE": "0",
    "MPICH_SMP_SINGLE_COPY_MODE": "NONE",
    "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
    "OMPI_MCA_smsc": "^cma",
    "FI_SHM_DISABLE_CMA": "1",
}
_WITHOUT_IMAGE_ENVIRONMENT = ("bwrap", "charliecloud")


def inside(
    variables: Mapping[str, str], given: Collection[str], image: Mapping[str, str]
) -> Dict[str, str]:
    """What the payload is to see.

    ``variables``: those of a payload without a container; ``given``: the names that harvester or
    task have set on purpose; ``image``: what the image itself says, where that is for us to apply.
    """
    kept = {"HOME": CONTAINER_WORKDIR, **image}
    for name, value in variables.items():
        if name in given or _is_same_inside(name, value):
            kept[name] = value
    kept["HARVESTER_WORKDIR"] = CONTAINER_WORKDIR
    return kept


def meant_inside(site: Iterable[str]) -> FrozenSet[str]:
    """Which variables of a site file count in containers: not those for the host's programs."""
    return frozenset(site) - _HOST_ONLY


def of_runtime(runtime: str, seen: Mapping[str, str], outer: Mapping[str, str]) -> Dict[str, str]:
    """The environment in which to start a runtime for a payload that is to see ``seen``."""
    own = _OF_RUNTIME.get(runtime)
    if own is None:
        return {"PATH": DEFAULT_PATH, **seen}
    return {**seen, **{name: value for name, value in outer.items() if own.fullmatch(name)}}


def applies_image_environment(runtime: str) -> bool:
    """Whether a runtime leaves the image's own variables to us."""
    return runtime in _WITHOUT_IMAGE_ENVIRONMENT


def parse_image_environment(text: str) -> Dict[str, str]:
    """The lines ``NAME=value`` of ``ch/environment`` in an unpacked image (Charliecloud's place).

    What is no such line is left out.
    """
    found = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and _NAME.fullmatch(name) and not name.startswith("LD_"):
            found[name] = value
    return found


def _is_same_inside(name: str, value: str) -> bool:
    if name in _HOST_PLACES or not _SAME_INSIDE.fullmatch(name):
        return False
    return not (_PROXY.fullmatch(name) and "@" in value)  # a password may stand before the host
