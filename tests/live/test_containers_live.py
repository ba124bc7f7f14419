"""Payloads in real containers: bubblewrap, Charliecloud and Podman."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from payload_runner.files import RealFiles
from payload_runner.logfile import LogWriter
from payload_runner.placement import Slot
from payload_runner.protocol import Container, Order, PayloadSpec, to_fields
from payload_runner.replay import find_attempt, replay
from tests.container_image import FILE, NAME, SEARCHED, Podman, make_root, require
from tests.node_agent import ATTEMPT, GOOD, NEXT_ATTEMPT, TAG, AgentProcess, make_plan, processes_of
from tests.support import wait_until

pytestmark = pytest.mark.live

IMAGE = Container(f"docker://{NAME}")


@dataclass(frozen=True)
class Runtime:
    """A runtime that works on this machine, with the image where it looks for it."""

    name: str
    image_dir: Path
    podman: Podman | None

    @property
    def environment(self) -> dict[str, str]:
        return dict(self.podman.environment) if self.podman else {}


@pytest.fixture(scope="module", params=sorted(SEARCHED))
def runtime(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Runtime]:
    name: str = request.param
    images = tmp_path_factory.mktemp("images")
    root = make_root(images / FILE)
    podman = None
    if name == "podman" and os.path.exists("/usr/bin/podman"):
        podman = Podman()
    with contextlib.closing(podman) if podman else contextlib.nullcontext():
        if podman is not None:
            podman.add(root, NAME)
        require(name, root, podman)
        yield Runtime(name, images, podman)


@pytest.fixture
def secret() -> str:
    return secrets.token_hex(16)


@pytest.fixture
def agent(tmp_path: Path, runtime: Runtime, secret: str) -> Iterator[AgentProcess]:
    home = tmp_path / "home"
    home.mkdir()
    (home / ".token").write_text(secret)
    environ = {**runtime.environment, "HOME": str(home), "HPC_TOKEN": secret, "NICE_HINT": secret}
    plan = make_plan(container_runtime=runtime.name, image_dir=str(runtime.image_dir))
    with AgentProcess(tmp_path, plan, environ=environ) as running:
        yield running


# Looks wherever the host's files could show: at their own places, through other processes, in /tmp.
HOSTILE = """
for place in {places}; do
  cat $place /proc/[0-9]*/root$place /proc/[0-9]*/cwd$place 2>/dev/null
  ls $place /proc/[0-9]*/root$place 2>/dev/null
