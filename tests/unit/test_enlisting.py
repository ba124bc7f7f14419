"""A user's own allocation joins a spool: what it writes, and what it needs to be told."""

from __future__ import annotations

from pathlib import Path

import pytest

from payload_runner.enlisting import CannotJoin, Given, enlist, nodes_of, parse_walltime_s
from payload_runner.files import RealFiles
from payload_runner.incarnation import Job
from payload_runner.protocol import (
    AllocationPlan,
    Joined,
    NodeShape,
    SpoolPaths,
    check_tag,
    dump_json,
    load_json,
)

TEMPLATE = AllocationPlan(
    tag="",
    spool_id="abcdefghijklm",
    nodes=1,
    node=NodeShape(gpus=4, cores=8),
    walltime_s=0.0,
    batch_system="slurm",
    launcher=("srun",),
    idle_exit_s=120.0,
)
NOW = 1_000_000.0


@pytest.fixture
def spool(tmp_path: Path) -> SpoolPaths:
    spool = SpoolPaths(tmp_path)
    spool.allocations.mkdir()
    spool.join.write_bytes(dump_json(TEMPLATE))
    return spool


def join(spool: SpoolPaths, given: Given, **environ: str) -> str:
    return enlist(RealFiles(), spool, Job("77"), given, environ, now=NOW, host="login1")


def test_job_gets_a_tag_of_its_own_with_the_sites_plan(spool: SpoolPaths) -> None:
    tag = join(spool, Given(walltime="30m"), SLURM_JOB_NUM_NODES="3")

    paths = spool.allocation(check_tag(tag))
    plan = load_json(paths.plan.read_bytes(), AllocationPlan)
    assert (plan.tag, plan.nodes, plan.walltime_s) == (tag, 3, 1800.0)
    assert (plan.node, plan.launcher, plan.spool_id) == (TEMPLATE.node, ("srun",), "abcdefghijklm")
    marker = load_json(paths.joined.read_bytes(), Joined)
    assert marker == Joined(job_id="77", nodes=3, walltime_s=1800.0, host="login1")
    assert paths.joined.stat().st_mode & 0o777 == 0o600


def test_it_waits_longer_than_the_driver_takes_to_notice(spool: SpoolPaths) -> None:
    plan = spool.allocation(join(spool, Given(walltime="30m"))).plan
    assert load_json(plan.read_bytes(), AllocationPlan).idle_exit_s >= 180.0


def test_environment_says_when_the_job_ends(spool: SpoolPaths) -> None:
    tag = join(spool, Given(), SLURM_JOB_END_TIME=str(int(NOW) + 600))
    plan = load_json(spool.allocation(tag).plan.read_bytes(), AllocationPlan)
    assert plan.walltime_s == 600.0


@pytest.mark.parametrize("end", [{}, {"SLURM_JOB_END_TIME": "5"}])
def test_unknown_end_is_asked_for(spool: SpoolPaths, end: dict[str, str]) -> None:
    with pytest.raises(CannotJoin, match="give --walltime"):
        join(spool, Given(), **end)


def test_spool_that_nobody_drove_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotJoin, match=r"join\.json is not there.*alloc wrap"):
        join(SpoolPaths(tmp_path), Given(walltime="30m"))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90m", 5400.0), ("20s", 20.0), ("1.5h", 5400.0), ("01:30:00", 5400.0),
     ("1-00:00:00", 86400.0), ("00:30", 1800.0)],
)  # fmt: skip
def test_walltime_is_read_as_people_write_it(text: str, seconds: float) -> None:
    assert parse_walltime_s(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "45", "soon", "-5", "1:2:3:4", "00:00:00", "nan"])
def test_nonsense_walltime_is_refused(text: str) -> None:
    with pytest.raises(CannotJoin, match="--walltime: got"):
        parse_walltime_s(text)


def test_nodes_are_counted_as_the_batch_system_tells(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("a\na\nb\n")
    assert nodes_of({"PBS_NODEFILE": str(hosts)}) == 2
    assert nodes_of({"NHOSTS": "4"}) == 4
    assert nodes_of({}) == 1
