"""Payloads that are stopped: warned, saved, ended, and resumed elsewhere; and lost leaders."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from payload_runner.protocol import (
    CheckpointRule,
    CheckpointSaved,
    InputFile,
    Order,
    from_fields,
    to_fields,
)
from tests.node_agent import ATTEMPT, GOOD, NEXT_ATTEMPT, ROOT, AgentProcess, processes_of
from tests.support import wait_until

# Counts on from its checkpoint and saves after each step; ON_TERM: also at SIGTERM, then leaves.
COUNTER = textwrap.dedent(
    """
    import json, os, pathlib, signal, sys, time
    state = pathlib.Path("ckpt/state")
    step = first = int(state.read_text()) if state.exists() else 0
    def save():
        state.parent.mkdir(exist_ok=True)
        pathlib.Path("part").write_text(str(step))
        os.replace("part", state)
    def leave(*_):
        save()
        sys.exit(143)
    if "ON_TERM" in os.environ:
        signal.signal(signal.SIGTERM, leave)
    pathlib.Path("ready").touch()
    while step < int(os.environ["STEPS"]):
        step += 1
        if "ON_TERM" not in os.environ:
            save()
        print(step, flush=True)
        time.sleep(0.02)
    json.dump({"loss": step, "message": f"from {first}"}, open("output.json", "w"))
    """
)
RULE = CheckpointRule(("ckpt",), interval_s=600.0)
COUNT = "python3 -S count.py"
LONG = f"1000.{os.getpid()}"  # seconds, in digits that no other test sleeps


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentProcess]:
    with AgentProcess(tmp_path) as running:
        yield running


def script(agent: AgentProcess) -> InputFile:
    return agent.add_input("count.py", COUNTER.encode())


def count(agent: AgentProcess, attempt: str, **environment: str) -> None:
    """Start an endless counter and wait for its first steps."""
    agent.start(
        COUNT,
        attempt,
        files=(script(agent),),
        checkpoint=RULE,
        warn_s=0.1,
        environment={"STEPS": "1000000", **environment},
    )
    wait_until_ready(agent, attempt)


def wait_until_ready(agent: AgentProcess, attempt: str) -> None:
    """The payload has made its file ``ready``."""
    agent.wait_while_listening(lambda: any(agent.spool.work.glob(f"*/{attempt}/ready")))


def saved(agent: AgentProcess, attempt: str) -> CheckpointSaved:
    return from_fields(CheckpointSaved, agent.told("checkpoint", attempt)[-1])


@pytest.mark.fault("walltime or preemption")
@pytest.mark.parametrize("environment", [{}, {"ON_TERM": "1"}], ids=["deaf", "saves at SIGTERM"])
def test_cut_off_payload_goes_on_from_its_checkpoint(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    with AgentProcess(tmp_path) as first:
        count(first, ATTEMPT, **environment)
        first.drain(8.0)
        ended = first.outcome(ATTEMPT)
        assert (ended.state, ended.blame, ended.progress) == ("timed_out", "walltime", True)
        assert ended.reason == "the walltime ends"
        file = saved(first, ATTEMPT).file
    with AgentProcess(tmp_path) as second:
        ended = second.run(
            COUNT,
            NEXT_ATTEMPT,
            files=(script(second),),
            checkpoint=RULE,
            resume=file,
            resume_of=ATTEMPT,
            environment={"STEPS": "1"},
        )
        (started,) = second.told("attempt_started")
    assert started["resumed_from"] == ATTEMPT
    assert (ended.state, ended.progress) == ("succeeded", False)
    match = re.fullmatch(r"from (\d+)", str(ended.message))
    assert match is not None
    assert int(match.group(1)) > 0


@pytest.mark.fault("archive torn or tampered with")
def test_tampered_checkpoint_means_a_start_from_zero_with_a_note(agent: AgentProcess) -> None:
    count(agent, ATTEMPT, ON_TERM="1")
    agent.drain(4.0)
    agent.outcome(ATTEMPT)
    file = saved(agent, ATTEMPT).file
    path = agent.spool.committed(file)
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(bytes(data))
    ended = agent.run(
        COUNT,
        NEXT_ATTEMPT,
        files=(script(agent),),
        checkpoint=RULE,
        resume=file,
        resume_of=ATTEMPT,
        environment={"STEPS": "1"},
    )
    assert (ended.state, ended.message) == ("succeeded", "from 0")
    (refused,) = agent.told("checkpoint_refused", NEXT_ATTEMPT)
    assert "not restored, started from zero" in refused["reason"]
    assert "resumed_from" not in agent.told("attempt_started", NEXT_ATTEMPT)[0]


def test_checkpoint_is_saved_while_the_payload_runs(agent: AgentProcess) -> None:
    rule = CheckpointRule(("state",), interval_s=0.1)
    agent.start("echo 1 > state; sleep 1000", ATTEMPT, checkpoint=rule)
    agent.wait_for("checkpoint", ATTEMPT)
    agent.stop(ATTEMPT)
    ended = agent.outcome(ATTEMPT)
    assert (ended.state, ended.progress) == ("cancelled", True)
    assert len(agent.told("checkpoint", ATTEMPT)) == 1


@pytest.mark.fault("checkpoint over its limit")
def test_refused_checkpoint_is_told_and_the_payload_goes_on(agent: AgentProcess) -> None:
    rule = CheckpointRule(("../state",), interval_s=0.1)
    assert agent.run(GOOD, ATTEMPT, checkpoint=rule).state == "succeeded"
    (refused,) = agent.told("checkpoint_refused")
    assert refused["reason"] == "checkpoint path '../state' leaves the working directory"


@pytest.mark.fault("checkpoint over its limit")
@pytest.mark.slow
def test_checkpoint_over_100_million_bytes_is_refused_by_its_largest_files(
    agent: AgentProcess,
) -> None:
    command = f"""mkdir ckpt; head -c 101000000 /dev/urandom > ckpt/weights
    echo 1 > ckpt/step; touch ready; until [ -e go-on ]; do sleep 0.1; done; {GOOD}"""
    agent.start(command, ATTEMPT, checkpoint=CheckpointRule(("ckpt",), interval_s=0.5))
    refused = agent.wait_for("checkpoint_refused", ATTEMPT, timeout=200)
    assert "over 100000000 bytes when packed" in refused["reason"]
    assert "largest: ckpt/weights (101.0 MB)" in refused["reason"]
    (workdir,) = agent.spool.work.glob(f"*/{ATTEMPT}")
    (workdir / "go-on").touch()
    assert agent.outcome(ATTEMPT).state == "succeeded"
    assert agent.told("checkpoint", ATTEMPT) == []


@pytest.mark.fault("very many files")
@pytest.mark.parametrize("count", [25_000])
@pytest.mark.timeout(1800)
def test_very_many_files_are_refused_and_keep_nobody_waiting(
    agent: AgentProcess, count: int
) -> None:
    make = f"""import os
