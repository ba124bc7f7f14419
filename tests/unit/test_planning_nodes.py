"""Whom a failure is charged to, by what else ran on the node, and which nodes are left alone."""

from __future__ import annotations

import pytest

from harvester.model import Blame, PointId, Tag, TaskId
from harvester.planning.nodes import (
    EXCLUDED_MAX,
    QUARANTINE_S,
    QUICK_S,
    NodeEnd,
    NodeRun,
    record_of,
)

NOW = 100_000.0


def failure(node: str, point: int, at: float = NOW, *, lasted: float = 5.0) -> NodeEnd:
    return NodeEnd(
        node=node,
        tag=Tag(f"job-{node}"),
        task=TaskId("1"),
        point=PointId(str(point)),
        blame=Blame.POINT,
        duration_s=lasted,
        ended_at=at,
    )


def success(node: str, point: int, at: float = NOW - 10.0, task: str = "1") -> NodeEnd:
    return NodeEnd(
        node=node,
        tag=None,
        task=TaskId(task),
        point=PointId(str(point)),
        blame=None,
        duration_s=200.0,
        ended_at=at,
    )


def run(node: str, lasts: float) -> NodeRun:
    point = PointId("99")
    return NodeRun(node=node, tag=None, task=TaskId("1"), point=point, started_at=NOW - lasts)


UNLIKE = (failure("bad", 1, NOW - 2), failure("bad", 2, NOW - 1), failure("bad", 3))


def test_unlike_points_that_die_quickly_condemn_a_node_while_others_succeed() -> None:
    record = record_of([*UNLIKE, success("good", 4)], now=NOW)

    (bad,) = record.quarantined(NOW)
    assert (bad.node, bad.points, bad.until) == ("bad", 3, NOW + QUARANTINE_S)
    assert bad.tags == {"job-bad"}
    assert [record.charged_to(end) for end in UNLIKE] == [Blame.NODE] * 3


def test_runs_that_last_elsewhere_prove_as_much_as_successes() -> None:
    assert record_of(UNLIKE, [run("good", QUICK_S + 1)], NOW).quarantined(NOW)
    assert not record_of(UNLIKE, [run("good", QUICK_S - 1)], NOW).quarantined(NOW)


def test_search_that_fails_everywhere_condemns_nobody_and_is_charged() -> None:
    ends = [failure(node, point) for point, node in enumerate("abcabcabc")]
    record = record_of(ends, now=NOW)

    assert not record.bad
    assert [record.charged_to(end) for end in ends] == [Blame.POINT] * 9


def test_success_of_another_search_elsewhere_proves_nothing_about_this_one() -> None:
    assert not record_of([*UNLIKE, success("good", 4, task="2")], now=NOW).bad


def test_point_that_fails_alike_on_independent_nodes_is_charged() -> None:
    elsewhere = failure("good", 1, NOW - 5)
    record = record_of([UNLIKE[0], elsewhere, success("good", 4)], now=NOW)

    assert record.charged_to(UNLIKE[0]) is Blame.POINT


def test_failures_on_bad_nodes_are_no_evidence_against_a_point() -> None:
    other = failure("also-bad", 1)
    record = record_of([*UNLIKE, other, success("good", 4)], now=NOW)

    assert record.charged_to(other) is Blame.NODE


@pytest.mark.parametrize(
    ("known", "expected"),
    [([success("good", 9)], Blame.NODE), ([success("new", 9)], Blame.POINT), ([], Blame.POINT)],
    ids=["nothing speaks for the node", "it is sound", "nothing to compare with"],
)
def test_a_points_first_quick_failure_is_charged_where_the_node_is_sound(
    known: list[NodeEnd], expected: Blame
) -> None:
    first = failure("new", 1)
    assert record_of([first, *known], now=NOW).charged_to(first) is expected


def test_a_point_that_goes_on_failing_where_nothing_else_runs_is_charged_in_the_end() -> None:
    """Charged to nobody it would be tried there again and again, while all others run for hours."""
    ends: list[NodeEnd] = []
    charged = []
    for number in range(4):
        ends.append(failure("new", 1, NOW + number))
        known = [*ends[:-1], ends[-1], success("good", 9)]
        charged.append(record_of(known, now=NOW + number).charged_to(ends[-1]))
    assert charged == [Blame.NODE, Blame.NODE, Blame.POINT, Blame.POINT]


def test_slow_failures_are_the_points_own() -> None:
    slow = [failure("bad", point, lasted=QUICK_S + 1) for point in range(5)]
    record = record_of([*slow, success("good", 9)], now=NOW)

    assert not record.bad
    assert record.charged_to(slow[0]) is Blame.POINT


def test_success_on_the_node_clears_it() -> None:
    after = success("bad", 8, NOW + 1)
    assert not record_of([*UNLIKE, after, success("good", 4)], now=NOW).bad


def test_node_is_tried_again_when_its_time_is_up_and_one_more_failure_condemns_it_anew() -> None:
    later = NOW + QUARANTINE_S + 60
    ends = [*UNLIKE, success("good", 4)]
    assert record_of(ends, now=later).quarantined(later) == ()

    (bad,) = record_of([*ends, failure("bad", 7, later)], now=later).quarantined(later)
    assert bad.until == later + QUARANTINE_S


def test_lost_node_counts_against_itself_whatever_runs_elsewhere() -> None:
    lost = [
        NodeEnd(
            node="gone",
            tag=None,
            task=TaskId("1"),
            point=PointId(str(point)),
            blame=Blame.NODE,
            duration_s=900.0,
            ended_at=NOW,
        )
        for point in range(3)
    ]
    assert [bad.node for bad in record_of(lost, now=NOW).quarantined(NOW)] == ["gone"]


def test_allocation_excludes_bad_nodes_only_where_enough_sound_ones_were_seen() -> None:
    record = record_of([*UNLIKE, success("a", 4), success("b", 5)], now=NOW)

    assert record.excluded(2, NOW) == ("bad",)
    assert record.excluded(3, NOW) == ()
    assert record.excluded(1, NOW + QUARANTINE_S + 1) == ()


def test_excluded_nodes_are_bounded() -> None:
    ends = [failure(f"bad{n}", 10 * n + k) for n in range(2 * EXCLUDED_MAX) for k in range(3)]
    assert len(record_of([*ends, success("good", 1)], now=NOW).excluded(1, NOW)) == EXCLUDED_MAX
