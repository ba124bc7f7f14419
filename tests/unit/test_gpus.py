"""GPUs and cores: what the batch system gave, and what a slot makes of it."""

from __future__ import annotations

import os

import pytest

from payload_runner.gpus import (
    NodeResources,
    cores_of,
    find_resources,
    given_gpus,
    gpu_labels,
    near_each,
    order_cores,
    parse_core_list,
    threads_of,
    visible,
)
from payload_runner.placement import GpuShare, Slot
from payload_runner.protocol import NodeShape

CUDA = NodeShape(gpus=4, cores=8)
NODE = NodeResources(
    "CUDA_VISIBLE_DEVICES", ("GPU-a", "GPU-b", "6", "7"), tuple(range(100, 108)), 0
)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (None, ("0", "1", "2", "3")),
        ("", ("0", "1", "2", "3")),
        ("2,3", ("2", "3")),
        ("GPU-8f1, MIG-2", ("GPU-8f1", "MIG-2")),
        ("0,1,2,3,4,5", ("0", "1", "2", "3")),
        ("NoDevFiles", ()),
        ("-1", ()),
    ],
)
def test_gpus_are_those_that_the_batch_system_gave(
    given: str | None, names: tuple[str, ...]
) -> None:
    environ = {} if given is None else {"CUDA_VISIBLE_DEVICES": given}
    assert given_gpus(CUDA, environ) == names


def test_each_kind_of_gpu_has_its_variable() -> None:
    shape = NodeShape(gpus=2, gpu_variable="ZE_AFFINITY_MASK")
    assert given_gpus(shape, {"ZE_AFFINITY_MASK": "0.0,0.1", "CUDA_VISIBLE_DEVICES": "5"}) == (
        "0.0",
        "0.1",
    )


@pytest.mark.parametrize(
    ("variable", "shown"),
    [
        (
            "CUDA_VISIBLE_DEVICES",
            {"CUDA_VISIBLE_DEVICES": "6,GPU-b", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
        ),
        ("ROCR_VISIBLE_DEVICES", {"ROCR_VISIBLE_DEVICES": "6,GPU-b"}),
        (
            "ZE_AFFINITY_MASK",
            {"ZE_AFFINITY_MASK": "6,GPU-b", "ZE_ENABLE_PCI_ID_DEVICE_ORDER": "1"},
        ),
    ],
)
def test_slot_shows_its_gpus_in_its_order(variable: str, shown: dict[str, str]) -> None:
    node = NodeResources(variable, NODE.gpus, NODE.cores, 0)
    assert visible(node, Slot(0, (GpuShare(2), GpuShare(1, 0.5)))) == shown


def test_slot_without_gpus_sees_none_of_the_others() -> None:
    assert visible(NODE, Slot(0))["CUDA_VISIBLE_DEVICES"] == ""


def test_node_without_gpus_says_nothing_of_them() -> None:
    assert visible(NodeResources("CUDA_VISIBLE_DEVICES", (), (0,), 0), Slot(0)) == {}


def test_labels_name_node_index_and_share() -> None:
    assert gpu_labels("n1", Slot(0, (GpuShare(0), GpuShare(3, 0.25)))) == ("n1:0", "n1:3/0.25")


def test_cores_of_a_slot_are_the_kernels_numbers() -> None:
    slot = Slot(0, cores=(0, 1, 6, 7))
    assert cores_of(NODE, slot) == {100, 101, 106, 107}
    assert cores_of(NODE, slot, rank=1, ranks=2) == {106, 107}


@pytest.mark.parametrize(
    ("node", "slot"),
    [
        (NODE, Slot(0)),
        (NODE, Slot(0, cores=(0, 99))),
        (NodeResources("X", (), (0, 1), 0, pin=False), Slot(0, cores=(0,))),
    ],
)
def test_no_pinning_without_sure_cores(node: NodeResources, slot: Slot) -> None:
    assert cores_of(node, slot) == frozenset()


def test_more_ranks_than_cores_share_them() -> None:
    assert cores_of(NODE, Slot(0, cores=(0, 1)), rank=2, ranks=3) == {100, 101}


@pytest.mark.parametrize(
    ("slot", "threads"),
    [
        (Slot(0, cores=(0, 1, 2)), 3),
        (Slot(0, cores=(0, 1, 2, 3), ranks=2), 2),
        (Slot(0, cores=(0,), ranks=4), 1),
        (Slot(0, (GpuShare(0), GpuShare(1))), 4),
        (Slot(0, (GpuShare(0, 0.25),)), 1),
        (Slot(0), 0),
    ],
)
def test_threads_follow_the_share_of_cores(slot: Slot, threads: int) -> None:
    assert threads_of(NODE, slot) == threads


def test_cores_near_a_gpu_come_at_its_place() -> None:
    near = [frozenset({4, 5, 6, 7}), frozenset({0, 1, 2, 3})]
    assert order_cores(range(8), near) == [4, 5, 6, 7, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("names", "cores"),
    [
        (("2", "3"), [4, 6]),
        (("1", "0"), [2, 0]),
        (("GPU-8f1", "MIG-2"), [0, 2]),
        (("6", "7"), [0, 2]),
        ((), []),
    ],
)
def test_cores_are_those_near_the_gpus_that_were_given(
    names: tuple[str, ...], cores: list[int]
) -> None:
    near = [frozenset({first, first + 1}) for first in (0, 2, 4, 6)]
    assert [min(item) for item in near_each(names, near)] == cores


def test_gpus_that_share_cores_get_equal_parts() -> None:
    near = [frozenset({0, 1, 2, 3})] * 2 + [frozenset({4, 5, 6, 7})] * 2
    assert order_cores(range(8), near) == [0, 1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("near", [[], [frozenset({90})], [frozenset({1}), frozenset({1})]])
def test_no_core_is_lost_or_doubled(near: list[frozenset[int]]) -> None:
    assert sorted(order_cores(range(7), near)) == list(range(7))


def test_kernel_core_lists_are_read() -> None:
    assert parse_core_list("0-2,8,10-11\n") == {0, 1, 2, 8, 10, 11}
    assert parse_core_list("") == frozenset()


def test_this_machine_is_described() -> None:
    found = find_resources(NodeShape(gpus=2, cores=64, memory_mb=0), {})
    assert found.gpus == ("0", "1")
    assert sorted(found.cores) == sorted(os.sched_getaffinity(0))
    assert found.memory_mb > 0
    assert found.shape.gpus == 2


def test_virtual_node_has_the_cores_of_its_plan() -> None:
    found = find_resources(NodeShape(gpus=2, cores=64, memory_mb=1000), {}, pin=False)
    assert (found.shape.cores, found.shape.memory_mb) == (64, 1000)
    assert cores_of(found, Slot(0, cores=(0,))) == frozenset()
