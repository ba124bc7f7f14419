"""Payloads that share a GPU through NVIDIA's Multi-Process Service; its program is a fake."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from payload_runner.placement import GpuShare, Slot
from tests.node_agent import ATTEMPT, NEXT_ATTEMPT, AgentProcess
from tests.support import wait_until

# Leaves a daemon in the background as the real one does, which ends when it is told to.
CONTROL = """#!/bin/sh
echo "$0 $* CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-unset}" >> "$MPS_TEST_LOG"
[ -z "$MPS_TEST_FAILS" ] || exit 1
if [ "$1" = -d ]; then
    setsid sh -c 'echo $$ > "$CUDA_MPS_PIPE_DIRECTORY/pid"; exec sleep 1000' &
    while [ ! -s "$CUDA_MPS_PIPE_DIRECTORY/pid" ]; do :; done
else
    read -r word; echo "$word" >> "$MPS_TEST_LOG"; kill "$(cat "$CUDA_MPS_PIPE_DIRECTORY/pid")"
fi
"""
SHOW = "env | grep CUDA_MPS | sort; exit 1"
HALF = Slot(node=0, hosts=("node0",), gpus=(GpuShare(1, 0.5),))
WHOLE = Slot(node=0, hosts=("node0",), gpus=(GpuShare(0),))
Start = Callable[..., AgentProcess]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "control.log"


@pytest.fixture
def start(tmp_path: Path, log: Path) -> Start:
    """Starts an agent of a node that has the control program."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "nvidia-cuda-mps-control").write_text(CONTROL)
    (tools / "nvidia-cuda-mps-control").chmod(0o755)

    def started(**more: str) -> AgentProcess:
        path = f"{tools}:{os.environ['PATH']}"
        visible = {"PATH": path, "MPS_TEST_LOG": str(log), "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
        return AgentProcess(tmp_path, environ={**visible, **more})

    return started


def shown(agent: AgentProcess, slot: Slot, attempt: str = ATTEMPT) -> dict[str, str]:
    """The service's variables that a payload sees."""
    told = str(agent.run(SHOW, attempt, slot=slot).stdout)
    return dict(line.split("=", 1) for line in told.splitlines())


def test_daemon_serves_the_shares_and_ends_with_the_agent(start: Start, log: Path) -> None:
    with start() as agent:
        assert shown(agent, WHOLE) == {}
        assert not log.exists()
        found = shown(agent, HALF, NEXT_ATTEMPT)
        place = Path(found["CUDA_MPS_PIPE_DIRECTORY"])
        assert found["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "50"
        assert place.stat().st_mode & 0o777 == 0o700
        daemon = int((place / "pid").read_text())
    calls = log.read_text().splitlines()
    assert calls[0].endswith("-d CUDA_VISIBLE_DEVICES=unset")
    assert calls[-1] == "quit"
    wait_until(lambda: not _lives(daemon))
    assert not place.exists()


def test_daemon_of_the_job_is_used(start: Start, log: Path) -> None:
    with start(CUDA_MPS_PIPE_DIRECTORY="/tmp/theirs") as agent:
        assert shown(agent, HALF) == {
            "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "50",
            "CUDA_MPS_PIPE_DIRECTORY": "/tmp/theirs",
        }
    assert not log.exists()


def test_payloads_take_turns_where_it_does_not_start(start: Start, log: Path) -> None:
    with start(MPS_TEST_FAILS="yes") as agent:
        assert shown(agent, HALF) == {}
        assert shown(agent, HALF, NEXT_ATTEMPT) == {}
    assert len(log.read_text().splitlines()) == 1


@pytest.mark.fault("agent killed")
def test_daemon_does_not_outlive_an_agent_that_was_killed(start: Start) -> None:
    with start() as agent:
        place = Path(shown(agent, HALF)["CUDA_MPS_PIPE_DIRECTORY"])
        daemon = int((place / "pid").read_text())
        agent.process.kill()
        wait_until(lambda: not _lives(daemon), 60.0)


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
