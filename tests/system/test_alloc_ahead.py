"""``alloc plan`` and ``alloc wrap`` on a site whose batch system is not even there."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harvester.clock import iso
from scripts.stack import Stack, StackFailed

SITE = """
extends: slurm
name: planned
node: {{gpus: 4, cores: 32, memory: 64GB}}
queues: [{{name: gpu, queued_max: 2, bins: [{{nodes: 1-4, walltime: "02:00:00"}}]}}]
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
    assert "jobs besides the harvester's and node-hours spent are not known here" in shown
    assert not (stack.root / "spool").exists()

    held = {"tag": "haaaaa-aaaaaa", "state": "held", "queue": "gpu", "nodes": 1, "walltime_s": 180}
    publish(stack, allocations=[held], others={"user": {"gpu": [1, 0]}, "project": {}})
    shown = stack.harvester(*words)
    assert "queue gpu takes no more jobs of this user now" in shown
    assert "1 allocations have yet to start, 1 of them held: `harvester alloc release`" in shown
    publish(stack, budgets={"node_hours_left": 0.05})
    assert "the node-hours left do not pay" in stack.harvester(*words)
    publish(stack, windows={"found": [{"queue": "gpu", "nodes": 1, "until": None}]})
    (first, *_) = json.loads(stack.harvester(*words, "--json"))["submit"]
    assert (first["nodes"], "1 nodes stand idle now" in first["why"]) == (1, True)
    for strange in ({**held, "state": "resting"}, {"tag": "haaaaa-aaaaaa", "state": "held"}):
        publish(stack, allocations=[strange])
        with pytest.raises(StackFailed, match="is not what this version publishes"):
            stack.harvester(*words)


def publish(stack: Stack, **told: Any) -> None:
    """A daemon's last word."""
    now = iso(time.time())
    state_home = Path(stack.environment["XDG_STATE_HOME"])
    state_dir, spool = state_home / "harvester/sites/planned", stack.root / "spool"
    for directory in (state_dir, spool):
        directory.mkdir(parents=True, exist_ok=True)
    pointer = {"spool": str(spool), "site_file": str(stack.site_file)}
    (state_dir / "site.json").write_text(json.dumps(pointer))
    for key in told.keys() & {"others", "windows"}:
        told[key]["at"] = now
    (spool / "status.json").write_text(json.dumps({"updated": now, **told}))


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
    with pytest.raises(StackFailed, match="walltime: got 0; expected more than nothing"):
        stack.harvester("alloc", "wrap", "--site", str(stack.site_file), "--walltime", "0")
