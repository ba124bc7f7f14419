"""Backfill windows of Slurm, from outputs recorded on a Slurm 22.05."""

from __future__ import annotations

import math

import pytest

from harvester.batch.commands import Completed
from harvester.batch.slurm_windows import expand_nodes, parse_windows
from harvester.errors import BatchUnavailable
from harvester.model import BackfillWindow

NOBODY = "No reservations in the system\n"
RESERVED = (
    "ReservationName=tbtest StartTime=4600 EndTime=8200 Duration=01:00:00 Nodes=node[4-5] "
    "NodeCnt=2 CoreCnt=8 Features=(null) PartitionName=(null) Flags=MAINT,IGNORE_JOBS,SPEC_NODES "
    "TRES=cpu=8 Users=root Groups=(null) Accounts=(null) Licenses=(null) State=INACTIVE\n"
)


def printed(text: str, code: int = 0) -> Completed:
    return Completed("command", code, text, "")


def windows(states: str, expected: str = "", reserved: str = NOBODY) -> tuple[BackfillWindow, ...]:
    return parse_windows(printed(states), printed(expected), printed(reserved))


def test_idle_nodes_that_nobody_waits_for_have_no_end() -> None:
    states = "batch|idle|node[1-3]\nbatch|allocated|node[4-8]\nbatch|drained*|node9\n"
    assert windows(states) == (BackfillWindow("batch", 3, math.inf),)


def test_planned_nodes_are_free_until_the_job_that_is_expected_there() -> None:
    states = "batch|planned|node[2-3]\nbatch|idle|node1\nbatch|allocated|node4\n"
    assert windows(states, "2800|node[2-4]\nN/A|(null)\n3000|node3\n") == (
        BackfillWindow("batch", 1, math.inf),
        BackfillWindow("batch", 3, 2800.0),
    )


def test_planned_nodes_of_which_no_expected_job_speaks_are_left_out() -> None:
    assert windows("batch|planned|node[2-3]\n", "N/A|(null)\n") == ()


def test_a_reservation_to_come_ends_the_windows_of_its_nodes() -> None:
    found = windows("batch|idle|node[3-5]\n", "", RESERVED)
    assert found == (BackfillWindow("batch", 1, math.inf), BackfillWindow("batch", 3, 4600.0))


def test_each_partition_has_windows_of_its_own() -> None:
    states = "batch|idle|node[1-2]\ndebug|idle|node1\ndebug|idle~|node7\nbatch|idle*|node8\n"
    assert windows(states) == (
        BackfillWindow("batch", 2, math.inf),
        BackfillWindow("debug", 1, math.inf),
    )


def test_nothing_idle_is_no_window() -> None:
    assert windows("batch|allocated|node[1-2]\n") == ()


@pytest.mark.parametrize(
    ("states", "expected", "reserved"),
    [
        ("Welcome to the cluster!\n", "", NOBODY),
        ("batch|idle|node[1-2]", "", NOBODY),
        ("batch|idle|node[1-\n", "", NOBODY),
        ("batch|idle|node[x-y]\n", "", NOBODY),
        ("batch|idle|node[1-999999999]\n", "", NOBODY),
        ("batch|idle|node1\n", "tomorrow|node1\n", NOBODY),
        ("batch|idle|node1\n", "", "Reservations are secret here\n"),
    ],
)
def test_what_is_no_answer_is_an_error(states: str, expected: str, reserved: str) -> None:
    with pytest.raises(BatchUnavailable):
        windows(states, expected, reserved)


def test_a_command_that_failed_is_an_error_whatever_it_printed() -> None:
    with pytest.raises(BatchUnavailable):
        parse_windows(printed("batch|idle|node1\n", 1), printed(""), printed(NOBODY))


@pytest.mark.parametrize(
    ("names", "nodes"),
    [
        ("login", ["login"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("n[08-10,12],m1", ["n08", "n09", "n10", "n12", "m1"]),
        ("x[1-2]c[0-1]n7", ["x1c0n7", "x1c1n7", "x2c0n7", "x2c1n7"]),
        ("", []),
    ],
)
def test_abbreviated_nodes_are_expanded(names: str, nodes: list[str]) -> None:
    assert list(expand_nodes(names)) == nodes
