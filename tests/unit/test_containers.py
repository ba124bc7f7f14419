"""Golden command lines of the container runtimes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from payload_runner.container_environment import (
    DEFAULT_PATH,
    inside,
    meant_inside,
    of_runtime,
    parse_image_environment,
)
from payload_runner.containers import (
    SHARED_MEMORY,
    ContainerRun,
    container_argv,
    runtime_failed,
)
from payload_runner.images import BadContainer, resolve_image

RUN = ContainerRun("/images/torch", "/tmp/w", "./run.sh", ("--opt",), variables=("A", "B"))
SHELL = ["/bin/sh", "-c", 'PATH="$PATH:."; export PATH\n./run.sh']
BIND = "/tmp/w:/srv/workDir"
APPTAINER = f"exec --contain --pid --ipc --home {BIND} --pwd /srv/workDir --opt /images/torch"
PODMAN = (
    "run --rm --read-only --network host --pull never --shm-size 0 --log-driver none"
    " --security-opt label=disable --cap-drop all --security-opt no-new-privileges"
    f" --http-proxy=false --env HOME=/srv/workDir --env A --env B --volume {BIND}:rw"
    " --workdir /srv/workDir --opt /images/torch"
)
GOLDEN = {
    "apptainer": f"apptainer {APPTAINER}",
    "singularity": f"singularity {APPTAINER}",
    "bwrap": "bwrap --unshare-pid --unshare-uts --die-with-parent --unshare-ipc --cap-drop ALL"
    " --ro-bind /images/torch / --proc /proc --dev /dev --tmpfs /tmp"
    " --bind /tmp/w /srv/workDir --chdir /srv/workDir --opt --",
    "charliecloud": "ch-run --private-tmp --set-env=HOME=/srv/workDir"
    f" --bind {BIND} --cd /srv/workDir --opt /images/torch --",
    "podman": f"podman {PODMAN}",
    "podman-hpc": f"podman-hpc {PODMAN}",
    "shifter": f"shifter --image=/images/torch --volume={BIND} --workdir=/srv/workDir --opt --",
}


@pytest.mark.parametrize("runtime", sorted(GOLDEN))
def test_command_line(runtime: str) -> None:
    assert list(container_argv(runtime, RUN)) == GOLDEN[runtime].split() + SHELL


# How a rank differs: it shares memory with the others of its node.
RANKS = {
    "apptainer": (" --ipc ", f" --bind {SHARED_MEMORY} "),
    "singularity": (" --ipc ", f" --bind {SHARED_MEMORY} "),
    "bwrap": (" --unshare-ipc ", " "),
    "charliecloud": (" ", " "),
    "podman": (" --shm-size 0 ", " --ipc host "),
    "podman-hpc": (" --shm-size 0 ", " --ipc host "),
    "shifter": (" ", " "),
}


@pytest.mark.parametrize("runtime", sorted(RANKS))
def test_command_line_of_a_rank(runtime: str) -> None:
    alone, shared = RANKS[runtime]
    golden = GOLDEN[runtime].replace(alone, shared)
    if runtime == "bwrap":
        there = f"--bind {SHARED_MEMORY} {SHARED_MEMORY}"
        golden = golden.replace(" --tmpfs /tmp", f" --tmpfs /tmp {there}")
    run = replace(RUN, of_several=True)
    assert list(container_argv(runtime, run)) == golden.split() + SHELL


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
    assert "--env TOKEN " in " ".join(argv)
    assert not any(word.startswith("TOKEN=") for word in argv)


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


@pytest.mark.fault("image or runtime broken")
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


def test_site_table_of_images_counts_before_any_rule() -> None:
    table = {"docker://org/x": "/cvmfs/x", "org/y": "local/y:1", "z": "/gone"}
    there = {"/cvmfs/x"}.__contains__
    assert resolve_image("docker://org/x", "bwrap", None, there, table) == "/cvmfs/x"
    assert resolve_image("docker://org/y", "podman", None, there, table) == "local/y:1"
    with pytest.raises(BadContainer, match="image z, for this site /gone, does not exist"):
        resolve_image("z", "bwrap", None, there, table)


HOST = {
    "LD_LIBRARY_PATH": "/opt/mpi",
    "MODULEPATH": "/opt/modules",
    "HOME": "/home/alice",
    "TMPDIR": "/local_scratch/77",
    "CUDA_HOME": "/opt/cuda",
    "PATH": "/opt/host/bin",
    "http_proxy": "http://alice:pw@proxy:3128",
    "SLURM_JOB_ID": "77",
    "LANG": "C.UTF-8",
    "APPTAINER_BIND": "/data",
    "CONTAINERS_CONF": "/etc/c.conf",
}
SEEN = {
    "SLURM_JOB_ID": "77",
    "LANG": "C.UTF-8",
    "HOME": "/srv/workDir",
    "HARVESTER_WORKDIR": "/srv/workDir",
}


def test_only_what_means_the_same_inside_comes_from_the_host() -> None:
    assert inside({**HOST, "HARVESTER_WORKDIR": "/w"}, {"HARVESTER_WORKDIR"}, {}) == SEEN


def test_what_a_task_says_wins_over_the_image_and_that_over_nothing() -> None:
    image = {"PATH": "/conda/bin:/bin", "LANG": "de_DE", "MODEL": "small", "HOME": "/root"}
    found = inside({**HOST, "MODEL": "large"}, {"MODEL"}, image)
    assert found == {**SEEN, "PATH": "/conda/bin:/bin", "MODEL": "large", "HOME": "/root"}


def test_site_variables_for_the_hosts_programs_do_not_count_inside() -> None:
    site = ("PYTHONPATH", "LD_LIBRARY_PATH", "PATH", "NCCL_DEBUG", "DATA_DIR")
    assert meant_inside(site) == {"NCCL_DEBUG", "DATA_DIR"}


@pytest.mark.parametrize(
    ("runtime", "more"),
    [
        ("bwrap", {"PATH": DEFAULT_PATH}),
        ("charliecloud", {"PATH": DEFAULT_PATH}),
        ("apptainer", {"PATH": "/opt/host/bin", "APPTAINER_BIND": "/data"}),
        ("podman", {"PATH": "/opt/host/bin", "HOME": "/home/alice", "TMPDIR": "/local_scratch/77"}),
        ("shifter", {"PATH": "/opt/host/bin", "HOME": "/home/alice"}),
    ],
)
def test_runtime_gets_what_it_reads_itself(runtime: str, more: dict[str, str]) -> None:
    found = of_runtime(runtime, SEEN, HOST)
    if runtime == "podman":
        more = {**more, "CONTAINERS_CONF": "/etc/c.conf"}
    assert found == {**SEEN, **more}


def test_image_environment_is_read_line_by_line() -> None:
    text = "PATH=/conda/bin:/bin\n# no\nA=b=c\n1X=2\nLD_PRELOAD=/evil.so\nEMPTY=\n"
    assert parse_image_environment(text) == {"PATH": "/conda/bin:/bin", "A": "b=c", "EMPTY": ""}


@pytest.mark.fault("image or runtime broken")
@pytest.mark.parametrize(
    ("runtime", "code", "errors", "failed"),
    [
        ("podman", 125, "Error: torch:1: image not known", True),
        ("podman", 127, "Error: stat /nosuch: no such file", False),
        ("apptainer", 255, "INFO: x\nFATAL:   could not open image /x.sif", True),
        ("apptainer", 255, "Traceback", False),
        ("charliecloud", 1, "ch-run[9]: error: can't stat: /x: No such file", True),
        ("charliecloud", 1, "ch-run[9]: error: can't execve(2): /bin/nosuch", False),
        ("bwrap", 1, "bwrap: Can't find source path /x: No such file", True),
        ("bwrap", 1, "ValueError", False),
        ("none", 125, "", False),
    ],
)
def test_failure_of_the_runtime_is_told_from_the_payloads(
    runtime: str, code: int, errors: str, failed: bool
) -> None:
    assert runtime_failed(runtime, code, errors) is failed