done
cat /proc/[0-9]*/environ 2>/dev/null
env
ls /tmp
touch /evil /usr/bin/evil 2>/dev/null && echo the image can be written
touch "$HOME/mine" && echo home can be written
exit 1
"""


@pytest.mark.fault("hostile")
def test_hostile_payload_reaches_neither_home_nor_spool_nor_tokens(
    agent: AgentProcess, tmp_path: Path, secret: str
) -> None:
    spool = agent.spool.root
    planted = spool / "planted"
    planted.write_text(secret)
    places = (tmp_path / "home" / ".token", planted, agent.paths.secret, spool / "inputs")
    command = HOSTILE.format(places=" ".join(str(path) for path in places))
    ended = agent.run(command, ATTEMPT, container=IMAGE, keep_output_bytes=256 * 1024)
    told = str(ended.stdout)
    assert secret not in told
    assert agent.paths.secret.read_text().strip() not in told
    assert "pytest-of" not in told
    assert "the image can be written" not in told
    assert "home can be written" in told
    assert ended.blame == "point"


@pytest.mark.fault("hostile")
def test_hostile_payload_neither_forges_events_nor_raises_the_epoch_nor_ends_the_agent(
    agent: AgentProcess, tmp_path: Path, runtime: Runtime
) -> None:
    spool = agent.spool.root
    forged = agent.paths.root / "events.0-forged.log"
    outside = tmp_path / "outside"
    claims = agent.spool.leases / "999999"
    agent.spool.leases.mkdir(parents=True, exist_ok=True)
    written = " ".join(str(path) for path in (forged, outside, claims, spool / "STOP"))
    # Charliecloud shares the node's process numbers: the threat model says what that means.
    kill = "" if runtime.name == "charliecloud" else f"kill -9 {agent.process.pid};"
    command = (
        f"for path in {written}; do echo forged >$path; done;"
        f" ln -s {spool} way; echo forged >way/STOP; {kill} true"
    )

    ended = agent.run(command, ATTEMPT, container=IMAGE)
    after = agent.run(GOOD, NEXT_ATTEMPT, container=IMAGE)

    assert ended.blame == "point"
    assert (after.state, after.loss) == ("succeeded", 0.5)
    assert agent.process.poll() is None
    assert not [path for path in (forged, outside, claims, spool / "STOP") if path.exists()]


def test_payload_finds_its_files_and_its_result_comes_out(agent: AgentProcess) -> None:
    item = agent.add_input("run.sh", b"#!/bin/sh\npwd; cat input.json\n", executable=True)
    command = """run.sh; echo " $WORD $HOME"; (setsid sleep 1000 &)
    echo '{"loss": 2}' > output.json; [ -n "$KEEP" ]"""
    said = {"WORD": "given"}
    ended = agent.run(command, ATTEMPT, container=IMAGE, files=(item,), environment=said)
    assert ended.stdout == '/srv/workDir\n{"x": 1} given /srv/workDir\n'
    said["KEEP"] = "yes"
    ended = agent.run(command, NEXT_ATTEMPT, container=IMAGE, files=(item,), environment=said)
    assert (ended.state, ended.loss) == ("succeeded", 2.0)
    assert processes_of(ATTEMPT) + processes_of(NEXT_ATTEMPT) == []


@pytest.mark.fault("time or memory limit passed")
def test_memory_of_everything_in_the_container_counts(agent: AgentProcess) -> None:
    slot = Slot(node=0, hosts=("node0",), memory_mb=100)
    # What holds the memory keeps it until somebody reads: the limit is looked at now and then.
    command = "head -c 400000000 /dev/zero | tail | { sleep 60; cat; }"
    ended = agent.run(command, ATTEMPT, slot=slot, container=IMAGE)
    assert (ended.state, ended.blame) == ("failed", "point")
    assert "MB of memory, its limit is 100 MB" in str(ended.reason)
    assert processes_of(ATTEMPT) == []


def test_program_in_the_container_hears_that_it_is_to_end(agent: AgentProcess) -> None:
    command = """trap 'echo "{\\"loss\\": 3}" > output.json; exit 0' TERM
    touch ready; while :; do sleep 0.1; done"""
    agent.start(command, ATTEMPT, container=IMAGE, warn_s=0.1, kill_s=20.0)
    agent.wait_while_listening(lambda: any(agent.spool.work.glob(f"*/{ATTEMPT}/ready")), 30)
    agent.drain(100.0)
    ended = agent.outcome(ATTEMPT, 60.0)
    assert (ended.state, ended.loss) == ("succeeded", 3.0)


@pytest.mark.fault("deaf to signals")
def test_container_that_hears_nothing_is_killed(agent: AgentProcess, runtime: Runtime) -> None:
    podman = runtime.podman
    before = _containers(podman) if podman else set()
    command = "trap '' TERM; touch ready; sleep 1000; sleep 1000"
    agent.start(command, ATTEMPT, container=IMAGE)
    agent.wait_while_listening(lambda: any(agent.spool.work.glob(f"*/{ATTEMPT}/ready")), 30)
    agent.stop(ATTEMPT)
    assert agent.outcome(ATTEMPT, 60.0).state == "cancelled"
    assert processes_of(ATTEMPT) == []
    if podman is not None:
        # Its monitor tidies up behind the container.
        wait_until(lambda: _containers(podman) <= before, 60)


@pytest.mark.fault("agent killed")
def test_container_ends_with_its_agent(agent: AgentProcess) -> None:
    agent.start("touch ready; sleep 1000; true", ATTEMPT, container=IMAGE)
    agent.wait_while_listening(lambda: any(agent.spool.work.glob(f"*/{ATTEMPT}/ready")), 30)
    assert processes_of(ATTEMPT)
    agent.process.kill()
    wait_until(lambda: not processes_of(ATTEMPT), 30)


def test_replay_runs_in_the_same_container(
    agent: AgentProcess,
    runtime: Runtime,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    command = """pwd; touch /evil || echo '{"loss": 4}' > output.json"""
    spec, order = PayloadSpec("p", command, container=IMAGE), Order(ATTEMPT, "1", "7", "p", {})
    orders = agent.spool.allocation(TAG).orders(1)
    log = LogWriter(RealFiles(), orders, time.time, time.monotonic)
    log.append("define", to_fields(spec))
    log.append(Order.KIND, to_fields(order))
    log.commit()
    environ = {**os.environ, **runtime.environment}
    found = find_attempt(RealFiles(), agent.spool, ATTEMPT)
    verdict = replay(agent.spool, found, tmp_path / "again", environ)
    assert (verdict.state, verdict.loss) == ("succeeded", 4.0)
    assert capfd.readouterr().out == "/srv/workDir\n"


@pytest.mark.fault("image or runtime broken")
def test_missing_image_is_told_with_what_to_do(agent: AgentProcess) -> None:
    ended = agent.run("true", container=Container("docker://other:2"))
    assert (ended.state, ended.blame) == ("failed", "site")
    assert "bring it with `harvester image pull docker://other:2`" in str(ended.reason)


def _containers(podman: Podman) -> set[str]:
    return set(podman.run("ps", "--all", "--quiet").split())
