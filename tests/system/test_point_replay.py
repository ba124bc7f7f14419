"""``harvester point replay``: a point's payload by hand, as it was ordered."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from payload_runner.archives import Member, write_archive
from payload_runner.files import RealFiles
from payload_runner.logfile import LogWriter
from payload_runner.protocol import (
    CheckpointRule,
    Container,
    FileRef,
    InputFile,
    Order,
    PayloadSpec,
    Shape,
    SpoolPaths,
    dump_json,
    to_fields,
)
from tests.node_agent import ROOT, TAG, make_plan

TRAIN = b"""#!/bin/sh
echo "trains with $WORD in $(pwd)"
[ -e state ] && cat state
sed 's/.*: *\\([0-9]*\\).*/{"loss": \\1}/' input.json > output.json
"""


class Site:
    """A site with one allocation in which attempts at point 1.7 were ordered."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.spool = SpoolPaths(root / "spool")
        self.allocation = self.spool.allocation(TAG)
        self.allocation.root.mkdir(parents=True)
        self.spool.inputs.mkdir()
        self.spool.runner_dir.mkdir()
        (self.spool.runner_dir / "payload_runner-1.pyz").touch()
        state = root / "state" / "harvester" / "sites" / "here"
        state.mkdir(parents=True)
        (state / "site.json").write_text(json.dumps({"spool": str(self.spool.root)}))
        self.plan()
        files = RealFiles()
        self._log = LogWriter(files, self.allocation.orders(1), time.time, time.monotonic)

    def plan(self, **changes: Any) -> None:
        self.allocation.plan.write_bytes(dump_json(make_plan(**changes)))

    def order(self, command: str = "./train.sh", number: int = 1, **given: Any) -> str:
        """Order an attempt; returns its id."""
        attempt = f"1.7.1.{number}"
        resume = given.pop("resume", None)
        files = (self._input("train.sh", TRAIN),)
        given.setdefault("environment", {"WORD": "care"})
        spec = PayloadSpec(f"p{number}", command, files=files, **given)
        order = Order(
            attempt,
            "1",
            "7",
            spec.payload_id,
            {"x": 3},
            number=number,
            checkpoint=resume,
            checkpoint_of=resume and "1.7.0.1",
        )
        self._log.append("define", to_fields(spec))
        self._log.append(Order.KIND, to_fields(order))
        self._log.commit()
        return attempt

    def checkpoint(self, text: str) -> FileRef:
        source, target = self.root / "state-file", self.spool.root / "saved.tar.gz"
        source.write_text(text)
        write_archive(target, [Member("state", 0o600, 0.0, len(text), source)], 1000)
        data = target.read_bytes()
        return FileRef("saved.tar.gz", len(data), hashlib.sha256(data).hexdigest())

    def replay(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self._call("harvester", "point", "replay", "1.7", *words)

    def runner_replay(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self._call("payload_runner", "replay", str(self.spool.root), *words)

    def _call(self, *words: str) -> subprocess.CompletedProcess[str]:
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.root),
            "XDG_STATE_HOME": str(self.root / "state"),
            "PYTHONPATH": str(ROOT),
            "MY_TOKEN": "hush",
        }
        return subprocess.run(
            [sys.executable, "-m", *words],
            env=environ,
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def _input(self, name: str, data: bytes) -> InputFile:
        sha256 = hashlib.sha256(data).hexdigest()
        self.spool.input(sha256).write_bytes(data)
        return InputFile(name, sha256, len(data), executable=True)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_replay_runs_the_same_files_with_the_same_parameters(site: Site) -> None:
    attempt = site.order()
    done = site.replay()
    workdir = site.root / f"replay-{attempt}" / attempt
    assert (done.returncode, done.stdout) == (0, f"trains with care in {workdir}\n")
    assert done.stderr.endswith("---\nsucceeded: loss 3.0\n")
    assert json.loads((workdir / "input.json").read_text()) == {"x": 3}


def test_newest_attempt_is_replayed_unless_another_is_named(site: Site) -> None:
    first = site.order("echo first; exit 3")
    site.order("echo second; exit 4", number=2)
    done = site.replay()
    assert (done.returncode, done.stdout) == (1, "second\n")
    assert "failed: exit code 4" in done.stderr
    assert site.replay("--attempt", first, "--directory", "other").stdout == "first\n"
    assert (site.root / "other" / first).is_dir()


def test_replay_goes_on_from_the_same_checkpoint_unless_told_not_to(site: Site) -> None:
    site.order(checkpoint=CheckpointRule(("state",)), resume=site.checkpoint("step 12\n"))
    assert "\nstep 12\n" in site.replay().stdout
    assert "step 12" not in site.replay("--fresh", "--directory", "again").stdout


def test_replay_starts_every_rank_on_this_machine(site: Site) -> None:
    command = """echo "$RANK/$WORLD_SIZE $MASTER_ADDR $(cat "$HARVESTER_HOSTFILE")"
    [ "$RANK" = 1 ] || echo '{"loss": 1}' > output.json"""
    site.order(command, shape=Shape(nodes_min=2, nodes_max=2, ranks_per_node=2, start="processes"))
    done = site.replay()
    assert sorted(done.stdout.splitlines()) == [
        "0/2 127.0.0.1 127.0.0.1",
        "1/2 127.0.0.1 127.0.0.1",
    ]
    assert "it ran on 2 or more nodes (processes); here: 2 of its processes" in done.stderr


def test_environment_is_the_payloads_not_the_persons(site: Site) -> None:
    site.order("env; echo '{\"loss\": 1}' > output.json")
    told = site.replay().stdout
    assert "hush" not in told
    assert {"WORD=care", "HARVESTER_POINT=7", "HARVESTER_ATTEMPT=1.7.1.1"} <= set(told.split("\n"))


def test_dry_run_says_what_would_be_run_and_how_in_a_job(site: Site) -> None:
    site.plan(container_runtime="bwrap")
    site.order(container=Container("docker://x:1"))
    done = site.replay("--dry-run")
    assert (done.returncode, done.stdout) == (0, "")
    runner = site.spool.runner_dir / "payload_runner-1.pyz"
    assert f"python3 {runner} replay {site.spool.root} 1.7.1.1\n" in done.stderr
    assert "docker://x:1 with bwrap" in done.stderr
    assert not (site.root / "replay-1.7.1.1").exists()


def test_runner_replays_without_the_harvester(site: Site) -> None:
    site.order()
    done = site.runner_replay("1.7")
    assert (done.returncode, "succeeded: loss 3.0" in done.stderr) == (0, True)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--attempt", "1.8.1.1"), 64, "expected an attempt at point 1.7"),
        (("--attempt", "1.7.9.9"), 66, "no order for 1.7.9.9 lies in a spool"),
        (("--directory", "."), 74, "File exists"),
    ],
)
def test_what_cannot_be_replayed_is_told(
    site: Site, words: tuple[str, ...], code: int, told: str
) -> None:
    site.order()
    done = site.replay(*words)
    assert (done.returncode, told in done.stderr) == (code, True), done.stderr


def test_missing_image_and_lost_inputs_are_told(site: Site) -> None:
    site.plan(container_runtime="bwrap", image_dir=str(site.root))
    site.order(container=Container("docker://x:1"))
    done = site.replay()
    assert done.returncode == 69
    assert "bring it with `harvester image pull docker://x:1`" in done.stderr
    site.order(number=2)
    for path in site.spool.inputs.iterdir():
        path.write_text("changed")
    done = site.replay()
    assert (done.returncode, "is not what its name says" in done.stderr) == (69, True)
    assert site.runner_replay("1.7", "--directory", "other").returncode == 78
    assert site.runner_replay("1.8").returncode == 65
