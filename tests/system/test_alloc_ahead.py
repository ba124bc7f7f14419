"""``alloc plan`` and ``alloc wrap`` on a site whose batch system is not even there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.stack import Stack, StackFailed

SITE = """
extends: slurm
name: planned
node: {{gpus: 4, cores: 32, memory: 64GB}}
queues: [{{name: gpu, bins: [{{nodes: 1-4, walltime: "02:00:00"}}]}}]
spool: {{path: {root}/spool}}
state: {{index: {root}/index.sqlite}}
"""


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with Stack(tmp_path, SITE.format(root=tmp_path)) as stack:
        yield stack


def test_plan_shows_what_and_why_with_the_script_and_submits_nothing(stack: Stack) -> None:
    stack.start_central()
    search = stack.root / "search"
    search.mkdir()
    space = {"x": {"method": "uniform", "dimension": {"low": 0.0, "high": 1.0}}}
    (search / "space.json").write_text(json.dumps(space))
    config = {
        "evaluationExec": "true",
        "searchSpaceFile": "space.json",
        "sampler": "random",
        "maxPoints": 8,
        "nParallelEvaluation": 8,
        "payload": {"gpus_per_node": 1, "expected_minutes": 30},
    }
    (search / "config.json").write_text(json.dumps(config))
    stack.submit(search / "config.json")

    words = ("alloc", "plan", "--dry-run", "--site", str(stack.site_file))
    told = json.loads(stack.harvester(*words, "--json"))

    (chosen,) = told["submit"]
    assert (chosen["queue"], chosen["nodes"], told["blocked"]) == ("gpu", 2, [])
    assert "8 attempts" in chosen["why"]
    assert "#SBATCH --partition=gpu" in chosen["script"]
    assert chosen["submit"][0] == "sbatch"
    shown = stack.harvester(*words)
    assert "8 points could be evaluated now" in shown
    assert "would submit 2 nodes" in shown
    assert not (stack.root / "spool").exists()


def test_wrap_prints_a_script_that_joins_and_prepares_the_spool(stack: Stack) -> None:
    words = ("alloc", "wrap", "--site", str(stack.site_file), "--nodes", "2", "--walltime", "30m")
    script = stack.harvester(*words)

    last = script.rstrip("\n").splitlines()[-1]
    assert "#SBATCH --nodes=2" in script
    assert "#SBATCH --job-name=harvester-join" in script
    assert last.startswith("exec python3 ")
    assert last.endswith(f"join {stack.root}/spool --nodes 2 --walltime 1800s")
    plan = json.loads((stack.root / "spool" / "join.json").read_text())
    assert (plan["batch_system"], plan["node"]["gpus"]) == ("slurm", 4)


def test_wrap_refuses_what_no_queue_takes(stack: Stack) -> None:
    with pytest.raises(StackFailed, match=r"nodes: got .?9.?; expected one of the bins 1-4"):
        stack.harvester("alloc", "wrap", "--site", str(stack.site_file), "--nodes", "9")
