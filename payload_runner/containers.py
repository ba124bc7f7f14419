"""Command lines that run a payload in a container, one builder per runtime. Pure.

The image is read-only, the working directory is bound to ``/srv/workDir``, the network is the
node's. Secrets, logs and the rest of the spool are not bound, so a payload cannot reach them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Callable, Dict, Mapping, Optional, Tuple

from payload_runner.protocol import CONTAINER_WORKDIR

# What the host's programs need would break the image's.
_HOST_ONLY = ("LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
_BY_NAME = ("podman", "podman-hpc", "shifter")  # keep their images themselves
_NVIDIA_DEVICES = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")
_MAX_GPUS = 16


class BadContainer(ValueError):
    """A container that cannot be run here; the text says what to do."""


@dataclass(frozen=True)
class ContainerRun:
    """One payload in one container. ``image`` is resolved; ``gpu_variable`` None: no GPUs."""

    image: str
    workdir: str
    command: str
    options: Tuple[str, ...] = ()
    gpu_variable: Optional[str] = None
    variables: Tuple[str, ...] = ()  # names to hand in, where a runtime does not do so by itself

    @property
    def shell(self) -> Tuple[str, ...]:
        return ("/bin/sh", "-c", f'PATH="$PATH:."; export PATH\n{self.command}')


def container_argv(runtime: str, run: ContainerRun) -> Tuple[str, ...]:
    """The command line of a runtime.

    Raises:
        BadContainer: an unknown runtime, or "none".
    """
    builder = _BUILDERS.get(runtime)
    if builder is None:
        known = ", ".join(sorted(_BUILDERS))
        raise BadContainer(
            f"container_runtime is {runtime!r}, the payload needs a container; one of {known}"
        )
    return builder(run)


def resolve_image(
    image: str, runtime: str, image_dir: Optional[str], exists: Callable[[str], bool]
) -> str:
    """The image as the runtime is to be told: a name, or where it lies unpacked or as a SIF.

    ``docker://name`` and plain names lie in the site's image directory, with every character
    but letters, digits and ``._-`` written as ``_``.

    Raises:
        BadContainer: it is not there.
    """
    name = re.sub(r"^[a-z]+://", "", image)
    if runtime in _BY_NAME:
        return name
    if image.startswith("/"):
        if exists(image):
            return image
        raise BadContainer(f"container image {image} does not exist on the node")
    if image_dir is None:
        raise BadContainer(f"container image {image}: the site names no image_dir to look in")
    base = f"{image_dir}/{re.sub(r'[^A-Za-z0-9._-]', '_', name)}"
    for candidate in (base, f"{base}.sif"):
        if exists(candidate):
            return candidate
    raise BadContainer(
        f"container image {image}: neither {base} nor {base}.sif exists; put it there"
    )


def container_environment(environment: Mapping[str, str]) -> Dict[str, str]:
    """A payload's environment as it holds inside the container."""
    kept = {name: value for name, value in environment.items() if name not in _HOST_ONLY}
    kept["HARVESTER_WORKDIR"] = CONTAINER_WORKDIR
    return kept


def _bwrap(run: ContainerRun) -> Tuple[str, ...]:
    return (
        "bwrap",
        *("--unshare-pid", "--unshare-ipc", "--unshare-uts", "--die-with-parent"),
        *("--ro-bind", run.image, "/"),
        *("--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"),
        *_bwrap_gpus(run.gpu_variable),
        *("--bind", run.workdir, CONTAINER_WORKDIR, "--chdir", CONTAINER_WORKDIR),
        *run.options,
        "--",
        *run.shell,
    )


def _bwrap_gpus(variable: Optional[str]) -> Tuple[str, ...]:
    devices: Tuple[str, ...] = ()
    if variable == "CUDA_VISIBLE_DEVICES":
        numbered = tuple(f"nvidia{number}" for number in range(_MAX_GPUS))
        devices = tuple(f"/dev/{name}" for name in _NVIDIA_DEVICES + numbered)
    elif variable is not None:
        devices = ("/dev/kfd", "/dev/dri")
    return tuple(word for path in devices for word in ("--dev-bind-try", path, path))


def _charliecloud(run: ContainerRun) -> Tuple[str, ...]:
    return (
        "ch-run",
        *("--bind", f"{run.workdir}:{CONTAINER_WORKDIR}", "--cd", CONTAINER_WORKDIR),
        *run.options,
        run.image,
        "--",
        *run.shell,
    )


def _apptainer(program: str) -> Callable[[ContainerRun], Tuple[str, ...]]:
    flags = {"CUDA_VISIBLE_DEVICES": ("--nv",), "ROCR_VISIBLE_DEVICES": ("--rocm",)}

    def build(run: ContainerRun) -> Tuple[str, ...]:
        return (
            *(program, "exec", "--contain", "--no-home"),
            *flags.get(run.gpu_variable or "", ()),
            *("--bind", f"{run.workdir}:{CONTAINER_WORKDIR}", "--pwd", CONTAINER_WORKDIR),
            *run.options,
            run.image,
            *run.shell,
        )

    return build


def _shifter(run: ContainerRun) -> Tuple[str, ...]:
    gpu = ("--module=gpu",) if run.gpu_variable == "CUDA_VISIBLE_DEVICES" else ()
    return (
        *("shifter", f"--image={run.image}", *gpu),
        *(f"--volume={run.workdir}:{CONTAINER_WORKDIR}", f"--workdir={CONTAINER_WORKDIR}"),
        *run.options,
        "--",
        *run.shell,
    )


def _podman(run: ContainerRun) -> Tuple[str, ...]:
    devices = {
        "CUDA_VISIBLE_DEVICES": ("--device", "nvidia.com/gpu=all"),
        "ROCR_VISIBLE_DEVICES": ("--device", "/dev/kfd", "--device", "/dev/dri"),
        "ZE_AFFINITY_MASK": ("--device", "/dev/dri"),
    }
    return _podman_run("podman", devices.get(run.gpu_variable or "", ()), run)


def _podman_hpc(run: ContainerRun) -> Tuple[str, ...]:
    return _podman_run("podman-hpc", ("--gpu",) if run.gpu_variable else (), run)


def _podman_run(program: str, gpus: Tuple[str, ...], run: ContainerRun) -> Tuple[str, ...]:
    # Names only: values come from our own environment, never from a command line.
    variables = tuple(word for name in run.variables for word in ("--env", name))
    return (
        *(program, "run", "--rm", "--read-only", "--network", "host", "--pull", "never"),
        *gpus,
        *variables,
        *("--volume", f"{run.workdir}:{CONTAINER_WORKDIR}:rw", "--workdir", CONTAINER_WORKDIR),
        *run.options,
        run.image,
        *run.shell,
    )


_BUILDERS: Mapping[str, Callable[[ContainerRun], Tuple[str, ...]]] = {
    "apptainer": _apptainer("apptainer"),
    "bwrap": _bwrap,
    "charliecloud": _charliecloud,
    "podman": _podman,
    "podman-hpc": _podman_hpc,
    "shifter": _shifter,
    "singularity": _apptainer("singularity"),
}
