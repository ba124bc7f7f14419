"""What a probe's measurements say of a site file's claims."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harvester.probe.findings import Finding, Measured, are_good, judge, snippet
from harvester.site import Network, Queue, RunnerChoice, Site, WalltimeBin
from payload_runner.probe import Launch, ProbeReport
from payload_runner.probing import Disk, NodeFound
from payload_runner.protocol import NodeShape

SRUN = ("srun", "--ntasks-per-node=1", "--overlap")
NVME = Disk("/local_scratch", "xfs", writable=True, free_mb=3_000_000)
NODE = NodeFound(
    version="1",
    python="3.11.2",
    host="node1",
    cores=64,
    memory_mb=512_000,
    gpu_variables={"CUDA_VISIBLE_DEVICES": "0,1,2,3"},
    disks=(NVME,),
    runtimes=("apptainer",),
)
GOOD = Launch(0, 2, 0.4)


def site(**changes: Any) -> Site:
    limits = WalltimeBin(nodes_min=1, nodes_max=4, walltime_max_s=3600.0)
    values: dict[str, Any] = {
        "name": "x",
        "batch_system": "slurm",
        "node": NodeShape(gpus=4, cores=64, memory_mb=500_000),
        "queues": (Queue(name="gpu", bins=(limits,)),),
        "spool": "/spool",
        "container_runtime": "apptainer",
        "network": Network(compute="none"),
        "runner": RunnerChoice(launcher=SRUN, node_local_dir="/local_scratch"),
    }
    return Site(**{**values, **changes})


def measured(node: NodeFound = NODE, **changes: Any) -> Measured:
    report = ProbeReport(host="node1", nodes=GOOD, nested=GOOD, answer_s=1.2)
    return Measured((node, replace(node, host="node2")), replace(report, **changes), 2, "login1")


def wrong(site_: Site, found: Measured) -> list[Finding]:
    return [item for item in judge(site_, found) if item.proposal is not None or item.advice]


def test_runroot_of_podman_that_is_too_long_is_told() -> None:
    podman = site(container_runtime="podman")
    place = "/tmp/storage-run-1234567/" + 26 * "c"
    node = replace(NODE, runtimes=("podman",), podman_runroot=place)
    (finding,) = wrong(podman, measured(node))
    assert finding.measured == f"runroot {place}"
    assert "has 51 characters" in finding.advice
    short = replace(node, podman_runroot="/run/user/123456/containers")
    assert wrong(podman, measured(short)) == []


def test_site_file_that_says_what_is_there_is_left_alone() -> None:
    findings = judge(site(), measured())
    assert are_good(findings)
    assert snippet(findings) == ""
    keys = {item.key for item in findings}
    assert {"node.gpus", "node.cores", "node.memory", "runner.python", "network.compute"} <= keys


@pytest.mark.parametrize(
    ("claimed", "node", "key", "proposal"),
    [
        ({}, {"cores": 56}, "node.cores", 56),
        ({}, {"memory_mb": 480_000}, "node.memory", "480000MB"),
        ({}, {"gpu_variables": {"CUDA_VISIBLE_DEVICES": "0,1"}}, "node.gpus", 2),
        ({}, {"gpu_variables": {"CUDA_VISIBLE_DEVICES": "NoDevFiles"}}, "node.gpus", 0),
        ({}, {"gpu_variables": {}, "gpus": ("nvidia0",)}, "node.gpus", 1),
        (
            {},
            {"gpu_variables": {"ROCR_VISIBLE_DEVICES": "0,1,2,3"}},
            "node.gpu_variable",
            "ROCR_VISIBLE_DEVICES",
        ),
        (
            {},
            {"gpu_cores": ((48, 49), (32, 33), (16, 17), (0, 1))},
            "node.gpu_order",
            ["3", "2", "1", "0"],
        ),
        ({}, {"runtimes": ("podman-hpc",)}, "containers.runtime", "podman-hpc"),
        ({}, {"runtimes": ()}, "containers.runtime", "none"),
        ({"network": Network(compute="outbound")}, {}, "network.compute", "none"),
        ({"network": Network()}, {}, "network.compute", "none"),
        (
            {"runner": RunnerChoice(launcher=SRUN)},
            {},
            "runner.node_local_dir",
            "/local_scratch",
        ),
        (
            {"runner": RunnerChoice(launcher=SRUN, node_local_dir="/scratch")},
            {"disks": (Disk("/scratch", "lustre", writable=True, free_mb=9), NVME)},
            "runner.node_local_dir",
            "/local_scratch",
        ),
    ],
)
def test_claim_that_does_not_hold_is_corrected(
    claimed: dict[str, Any], node: dict[str, Any], key: str, proposal: object
) -> None:
    (finding,) = wrong(site(**claimed), measured(replace(NODE, **node)))
    assert (finding.key, finding.proposal) == (key, proposal)


def test_gpu_order_that_the_site_file_knows_already_is_good() -> None:
    shape = NodeShape(gpus=2, cores=64, memory_mb=1, gpu_names=("1", "0"))
    given = {"CUDA_VISIBLE_DEVICES": "0,1"}
    node = replace(NODE, gpu_variables=given, gpu_cores=((32,), (0,)))
    assert wrong(site(node=shape), measured(node)) == []


def test_a_route_out_does_not_contradict_a_cautious_file() -> None:
    assert wrong(site(), measured(replace(NODE, has_route=True))) == []


def test_srun_that_cannot_be_called_twice_needs_overlap() -> None:
    runner = RunnerChoice(launcher=("srun", "-n2"), node_local_dir="/local_scratch")
    (finding,) = wrong(site(runner=runner), measured(nested=Launch(None)))
    assert finding.proposal == ["srun", "-n2", "--overlap"]


def test_other_launcher_that_cannot_be_called_twice_is_reported_in_its_words() -> None:
    failed = Launch(1, 0, 0.1, "warning\nno slots left\n")
    (finding,) = wrong(site(), measured(nested=failed))
    assert finding.advice.endswith("no slots left")


def test_launcher_that_leaves_nodes_out_is_told_what_it_has_to_do() -> None:
    found = measured()
    lonely = replace(found, nodes=(NODE, NODE))
    (finding,) = wrong(site(), lonely)
    assert "one process on every node" in finding.advice


def test_files_that_are_seen_late_are_not_on_a_local_file_system() -> None:
    here = site(filesystem="local")
    assert [item.proposal for item in wrong(here, measured(answer_s=12.0))] == ["shared"]
    assert [item.proposal for item in wrong(here, measured(answer_s=None))] == ["shared"]
    assert wrong(here, measured(answer_s=0.2)) == []


def test_answer_that_never_came_on_a_shared_file_system_is_for_a_person() -> None:
    (finding,) = wrong(site(), measured(answer_s=None))
    assert "share the spool's file system" in finding.advice


def test_corrections_are_a_layer_of_a_site_file() -> None:
    import yaml

    node = replace(NODE, cores=56, memory_mb=480_000, runtimes=())
    text = snippet(judge(site(), measured(node)))
    assert yaml.safe_load(text) == {
        "node": {"cores": 56, "memory": "480000MB"},
        "containers": {"runtime": "none"},
    }
