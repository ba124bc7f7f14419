"""How long payloads take, and how many fit a node."""

from __future__ import annotations

import pytest

from harvester.planning.estimates import DurationEstimate, Estimator, estimate_duration
from harvester.planning.shapes import misfit, node_share, payloads_per_node, slots
from payload_runner.protocol import NodeShape, Shape
from tests.planning_cases import NODE, attempt


def test_a_few_runs_are_given_a_margin() -> None:
    assert estimate_duration([10.0, 12.0, 11.0]) == DurationEstimate(11.0, 16.5, 3)


def test_the_longest_of_a_few_runs_is_believed() -> None:
    assert estimate_duration([10.0, 40.0, 11.0]).high_s == 40.0


def test_many_runs_tell_their_own_spread() -> None:
    found = estimate_duration([float(n) for n in range(1, 102)])
    assert found == DurationEstimate(51.0, 91.0, 101)


@pytest.mark.parametrize(
    ("samples", "expected_s"),
    [([1.0], 600.0), ([1.0, 1.0], 600.0), ([1.0, 1.0, 1.0], 1.0), ([900.0], 900.0)],
)
def test_one_short_success_does_not_outweigh_what_was_declared(
    samples: list[float], expected_s: float
) -> None:
    assert estimate_duration(samples).expected_s(600.0) == expected_s


def test_a_point_that_reached_its_limit_is_planned_with_all_of_it() -> None:
    estimator = Estimator(1800.0)
    hung = attempt("a", expected_s=0.1, high_s=0.2, cut_s=24.0, limit_s=24.0)
    assert (estimator.expected_s(hung), estimator.least_s(hung)) == (24.0, 24.0)


@pytest.mark.parametrize(
    ("shape", "per_node"),
    [
        (Shape(), 4),
        (Shape(gpus_per_node=3), 1),
        (Shape(gpus_per_node=0.5), 8),
        (Shape(gpus_per_node=0.4), 8),  # two on each GPU: shares do not straddle GPUs
        (Shape(gpus_per_node=1 / 3), 12),
        (Shape(gpus_per_node=5), 0),
        (Shape(cores_per_node=16), 2),
        (Shape(gpus_per_node=0), 32),
        (Shape(memory_mb_per_node=100_000), 2),
        (Shape(memory_mb_per_node=300_000), 0),
    ],
)
def test_payloads_per_node(shape: Shape, per_node: int) -> None:
    assert payloads_per_node(shape, NODE) == per_node
    assert (misfit(shape, NODE) is None) is (per_node > 0)


def test_memory_that_is_not_known_does_not_limit() -> None:
    assert payloads_per_node(Shape(memory_mb_per_node=10**6), NodeShape(gpus=2, cores=8)) == 2


def test_multi_node_shapes_take_whole_groups() -> None:
    wide = Shape(nodes_min=3, nodes_max=3, gpus_per_node=4)
    assert (node_share(wide, NODE), slots(wide, NODE, 8)) == (3.0, 2)


def test_a_time_limit_bounds_what_an_attempt_needs() -> None:
    estimator = Estimator(1800.0)
    limited = attempt("a", expected_s=600.0, limit_s=500.0)
    assert (estimator.expected_s(limited), estimator.needed_s(limited)) == (500.0, 500.0)
