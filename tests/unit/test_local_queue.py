"""Which local jobs start where: first in, first out, on virtual nodes and GPUs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harvester.batch.local_queue import Cluster, JobSpec, Placement, starts, why_impossible
from payload_runner.protocol import NodeShape

CLUSTER = Cluster(nodes=3, node=NodeShape(gpus=4, cores=8, memory_mb=1000), kill_s=1.0)
JOB = JobSpec(
    id="1",
    tag="habcde-aaaaaa",
    nodes=1,
    walltime_s=60.0,
    directory="/d",
    script="true",
    cores_per_node=1,
)


def job(id: str = "1", **wants: int) -> JobSpec:
    return replace(JOB, id=id, **wants)  # type: ignore[arg-type]  # the numeric fields only


def started(
    *waiting: JobSpec, busy: tuple[tuple[JobSpec, Placement], ...] = ()
) -> dict[str, Placement]:
    return {spec.id: placement for spec, placement in starts(CLUSTER, busy, waiting)}


def test_jobs_share_a_node_and_hold_different_gpus() -> None:
    assert started(job("1", gpus_per_node=2), job("2", gpus_per_node=2)) == {
        "1": Placement(("vnode1",), (0, 1)),
        "2": Placement(("vnode1",), (2, 3)),
    }


def test_job_without_a_core_count_takes_whole_nodes() -> None:
    whole = job("1", cores_per_node=0)
    assert started(whole, job("2")) == {
        "1": Placement(("vnode1",), ()),
        "2": Placement(("vnode2",), ()),
    }


def test_nodes_of_one_job_hold_the_same_gpu_indexes() -> None:
    busy = ((job("9", gpus_per_node=2), Placement(("vnode1",), (0, 1))),)
    # One variable speaks for all nodes: 2 and 3 are free everywhere, 0 and 1 on two nodes only.
    assert started(job("1", nodes=3, gpus_per_node=2), busy=busy)["1"].gpus == (2, 3)


def test_head_of_the_queue_is_not_overtaken() -> None:
    busy = ((job("9", cores_per_node=8), Placement(("vnode1",), ())),)
    assert started(job("1", nodes=3), job("2"), busy=busy) == {}


def test_excluded_nodes_are_left_out() -> None:
    spec = replace(job("1", nodes=2), exclude_nodes=("vnode1",))
    assert started(spec)["1"].node_names == ("vnode2", "vnode3")


def test_memory_counts() -> None:
    assert started(job("1", memory_mb_per_node=600), job("2", memory_mb_per_node=600)) == {
        "1": Placement(("vnode1",), ()),
        "2": Placement(("vnode2",), ()),
    }


def test_jobs_on_nodes_that_are_no_more_take_no_room() -> None:
    busy = ((job("9", cores_per_node=8), Placement(("vnode7",), ())),)
    assert started(job("1", nodes=3), busy=busy)["1"].node_names == CLUSTER.node_names


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (job(nodes=4), "4 nodes, and there are 3"),
        (replace(job(nodes=3), exclude_nodes=("vnode2",)), "3 nodes, and there are 2"),
        (job(gpus_per_node=5), "5 GPUs per node, and there are 4"),
        (job(cores_per_node=9), "9 cores per node, and there are 8"),
        (job(memory_mb_per_node=1001), "1001 MB of memory per node, and there are 1000"),
        (job(nodes=0), "above zero"),
        (job(walltime_s=0), "above zero"),
    ],
)
def test_job_that_can_never_run_is_told_why(spec: JobSpec, words: str) -> None:
    assert words in str(why_impossible(CLUSTER, spec))


def test_job_of_the_whole_cluster_is_possible() -> None:
    whole = job(nodes=3, gpus_per_node=4, cores_per_node=8, memory_mb_per_node=1000)
    assert why_impossible(CLUSTER, whole) is None
