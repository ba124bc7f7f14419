"""A payload in a real container, by bubblewrap over a root made of this machine's own files."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from payload_runner.protocol import Container
from tests.node_agent import ATTEMPT, AgentProcess, make_plan, processes_of

pytestmark = pytest.mark.live


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentProcess]:
    image = tmp_path / "images" / "tiny_1"
    for folder in ("proc", "dev", "tmp", "srv/workDir", "etc"):
        (image / folder).mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "usr"):
        _mirror(Path("/") / name, image / name)
    _require_bwrap(image)
    plan = make_plan(container_runtime="bwrap", image_dir=str(tmp_path / "images"))
    with AgentProcess(tmp_path, plan) as running:
        yield running


IMAGE = Container("docker://tiny:1", ("--ro-bind", "/usr", "/usr"))


def test_payload_sees_its_directory_and_not_the_spool(agent: AgentProcess) -> None:
    item = agent.add_input(
        "run.sh", b"#!/bin/sh\npwd; cat input.json; touch /evil || echo read-only\n"
    )
    item = type(item)(item.name, item.sha256, item.size, executable=True)
    spool = agent.spool.root
    command = f"""run.sh; ls {spool} 2>/dev/null; echo '{{"loss": 1}}' > output.json; exit 1"""
    ended = agent.run(command, container=IMAGE, files=(item,))
    assert ended.stdout == '/srv/workDir\n{"x": 1}read-only\n'


def test_result_comes_out_and_orphans_do_not_stay(agent: AgentProcess) -> None:
    command = """(setsid sleep 1000 &); echo '{"loss": 2}' > output.json"""
    ended = agent.run(command, ATTEMPT, container=IMAGE)
    assert (ended.state, ended.loss) == ("succeeded", 2.0)
    assert processes_of(ATTEMPT) == []


def test_missing_image_is_told(agent: AgentProcess) -> None:
    ended = agent.run("true", container=Container("docker://other:2"))
    assert (ended.state, ended.blame) == ("failed", "site")
    assert "container image docker://other:2: neither" in str(ended.reason)


def _mirror(source: Path, target: Path) -> None:
    if source.is_symlink():
        target.symlink_to(source.readlink())
    elif source.is_dir():
        target.mkdir()


def _require_bwrap(image: Path) -> None:
    if shutil.which("bwrap") is None:
        pytest.skip("bwrap is not installed")
    tried = subprocess.run(
        ["bwrap", "--ro-bind", str(image), "/", "--ro-bind", "/usr", "/usr", "/bin/true"],
        capture_output=True,
        text=True,
    )
    if tried.returncode != 0:
        pytest.skip(f"bwrap cannot make namespaces here: {tried.stderr.strip()}")
