"""The agent on the oldest Python that a compute node may have, without any site packages."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from payload_runner.protocol import CheckpointRule
from tests.node_agent import GOOD, AgentProcess

PYTHONS = ["3.9", "3.11", "3.13"]


def find_python(version: str) -> str:
    """An interpreter of a version, or skip."""
    candidates = [shutil.which(f"python{version}"), sys.executable]
    candidates += map(str, sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python")))
    for candidate in filter(None, candidates):
        tried = subprocess.run([candidate, "--version"], capture_output=True, text=True)
        if tried.stdout.startswith(f"Python {version}."):
            return candidate
    pytest.skip(f"no Python {version} on this machine")


@pytest.mark.parametrize("version", PYTHONS)
def test_agent_runs_without_site_packages(tmp_path: Path, version: str) -> None:
    with AgentProcess(tmp_path, python=(find_python(version), "-S", "-s")) as agent:
        ended = agent.run(
            f"""echo 1 > state; echo '{{"step": 1, "loss": 2}}' > metrics.jsonl; {GOOD}""",
            checkpoint=CheckpointRule(("state",)),
            metrics_name="state",
        )
        assert ended.state == "succeeded"
        assert ended.metrics_file is not None
        assert agent.told("reports")[0]["values"] == [{"step": 1, "loss": 2}]


def test_agent_stays_small(tmp_path: Path) -> None:
    with AgentProcess(tmp_path, python=(sys.executable, "-S", "-s")) as agent:
        for number in range(20):
            agent.run(GOOD, f"1.{number}.1.1")
        status = Path(f"/proc/{agent.process.pid}/status").read_text()
        (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
        assert int(peak) <= 25 * 1024


def test_payloads_follow_each_other_quickly(tmp_path: Path) -> None:
    """Many short ones at once: none is lost and nothing is left of them."""
    with AgentProcess(tmp_path) as agent:
        names = [agent.start(GOOD, f"1.{number}.1.1") for number in range(100)]
        states = [agent.outcome(name).state for name in names]
        assert states == ["succeeded"] * 100
        agent.wait_while_listening(lambda: list(agent.spool.work.glob("*/1.*")) == [])
        fds = list(Path(f"/proc/{agent.process.pid}/fd").iterdir())
        assert len(fds) < 25
