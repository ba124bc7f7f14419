"""A user's own allocation joins a site and works for it, as real processes on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harvester.daemon.adopt import find_newcomers
from harvester.ids import tag_prefix
from payload_runner.files import RealFiles
from payload_runner.protocol import Joined, SpoolPaths, dump_json
from scripts.stack import Stack, StackFailed

SITE = """
extends: local
name: joined
local: {nodes: 1}
node: {gpus: 2, cores: 2, memory: 2GB}
"""
# Leaves a moment for both allocations to take part.
EVALUATE = "sleep 0.5; echo '{\"loss\": 1}' >output.json"


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with Stack(tmp_path, SITE) as stack:
        yield stack


def submit(stack: Stack, points: int) -> str:
    directory = stack.root / "search"
    directory.mkdir()
    space = {"x": {"method": "uniform", "dimension": {"low": 0.0, "high": 1.0}}}
    (directory / "space.json").write_text(json.dumps(space))
    config = {
        "evaluationExec": EVALUATE,
        "searchSpaceFile": "space.json",
        "sampler": "random",
        "maxPoints": points,
        "nParallelEvaluation": points,
        "payload": {"gpus_per_node": 1, "expected_minutes": 0.02},
    }
    (directory / "config.json").write_text(json.dumps(config))
    return stack.submit(directory / "config.json")


@pytest.mark.timeout(300)
def test_own_job_joins_gets_work_and_is_left_alone(stack: Stack) -> None:
    stack.start_central()
    stack.start_daemon()
    spool = stack.site.spool
    (runner,) = stack.wait(lambda: list(spool.glob("runner/*.pyz")), 60, "no runner was made")
    stack.wait((spool / "join.json").exists, 60, "nobody can join")
    arguments = ("join", str(spool), "--job-id", "mine", "--walltime", "10m")
    command = [sys.executable, str(runner), *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as own:
        try:
            joined = str(stack.wait(lambda: find_joined(stack), 90, "it was not adopted"))
            task = submit(stack, 24)
            stack.wait(lambda: is_over(stack, task), 120, "the search did not end")

            points = list(stack.client().points(task))
            assert {point["state"] for point in points} == {"done"}
            assert joined in {attempt["allocation"] for p in points for attempt in p["attempts"]}
            with pytest.raises(StackFailed, match="its user started"):
                stack.harvester("alloc", "cancel", joined)
            own.terminate()
            assert own.wait(60) == 0
        finally:
            own.terminate()


def find_joined(stack: Stack) -> str | None:
    found = [item for item in stack.status().get("allocations", ()) if item["joined"]]
    return found[0]["tag"] if found and found[0]["state"] == "running" else None


def is_over(stack: Stack, task: str) -> bool:
    return bool(stack.client().show(task)["state"] != "running")


def test_only_marked_newcomers_of_this_spool_are_taken(tmp_path: Path) -> None:
    spool, files = SpoolPaths(tmp_path), RealFiles()
    marker = Joined(job_id="7", nodes=1, walltime_s=60.0, host="here")
    for tag in ("habcde-aaaaaa", "habcde-bbbbbb", "habcde-cccccc", "hother-aaaaaa"):
        files.make_dir(spool.allocation(tag).root)
        files.replace(spool.allocation(tag).joined, dump_json(marker))
    spool.allocation("habcde-bbbbbb").joined.write_text("rubbish")
    spool.allocation("habcde-cccccc").joined.unlink()

    found = find_newcomers(files, spool, tag_prefix("abcdefghijklm"), frozenset())

    told = {newcomer.tag: newcomer.joined for newcomer in found}
    assert told == {"habcde-aaaaaa": marker, "habcde-cccccc": None}
