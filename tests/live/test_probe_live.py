"""``harvester site probe`` on a real Slurm, whose nodes are not what a careless file says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.live.clusters import SlurmCluster

pytestmark = [pytest.mark.live, pytest.mark.timeout(240)]

SITE = """\
extends: slurm
name: testbed
spool: {{path: {directory}/spool}}
state: {{dir: {directory}/state}}
node: {{gpus: {gpus}, cores: 8, memory: {memory}}}
queues:
  - name: batch
    bins: [{{nodes: 1-3, walltime: "01:00:00"}}]
runner:
  python: /usr/bin/python3
  launcher: [srun, --ntasks-per-node=1{overlap}]
network: {{compute: {network}}}
budgets: {{query_interval: 5s}}
"""


@pytest.fixture
def directory(slurm_cluster: SlurmCluster) -> Iterator[Path]:
    path = slurm_cluster.directory()
    yield path
    shutil.rmtree(path, ignore_errors=True)


def probe(directory: Path, **claims: object) -> tuple[int, dict[str, object]]:
    claimed = {"gpus": 4, "memory": "800MB", "overlap": ", --overlap", "network": "none", **claims}
    site = directory / "testbed.yaml"
    site.write_text(SITE.format(directory=directory, **claimed))
    environ = {"PATH": os.environ["PATH"], "HOME": str(directory), "SCRATCH": str(directory)}
    done = subprocess.run(
        (sys.executable, "-m", "harvester", "site", "probe", str(site), "--json", "--wait", "2"),
        env=environ,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout)


def test_nodes_are_measured_where_they_are(directory: Path) -> None:
    _, found = probe(directory)
    measured = {item["key"]: item["measured"] for item in found["findings"]}  # type: ignore[attr-defined]
    hosts = {node["host"] for node in found["nodes"]}  # type: ignore[attr-defined]
    assert len(hosts) == 2
    assert hosts <= {"node1", "node2", "node3"}
    assert measured["node.gpus"] == "4 (CUDA_VISIBLE_DEVICES=0,1,2,3)"
    assert measured["network.compute"] == "no route out"
    assert measured["runner.launcher"].startswith("a second call beside it works")
    assert measured["spool.filesystem"].startswith("a file and its answer were seen within")


def test_careless_claims_are_corrected(directory: Path) -> None:
    code, found = probe(directory, network="outbound", overlap="")
    corrections = yaml.safe_load(str(found["corrections"]))
    assert code == 1
    assert corrections["network"] == {"compute": "none"}
    assert corrections["runner"]["launcher"] == ["srun", "--ntasks-per-node=1", "--overlap"]
    # Slurm's nodes claim 8 cores whatever the machine has; the processes there see the truth.
    seen = len(os.sched_getaffinity(0))
    assert corrections.get("node", {}).get("cores", 8) == seen
