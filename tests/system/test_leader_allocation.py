"""A whole allocation by hand: the real leader and agents on this machine, orders from a test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from payload_runner.logfile import LogWriter
from payload_runner.protocol import (
    Shape,
)
from tests.hand_allocation import FILES, OK, PLAN, TAG, Allocation
from tests.support import wait_until


def _number(path: Path) -> int:
    return int(path.read_text() or 0) if path.exists() else 0


Make = Callable[..., Allocation]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Allocation] = []

    def build(**changes: Any) -> Allocation:
        # Each in a spool of its own.
        root = tmp_path / f"spool{len(made)}"
        root.mkdir()
        made.append(Allocation(root, replace(PLAN, **changes)))
        return made[-1]

    yield build
    for allocation in made:
        allocation.kill_all()


@pytest.mark.parametrize("transport", ["tcp", "files", "auto"])
def test_twenty_payloads_on_two_nodes_end_with_their_results_in_one_log(
    make: Make, transport: str
) -> None:
    allocation = make(transport=transport)
    allocation.define(OK)
    allocation.order(*range(20))
    allocation.tell("close")
    assert allocation.start().wait(60) == 0
    records = allocation.events()
    assert [record.seq for record in records] == list(range(1, len(records) + 1))
    assert [records[0].kind, records[-1].kind] == ["open", "allocation_ended"]
    assert allocation.states() == {str(number): "succeeded" for number in range(20)}
    assert {fields["loss"] for fields in allocation.of("attempt_ended")} == {0.5}
    nodes = {fields["nodes"][0] for fields in allocation.of("attempt_started")}
    assert nodes == {"vnode1", "vnode2"}
    assert allocation.of("allocation_started")[0]["nodes"] == ["vnode1", "vnode2"]
    (ended,) = allocation.of("allocation_ended")
    assert 0 < ended["busy_slot_seconds"] <= ended["slot_seconds"]
    logs = list(allocation.paths.incarnation("1", 0).root.glob("*.log"))
    assert len(logs) == (5 if transport == "files" else 1)
    # Two logs a node and two for the allocation, and no payload has left a file of its own.
    tree = [path for path in allocation.paths.root.rglob("*") if path.is_file()]
    assert len([path for path in tree if path.suffix == ".log"]) == len(logs) + 1
    assert not [path for path in tree if "1.0.1.1" in str(path)]
    assert len(tree) == len(logs) + 4, tree


def test_an_old_interpreter_without_any_packages_runs_an_allocation(make: Make) -> None:
    old = Path.home() / ".pyenv/versions/3.9.18/bin/python"
    if not old.exists():
        pytest.skip(f"no Python 3.9 at {old}")
    allocation = make()
    allocation.python = (str(old), "-S", "-E")
    allocation.define(OK)
    allocation.order(*range(6))
    allocation.tell("close")
    assert allocation.start().wait(60) == 0
    assert allocation.states() == {str(number): "succeeded" for number in range(6)}
    assert allocation.events()[0].fields["python"].startswith("3.9.")


@pytest.mark.fault("agent killed")
def test_an_agent_killed_costs_only_what_ran_on_its_node(make: Make) -> None:
    allocation = make()
    allocation.define("sleep 60", shape=Shape(gpus_per_node=2))
    allocation.order(0, 1)
    allocation.start()
    wait_until(lambda: len(allocation.of("attempt_started")) == 2)
    os.kill(allocation.pid_of(0), signal.SIGKILL)
    (lost,) = wait_until(lambda: allocation.of("node_lost"))
    assert lost == {"node": "vnode1", "reason": "its agent was killed by SIGKILL"}
    (ended,) = wait_until(lambda: allocation.of("attempt_ended"))
    assert (ended["state"], ended["blame"]) == ("failed", "node")
    allocation.tell("stop", attempt="1.1.1.1", outcome="cancelled", reason="enough")
    allocation.tell("stop", attempt="1.0.1.1", outcome="cancelled", reason="enough")
    wait_until(lambda: sorted(allocation.states().values()) == ["cancelled", "failed"])


@pytest.mark.fault("walltime or preemption")
def test_before_the_walltime_ends_payloads_are_cut_off_and_the_rest_handed_back(
    make: Make,
) -> None:
    # A busy machine may need most of a short walltime to start anything: then a longer one tells.
    for walltime_s in (6.0, 24.0, 96.0):
        allocation = make(walltime_s=walltime_s, drain_margin_s=walltime_s / 3)
        allocation.define("sleep 600", expected_s=1.0, warn_s=0.5, kill_s=0.5)
        allocation.order(*range(6))
        began = time.monotonic()
        assert allocation.start().wait(2 * walltime_s + 60) == 0
        in_time = time.monotonic() - began < walltime_s
        if in_time and len(allocation.of("attempt_started")) == 4:
            break
    assert in_time
    assert sorted(allocation.states().values()) == ["timed_out"] * 4
    assert {f["blame"] for f in allocation.of("attempt_ended")} == {"walltime"}
    handed_back = [a for fields in allocation.of("handed_back") for a in fields["attempts"]]
    assert sorted(handed_back) == ["1.4.1.1", "1.5.1.1"]
    assert allocation.of("allocation_ended")[0]["reason"] == "the walltime ends"


@pytest.mark.fault("second job of a tag, or requeued")
def test_a_second_job_of_a_tag_leaves_and_runs_nothing(make: Make) -> None:
    allocation = make()
    allocation.define("sleep 60")
    allocation.order(0)
    allocation.start("1")
    wait_until(lambda: allocation.of("attempt_started"))
    assert allocation.start("2").wait(60) == 0
    assert not allocation.paths.incarnation("2", 0).root.exists()
    assert allocation.events("1")


@pytest.mark.fault("walltime or preemption")
def test_a_signal_of_the_batch_system_preempts_what_runs(make: Make) -> None:
    allocation = make()
    allocation.define("sleep 60", warn_s=0.3, kill_s=0.3)
    allocation.order(0)
    job = allocation.start()
    wait_until(lambda: allocation.of("attempt_started"))
    job.send_signal(signal.SIGTERM)
    assert job.wait(60) == 0
    assert allocation.states() == {"0": "preempted"}


@pytest.mark.fault("walltime or preemption")
def test_repeated_warnings_of_the_batch_system_count_as_one(make: Make, tmp_path: Path) -> None:
    """Grid Engine sends each of its warnings twice within a millisecond, and may send another."""
    allocation = make(nodes=1)
    warned, goes_on = tmp_path / "warned", tmp_path / "goes-on"
    program = f"trap 'echo 1 >>{warned}' USR2; echo up >{goes_on}; while :; do sleep 0.1; done"
    allocation.define(program, warn_s=3.0, kill_s=0.3)
    allocation.order(0)
    job = allocation.start()
    wait_until(goes_on.exists, 60)

    for _ in range(2):
        job.send_signal(signal.SIGUSR2)
    wait_until(warned.exists, 60)
    job.send_signal(signal.SIGUSR2)

    assert job.wait(60) == 0
    assert warned.read_text() == "1\n"
    assert len(allocation.of("draining")) == 1
    assert allocation.states() == {"0": "preempted"}


@pytest.mark.fault("leader killed")
@pytest.mark.parametrize("transport", ["tcp", "files"])
def test_agents_of_a_killed_leader_end_their_payloads_and_leave(
    make: Make, tmp_path: Path, transport: str
) -> None:
    allocation = make(nodes=1, transport=transport)
    allocation.define(f"echo $$ > {tmp_path}/payload; exec sleep 300", warn_s=0.2, kill_s=0.2)
    allocation.order(0)
    job = allocation.start()
    payload = wait_until(lambda: _number(tmp_path / "payload"))
    agent = allocation.pid_of(0)
    job.kill()
    wait_until(lambda: not Path(f"/proc/{agent}").exists(), timeout=60)
    assert not Path(f"/proc/{payload}").exists()


def test_a_launcher_starts_the_agents_that_its_environment_numbers(make: Make) -> None:
    allocation = make(nodes=1, launcher=("env", "SLURM_NODEID=0"))
    allocation.define(OK)
    allocation.order(0, 1)
    allocation.tell("close")
    assert allocation.start().wait(60) == 0
    assert allocation.states() == {"0": "succeeded", "1": "succeeded"}


@pytest.mark.parametrize("variable", ["JSM_NAMESPACE_RANK", "PALS_RANKID", "FLUX_TASK_RANK"])
def test_a_launcher_is_told_how_many_agents_and_numbers_them(
    make: Make, tmp_path: Path, variable: str
) -> None:
    jsrun = tmp_path / "jsrun"
    jsrun.write_text(
        f'#!/bin/sh\n[ "$1" = -n ] || exit 9\nnodes=$2; shift 2\n'
        f'for i in $(seq 0 $((nodes - 1))); do {variable}=$i "$@" & done\nwait\n'
    )
    jsrun.chmod(0o700)
    allocation = make(nodes=2, launcher=(str(jsrun), "-n", "{nodes}"))
    allocation.define(OK)
    allocation.order(0, 1, 2, 3)
    allocation.tell("close")
    assert allocation.start().wait(60) == 0
    assert set(allocation.states().values()) == {"succeeded"}
    assert len(allocation.states()) == 4
    assert [len(fields["nodes"]) for fields in allocation.of("allocation_started")] == [2]
    assert allocation.of("node_lost") == []


@pytest.mark.fault("launcher broken")
@pytest.mark.parametrize(
    ("launcher", "says"),
    [
        (("false",), "the launcher of the agents ended with exit code 1"),
        (("/no/such/launcher",), "/no/such/launcher"),
    ],
)
def test_a_launcher_that_fails_ends_the_allocation_and_hands_everything_back(
    make: Make, launcher: tuple[str, ...], says: str
) -> None:
    allocation = make(launcher=launcher)
    allocation.define(OK)
    allocation.order(0)
    assert allocation.start().wait(60) == 1
    assert says in allocation.of("node_lost")[0]["reason"]
    assert [fields["attempts"] for fields in allocation.of("handed_back")] == [["1.0.1.1"]]
    assert allocation.of("allocation_ended")[0]["reason"] == "every node is lost"


@pytest.mark.fault("two daemons")
def test_orders_of_a_newer_epoch_are_obeyed_and_the_older_fenced(make: Make) -> None:
    allocation = make()
    allocation.define(OK)
    allocation.order(0)
    allocation.start()
    wait_until(lambda: "0" in allocation.states())
    older = allocation.log
    allocation.log = LogWriter(FILES, allocation.paths.orders(2), time.time, time.monotonic)
    allocation.tell("open", version=1, epoch=2, spool_id="aaaaa", by="another")
    allocation.define(OK)
    allocation.order(0, 1)
    wait_until(lambda: "1" in allocation.states())
    older.append("order", {"attempt": "1.9.1.1"})
    older.close()
    assert allocation.of("fenced") == [{"epoch": 2, "last_seq": 3}]
    assert len(allocation.of("attempt_started")) == 2
    again = [f["attempt"] for f in allocation.of("attempt_ended")]
    assert sorted(again) == ["1.0.1.1", "1.0.1.1", "1.1.1.1"]


def test_a_stop_file_drains_and_lets_what_runs_finish(make: Make, tmp_path: Path) -> None:
    allocation = make()
    go_on = tmp_path / "go_on"
    command = f"until [ -e {go_on} ]; do sleep 0.1; done; {OK}"
    allocation.define(command, shape=Shape(gpus_per_node=2))
    allocation.order(0, 1, 2)
    job = allocation.start()
    wait_until(lambda: len(allocation.of("attempt_started")) == 2)
    allocation.spool.stop.touch()
    wait_until(lambda: allocation.of("handed_back"))
    go_on.touch()
    assert job.wait(60) == 0
    assert allocation.states() == {"0": "succeeded", "1": "succeeded"}
    assert [fields["attempts"] for fields in allocation.of("handed_back")] == [["1.2.1.1"]]


@pytest.mark.fault("second job of a tag, or requeued")
def test_a_requeued_job_runs_what_is_left_and_nothing_twice(make: Make) -> None:
    allocation = make()
    allocation.define(OK)
    allocation.order(0)
    first = allocation.start()
    wait_until(lambda: allocation.states() == {"0": "succeeded"})
    first.send_signal(signal.SIGTERM)
    first.wait(60)
    allocation.order(1)
    allocation.tell("close")
    assert allocation.start(restart="1").wait(60) == 0
    assert allocation.states(restart=1) == {"0": "succeeded", "1": "succeeded"}
    started = [fields["attempt"] for fields in allocation.of("attempt_started", restart=1)]
    assert started == ["1.1.1.1"]


def test_an_order_becomes_a_running_payload_within_a_quarter_second(make: Make) -> None:
    allocation = make()
    allocation.define(OK)
    allocation.start()
    wait_until(lambda: allocation.of("allocation_started"))
    delays: list[float] = []

    def runs_at_once() -> bool:
        allocation.order(len(delays))
        began = time.monotonic()
        wait_until(lambda: len(allocation.states()) == len(delays) + 1)
        delays.append(time.monotonic() - began)
        return delays[-1] < 0.25

    wait_until(runs_at_once)  # on a busy machine the fifth or tenth


def test_an_idle_allocation_uses_next_to_no_cpu(make: Make) -> None:
    allocation = make(nodes=1)
    job = allocation.start()
    wait_until(lambda: allocation.of("allocation_started"))

    def ticks() -> int:
        fields = Path(f"/proc/{job.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    def rests() -> bool:
        before, began = ticks(), time.monotonic()
        wait_until(lambda: time.monotonic() - began > 3.0)
        return ticks() - before <= 6  # hundredths of a second, in three seconds

    wait_until(rests)  # not while it still starts


@pytest.mark.fault("definition or order wrong")
@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (b"{", "not JSON"),
        (b'{"tag": "haaaaa-bbbbbb"}', "missing"),
        (None, "allocation.json"),
    ],
)
def test_a_plan_that_cannot_be_read_is_refused_in_one_sentence(
    make: Make, plan: bytes | None, says: str
) -> None:
    allocation = make()
    if plan is None:
        allocation.paths.plan.unlink()
    else:
        allocation.paths.plan.write_bytes(plan)
    run = subprocess.run(
        [sys.executable, str(allocation.pyz), "lead", str(allocation.spool.root), TAG],
        env={**os.environ, "SLURM_JOB_ID": "5"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert 64 <= run.returncode <= 78
    assert says in run.stderr
    assert "Traceback" not in run.stderr
    assert len(run.stderr.splitlines()) == 1


@pytest.mark.fault("hostile")
def test_the_secret_is_in_no_command_line_environment_or_log(make: Make) -> None:
    allocation = make()
    allocation.define("cat /proc/$PPID/cmdline; env; sleep 20")
    allocation.order(0)
    allocation.start()
    wait_until(lambda: allocation.of("attempt_started"))
    mine = allocation.paths.incarnation("1", 0)
    secret = mine.secret.read_text().strip()
    for pid in (allocation.pid_of(0), allocation.jobs[0].pid):
        shown = (
            Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
        )
        assert secret.encode() not in shown
    written = json.dumps([record.fields for record in allocation.events()])
    assert secret not in written
