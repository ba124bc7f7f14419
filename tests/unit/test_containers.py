"""Golden command lines of the container runtimes."""

from __future__ import annotations

import pytest

from payload_runner.containers import (
    BadContainer,
    ContainerRun,
    container_argv,
    container_environment,
    resolve_image,
)

RUN = ContainerRun("/images/torch", "/tmp/w", "./run.sh", ("--opt",), variables=("A", "B"))
SHELL = ["/bin/sh", "-c", 'PATH="$PATH:."; export PATH\n./run.sh']
BIND = "/tmp/w:/srv/workDir"

GOLDEN = {
    "apptainer": f"apptainer exec --contain --no-home --bind {BIND} --pwd /srv/workDir --opt"
    " /images/torch",
    "singularity": f"singularity exec --contain --no-home --bind {BIND} --pwd /srv/workDir --opt"
    " /images/torch",
    "bwrap": "bwrap --unshare-pid --unshare-ipc --unshare-uts --die-with-parent"
    " --ro-bind /images/torch / --proc /proc --dev /dev --tmpfs /tmp"
    " --bind /tmp/w /srv/workDir --chdir /srv/workDir --opt --",
    "charliecloud": f"ch-run --bind {BIND} --cd /srv/workDir --opt /images/torch --",
    "podman": "podman run --rm --read-only --network host --pull never --env A --env B"
    f" --volume {BIND}:rw --workdir /srv/workDir --opt /images/torch",
    "podman-hpc": "podman-hpc run --rm --read-only --network host --pull never --env A --env B"
    f" --volume {BIND}:rw --workdir /srv/workDir --opt /images/torch",
    "shifter": f"shifter --image=/images/torch --volume={BIND} --workdir=/srv/workDir --opt --",
}


@pytest.mark.parametrize("runtime", sorted(GOLDEN))
def test_command_line(runtime: str) -> None:
    assert list(container_argv(runtime, RUN)) == GOLDEN[runtime].split() + SHELL


@pytest.mark.parametrize(
    ("runtime", "variable", "words"),
    [
        ("apptainer", "CUDA_VISIBLE_DEVICES", "--nv"),
        ("apptainer", "ROCR_VISIBLE_DEVICES", "--rocm"),
        ("singularity", "CUDA_VISIBLE_DEVICES", "--nv"),
        ("podman", "CUDA_VISIBLE_DEVICES", "--device nvidia.com/gpu=all"),
        ("podman", "ROCR_VISIBLE_DEVICES", "--device /dev/kfd --device /dev/dri"),
        ("podman-hpc", "CUDA_VISIBLE_DEVICES", "--gpu"),
        ("shifter", "CUDA_VISIBLE_DEVICES", "--module=gpu"),
        ("bwrap", "CUDA_VISIBLE_DEVICES", "--dev-bind-try /dev/nvidia0 /dev/nvidia0"),
        ("bwrap", "ROCR_VISIBLE_DEVICES", "--dev-bind-try /dev/kfd /dev/kfd"),
    ],
)
def test_gpus_reach_the_container(runtime: str, variable: str, words: str) -> None:
    run = ContainerRun(RUN.image, RUN.workdir, RUN.command, gpu_variable=variable)
    assert f" {words} " in " ".join(container_argv(runtime, run))


def test_values_never_appear_on_the_command_line() -> None:
    argv = container_argv("podman", ContainerRun("i", "/w", "c", variables=("TOKEN",)))
    assert argv[argv.index("--env") + 1] == "TOKEN"


@pytest.mark.parametrize("runtime", ["none", "docker"])
def test_runtime_that_is_not_there_is_named(runtime: str) -> None:
    with pytest.raises(BadContainer, match=f"container_runtime is '{runtime}'.*one of apptainer"):
        container_argv(runtime, RUN)


@pytest.mark.parametrize(
    ("image", "runtime", "path"),
    [
        ("docker://org/torch:2.1", "bwrap", "/images/org_torch_2.1"),
        ("org/torch:2.1", "charliecloud", "/images/org_torch_2.1"),
        ("docker://big", "apptainer", "/images/big.sif"),
        ("/images/big.sif", "apptainer", "/images/big.sif"),
        ("docker://org/torch:2.1", "podman", "org/torch:2.1"),
        ("docker://org/torch:2.1", "shifter", "org/torch:2.1"),
    ],
)
def test_image_is_found(image: str, runtime: str, path: str) -> None:
    there = {"/images/org_torch_2.1", "/images/big.sif"}
    assert resolve_image(image, runtime, "/images", there.__contains__) == path


@pytest.mark.parametrize(
    ("image", "folder", "words"),
    [
        ("docker://org/x", "/images", "neither /images/org_x nor /images/org_x.sif exists"),
        ("/no/such.sif", "/images", "container image /no/such.sif does not exist on the node"),
        ("docker://org/x", None, "the site names no image_dir"),
        ("../../etc", "/images", "neither /images/.._.._etc nor"),
    ],
)
def test_missing_image_says_where_it_was_looked_for(
    image: str, folder: str | None, words: str
) -> None:
    with pytest.raises(BadContainer) as caught:
        resolve_image(image, "bwrap", folder, lambda _: False)
    assert words in str(caught.value)


def test_libraries_of_the_host_stay_outside() -> None:
    outer = {
        "LD_LIBRARY_PATH": "/opt/mpi",
        "PYTHONPATH": "/home",
        "A": "b",
        "HARVESTER_WORKDIR": "/w",
    }
    assert container_environment(outer) == {"A": "b", "HARVESTER_WORKDIR": "/srv/workDir"}
