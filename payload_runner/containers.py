"""Command lines that run a payload in a container, one builder per runtime. Pure.

The image is read-only, the working directory is bound to ``/srv/workDir``, the network is the
node's. Secrets, logs and the rest of the spool are not bound, and processes outside cannot be
looked at, so a payload cannot reach them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Callable, Dict, Mapping, Optional, Tuple

from payload_runner.images import BadContainer
from payload_runner.protocol import CONTAINER_WORKDIR

DETACHING = ("podman", "podman-hpc")  # what runs in the container is no descendant of theirs
SHARED_MEMORY = "/dev/shm"  # ranks of MPI and NCCL on one node speak through files in it  # nosec B108
_NVIDIA_DEVICES = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")
_MAX_GPUS = 16


@dataclass(frozen=True)
class ContainerRun:
    """One payload in one container. ``image`` is resolved; ``gpu_variable`` None: no GPUs."""

    image: str
    workdir: str
    command: str
    options: Tuple[str, ...] = ()
    gpu_variable: Optional[str] = None
    # Names to hand in where a runtime does not do so by itself; "PMI*": all that begin like that.
    variables: Tuple[str, ...] = ()
    of_several: bool = False  # others of its payload, on this node too, each in its own container

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


def runtime_failed(runtime: str, exit_code: Optional[int], errors: str) -> bool:
    """Whether it was the runtime that failed, and not the payload in it.

    ``errors``: the end of stderr. A program that the image does not have is the payload's fault.
    """
    known = _OWN_FAILURES.get(runtime)
    if known is None or exit_code != known.code:
        return False
    last = errors.strip().rsplit("\n", 1)[-1]
    return known.words.search(last) is not None


@dataclass(frozen=True)
class _Failure:
    """How a runtime says that it could not run the container: exit code and last line."""

    code: int
    words: re.Pattern[str]


# Exit codes as the manual pages of podman-run(1) and ch-run(1) (0.31) have them, or as seen.
_PODMAN_FAILED = _Failure(125, re.compile(""))
_APPTAINER_FAILED = _Failure(255, re.compile(r"^\S*FATAL:"))
_OWN_FAILURES = {
    "apptainer": _APPTAINER_FAILED,
    "bwrap": _Failure(1, re.compile(r"^bwrap: (?!execvp)")),
    "charliecloud": _Failure(1, re.compile(r"^ch-run\[\d+\]: error: (?!can't execve)")),
    "podman": _PODMAN_FAILED,
    "podman-hpc": _PODMAN_FAILED,
    "singularity": _APPTAINER_FAILED,
}


def _bwrap(run: ContainerRun) -> Tuple[str, ...]:
    return (
        "bwrap",
        *("--unshare-pid", "--unshare-uts", "--die-with-parent"),
        *(() if run.of_several else ("--unshare-ipc",)),
        *("--cap-drop", "ALL"),  # root would keep them, and could mount the disk that it hides
        *("--ro-bind", run.image, "/"),
        *("--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"),  # the container's own  # nosec B108
        *(("--bind", SHARED_MEMORY, SHARED_MEMORY) if run.of_several else ()),
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
        # Its own user namespace keeps it from looking at our processes; /tmp it would share.
        *("ch-run", "--private-tmp", f"--set-env=HOME={CONTAINER_WORKDIR}"),
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
            # Without --pid the set-user-id starter leaves /proc/<pid>/root of our processes open.
            *(program, "exec", "--contain", "--pid"),
            *(("--bind", SHARED_MEMORY) if run.of_several else ("--ipc",)),
            *flags.get(run.gpu_variable or "", ()),
            *("--home", f"{run.workdir}:{CONTAINER_WORKDIR}", "--pwd", CONTAINER_WORKDIR),
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
        # Data loaders need more shared memory than its 64 MB, and ranks one for all.
        *(("--ipc", "host") if run.of_several else ("--shm-size", "0")),
        # Its own log would hold every byte of output on a small disk; SELinux would refuse the
        # directory without a relabelling.
        *("--log-driver", "none", "--security-opt", "label=disable"),
        *("--cap-drop", "all", "--security-opt", "no-new-privileges", "--http-proxy=false"),
        *gpus,
        *("--env", f"HOME={CONTAINER_WORKDIR}", *variables),
        *("--volume", f"{run.workdir}:{CONTAINER_WORKDIR}:rw", "--workdir", CONTAINER_WORKDIR),
        *run.options,
        run.image,
        *run.shell,
    )


_BUILDERS: Dict[str, Callable[[ContainerRun], Tuple[str, ...]]] = {
    "apptainer": _apptainer("apptainer"),
    "bwrap": _bwrap,
    "charliecloud": _charliecloud,
    "podman": _podman,
    "podman-hpc": _podman_hpc,
    "shifter": _shifter,
    "singularity": _apptainer("singularity"),
}
RUNTIMES: Mapping[str, object] = _BUILDERS
