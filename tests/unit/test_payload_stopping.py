"""When a payload is warned, ended and killed, and which verdict counts."""

from __future__ import annotations

import pytest

from payload_runner.outcome import Verdict
from payload_runner.protocol import PayloadSpec
from payload_runner.stopping import (
    Times,
    drained,
    on_request,
    over_memory,
    over_time,
    plan_stop,
    verdict_of,
)

SPEC = PayloadSpec("p", "true", warn_s=30.0, kill_s=10.0)


def test_with_enough_time_the_payload_gets_all_of_its_grace() -> None:
    times = plan_stop(drained("timed_out", "end", 100.0), SPEC, 1000.0)
    assert times == Times(1030.0, 1040.0)


@pytest.mark.parametrize("remaining_s", [0.0, 0.5, 3.0, 10.0, 20.0, 55.0, 500.0])
def test_killing_leaves_time_to_commit(remaining_s: float) -> None:
    times = plan_stop(drained("timed_out", "end", remaining_s), SPEC, 0.0)
    assert 0.0 <= times.term_at <= times.kill_at <= remaining_s * 0.75 + 1e-9 or (
        times.kill_at <= remaining_s - 15.0
    )


def test_pruned_payloads_are_ended_at_once() -> None:
    assert plan_stop(on_request("pruned", "hopeless"), SPEC, 5.0) == Times(5.0, 10.0)


def test_too_much_memory_is_killed_at_once() -> None:
    assert plan_stop(over_memory(900.0, 500), SPEC, 5.0) == Times(5.0, 5.0)


def test_success_during_the_grace_is_a_success() -> None:
    good = Verdict("succeeded", loss=1.0)
    assert verdict_of(good, drained("timed_out", "end", 5.0)) is good


def test_success_does_not_excuse_too_much_memory() -> None:
    verdict = verdict_of(Verdict("succeeded", loss=1.0), over_memory(900.0, 500))
    reason = "used 900 MB of memory, its limit is 500 MB"
    assert verdict == Verdict("failed", "point", reason)


def test_each_reason_has_its_state_and_blame() -> None:
    failed = Verdict("failed", "point", "killed by SIGTERM")
    stops = [
        drained("timed_out", "end", 5.0),
        drained("preempted", "requeue", 5.0),
        on_request("pruned", "hopeless"),
        over_time(7.0),
    ]
    assert [(verdict_of(failed, stop).state, verdict_of(failed, stop).blame) for stop in stops] == [
        ("timed_out", "walltime"),
        ("preempted", "site"),
        ("pruned", None),
        ("timed_out", "point"),
    ]


def test_nobody_stopped_it() -> None:
    failed = Verdict("failed", "point", "exit code 1")
    assert verdict_of(failed, None) is failed