os.mkdir("ckpt")
for n in range({count}): os.close(os.open(f"ckpt/{{n}}", os.O_CREAT))
"""
    item = agent.add_input("make.py", make.encode())
    command = f"python3 -S make.py; touch ready; until [ -e go-on ]; do sleep 0.1; done; {GOOD}"
    rule = CheckpointRule(("ckpt",), interval_s=0.5)
    agent.start(command, ATTEMPT, files=(item,), checkpoint=rule)
    agent.wait_while_listening(lambda: any(agent.spool.work.glob(f"*/{ATTEMPT}/ready")), 1200)
    refused = agent.wait_for("checkpoint_refused", ATTEMPT, timeout=300)
    assert "ckpt: more than 20000 files" in refused["reason"]
    assert agent.run(GOOD, NEXT_ATTEMPT).state == "succeeded"
    (workdir,) = agent.spool.work.glob(f"*/{ATTEMPT}")
    (workdir / "go-on").touch()
    assert agent.outcome(ATTEMPT).state == "succeeded"
    # They go behind the outcome's back.
    agent.wait_while_listening(lambda: not any(agent.spool.work.glob("*/*/ckpt")), 600)
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{agent.process.pid}/status").read_text())
    assert peak is not None
    assert int(peak[1]) < 64 * 1024


SAVING = f"end() {{ sleep 0.3; {GOOD}; exit 0; }}; trap end USR2; touch ready"
FOR_EVER = "while :; do sleep 0.05; done"


def test_finishing_during_the_grace_is_a_success(agent: AgentProcess) -> None:
    agent.start(f"{SAVING}; {FOR_EVER}", ATTEMPT)
    wait_until_ready(agent, ATTEMPT)
    agent.drain(30.0)
    assert agent.outcome(ATTEMPT).state == "succeeded"


@pytest.mark.fault("deaf to signals")
def test_warning_does_not_kill_who_does_not_know_it(agent: AgentProcess) -> None:
    """The shell has no handler; its child has one and needs a moment to save."""
    item = agent.add_input("child.sh", f"{SAVING}; {FOR_EVER}".encode())
    agent.start("sh child.sh; true", ATTEMPT, files=(item,))
    wait_until_ready(agent, ATTEMPT)
    agent.drain(30.0)
    assert agent.outcome(ATTEMPT).state == "succeeded"


def test_stop_file_reaches_those_without_signals(agent: AgentProcess) -> None:
    agent.start(f"while [ ! -e .harvester-stop ]; do sleep 0.05; done; {GOOD}", ATTEMPT)
    agent.wait_for("attempt_started")
    agent.drain(30.0)
    assert agent.outcome(ATTEMPT).state == "succeeded"


def test_client_tells_when_to_stop_and_relays_reports(agent: AgentProcess) -> None:
    body = """
        import json, sys
        import client
        step = 0
        while not client.should_stop() and client.time_left() > 0:
            step += 1
            client.report(1, 0.5, accuracy=0.25, broken=float("nan"))
        json.dump({"loss": step}, open("output.json", "w"))
    """
    library = (ROOT / "payload_runner" / "client.py").read_bytes()
    files = (
        agent.add_input("client.py", library),
        agent.add_input("main.py", textwrap.dedent(body).encode()),
    )
    agent.start("python3 -S main.py", ATTEMPT, files=files)
    wait_until(lambda: processes_of(ATTEMPT))
    agent.wait_for("reports", ATTEMPT)
    agent.drain(30.0)
    assert agent.outcome(ATTEMPT).state == "succeeded"
    reports = [tuple(event["values"]) for event in agent.told("reports")]
    assert set(map(str, reports)) == {str(({"loss": 0.5, "accuracy": 0.25, "step": 1},))}


def test_client_hint_saves_the_checkpoint_soon(agent: AgentProcess) -> None:
    library = (ROOT / "payload_runner" / "client.py").read_bytes()
    files = (agent.add_input("client.py", library),)
    agent.start(
        "echo whole > state; python3 -S -c 'import client; client.checkpoint(\"state\")'; sleep 99",
        ATTEMPT,
        files=files,
        checkpoint=CheckpointRule(("state",), interval_s=600.0),
    )
    agent.wait_for("checkpoint", ATTEMPT)
    agent.stop(ATTEMPT)
    agent.outcome(ATTEMPT)


def test_preempted_is_told_as_such(agent: AgentProcess) -> None:
    agent.start("sleep 1000", ATTEMPT, warn_s=0.1)
    agent.wait_for("attempt_started")
    agent.drain(5.0, "preempted")
    ended = agent.outcome(ATTEMPT)
    assert (ended.state, ended.blame, ended.progress) == ("preempted", "site", False)


def test_second_drain_with_less_time_is_obeyed(agent: AgentProcess) -> None:
    agent.start("sleep 1000", ATTEMPT, warn_s=500.0)
    agent.wait_for("attempt_started")
    agent.drain(1000.0)
    agent.drain(0.5)
    assert agent.outcome(ATTEMPT).state == "timed_out"


def test_signalled_agent_ends_its_payloads_and_leaves(agent: AgentProcess) -> None:
    agent.start("sleep 1000", ATTEMPT, warn_s=0.1)
    agent.wait_for("attempt_started")
    agent.process.send_signal(signal.SIGUSR1)  # a batch system's warning must not kill it
    agent.process.terminate()
    assert agent.outcome(ATTEMPT).state == "preempted"
    assert agent.process.wait(60.0) == 0


def test_agent_that_was_told_to_end_begins_nothing_more(agent: AgentProcess) -> None:
    agent.start("trap '' TERM; touch deaf; sleep 1000", ATTEMPT, warn_s=0.1, kill_s=3.0)
    agent.wait_for("attempt_started")
    agent.process.terminate()
    agent.wait_for("closing")
    agent.start("sleep 1000", NEXT_ATTEMPT)
    end = agent.outcome(NEXT_ATTEMPT)
    assert (end.state, end.blame) == ("preempted", "site")
    assert agent.told("attempt_started", NEXT_ATTEMPT) == []
    assert agent.process.wait(60.0) == 0


def test_what_is_queued_does_not_begin_past_the_drain_point(agent: AgentProcess) -> None:
    agent.start(f"{GOOD}; while [ ! -e '{agent.spool.root}/go' ]; do sleep 0.05; done", ATTEMPT)
    agent.wait_for("attempt_started")
    last = f"1.{os.getpid()}.1.3"
    for attempt in (NEXT_ATTEMPT, last):
        order = Order(attempt, "1", attempt.split(".")[1], ATTEMPT, {})
        agent.send("queue", {"order": to_fields(order), "remaining_s": 0.0})
    agent.stop(last)
    assert agent.outcome(last).state == "cancelled"  # so all of this was heard
    (agent.spool.root / "go").touch()
    assert agent.outcome(ATTEMPT).state == "succeeded"
    assert agent.wait_for("unstarted")["attempts"] == [NEXT_ATTEMPT]


def signal_payload(agent: AgentProcess, attempt: str) -> None:
    """As a batch system does that signals every process of a step."""
    for pid in processes_of(attempt):
        with contextlib.suppress(ProcessLookupError):  # the shell leaves with its child
            os.kill(pid, signal.SIGTERM)


def test_payload_signalled_before_its_agent_is_preempted(agent: AgentProcess) -> None:
    count(agent, ATTEMPT)
    signal_payload(agent, ATTEMPT)
    wait_until(lambda: not processes_of(ATTEMPT))
    agent.process.send_signal(signal.SIGTERM)
    end = agent.outcome(ATTEMPT)
    assert (end.state, end.blame) == ("preempted", "site")


def test_payload_that_ends_itself_by_a_signal_is_to_blame(agent: AgentProcess) -> None:
    count(agent, ATTEMPT)
    signal_payload(agent, ATTEMPT)
    end = agent.outcome(ATTEMPT)
    assert (end.state, end.blame) == ("failed", "point")


@pytest.mark.fault("agent killed")
def test_killed_agent_takes_its_payloads_with_it(agent: AgentProcess) -> None:
    agent.start("setsid sleep 1000 & sleep 1000", ATTEMPT)
    wait_until(lambda: len(processes_of(ATTEMPT)) >= 2)
    agent.process.kill()
    wait_until(lambda: processes_of(ATTEMPT) == [])


@pytest.mark.fault("leader killed")
def test_agent_that_loses_its_leader_ends_its_payloads_and_leaves(tmp_path: Path) -> None:
    with AgentProcess(tmp_path) as agent:
        agent.start("sleep 1000", ATTEMPT, warn_s=0.1)
        agent.wait_for("attempt_started")
        agent.port.close()
        assert agent.process.wait(60.0) != 0
        assert processes_of(ATTEMPT) == []
        assert os.listdir(agent.spool.work) == []


def test_dismissed_agent_leaves_nothing(tmp_path: Path) -> None:
    with AgentProcess(tmp_path) as agent:
        agent.run(f"(setsid env -i sleep {LONG} &); {GOOD}", ATTEMPT)
        agent.send("leave", {})
        assert agent.process.wait(60.0) == 0
    assert os.listdir(agent.spool.work) == []
    assert [
        pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if is_sleep(pid)
    ] == []


def is_sleep(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return (
            words[:2] == [b"sleep", LONG.encode()]
            and b"HARVESTER" not in Path(f"/proc/{pid}/environ").read_bytes()
        )
    except OSError:
        return False
