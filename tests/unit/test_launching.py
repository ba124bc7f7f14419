"""The launcher calls that start an agent on every node."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from payload_runner.launching import calls_by_host, is_by_host, launcher_words
from payload_runner.protocol import AllocationPlan, NodeShape


def plan_of(launcher: str, nodes: int = 12) -> AllocationPlan:
    return AllocationPlan(
        tag="haaaaa-aaaaaa",
        spool_id="aaaaa",
        nodes=nodes,
        node=NodeShape(gpus=6, cores=42),
        walltime_s=3600.0,
        batch_system="lsf",
        launcher=tuple(launcher.split()),
    )


def words(launcher: str) -> str:
    return " ".join(launcher_words(plan_of(launcher)))


@pytest.mark.parametrize(
    ("launcher", "told"),
    [
        ("srun --ntasks-per-node=1", "srun --ntasks-per-node=1"),
        (
            "jsrun -n {nodes} -r1 -a1 -c ALL_CPUS -g ALL_GPUS -b none",
            "jsrun -n 12 -r1 -a1 -c ALL_CPUS -g ALL_GPUS -b none",
        ),
        ("mpiexec -n {nodes} --ppn 1 --depth={cores}", "mpiexec -n 12 --ppn 1 --depth=42"),
        ("flux run -N{nodes} -n{nodes} -g{gpus}", "flux run -N12 -n12 -g6"),
        ("mpirun --x {node} {", "mpirun --x {node} {"),
    ],
)
def test_launchers_are_told_the_shape_of_the_allocation(launcher: str, told: str) -> None:
    assert words(launcher) == told


# --- Grid Engine: one call a host ---

HOSTS = "n1 2 all.q@n1 UNDEFINED\nn2 1 all.q@n2 UNDEFINED\nn2 1 big.q@n2 UNDEFINED\n"


def agent(node: int) -> list[str]:
    return ["python3", "/s p/it's.pyz", "agent", str(node)]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "hosts").write_text(HOSTS)
    return {"PE_HOSTFILE": str(tmp_path / "hosts")}


@pytest.mark.parametrize(("launcher", "told"), [("/opt/sge/qrsh -inherit", True), ("srun", False)])
def test_qrsh_is_known_by_its_name(launcher: str, told: bool) -> None:
    assert is_by_host(plan_of(launcher)) is told


def test_qrsh_starts_an_agent_on_every_other_host(environ: dict[str, str]) -> None:
    own, *others = calls_by_host(plan_of("qrsh -inherit -V", nodes=2), agent, environ)
    assert own == ("python3", "/s p/it's.pyz", "agent", "0")
    (other,) = others
    assert other[:4] == ("qrsh", "-inherit", "-V", "n2")
    # There a shell reads what qrsh was given.
    assert shlex.split(" ".join(other[4:])) == ["exec", "python3", "/s p/it's.pyz", "agent", "1"]


@pytest.mark.parametrize("nodes", [1, 3])
def test_hosts_that_were_not_planned_are_an_error(nodes: int, environ: dict[str, str]) -> None:
    with pytest.raises(OSError, match=rf"on 2 hosts, {nodes} were asked for.*allocation_rule"):
        calls_by_host(plan_of("qrsh -inherit", nodes=nodes), agent, environ)


def test_job_without_a_parallel_environment_is_on_this_host_alone() -> None:
    assert calls_by_host(plan_of("qrsh -inherit", nodes=1), agent, {}) == (tuple(agent(0)),)


def test_list_of_hosts_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=os.fspath(tmp_path)):
        calls_by_host(plan_of("qrsh -inherit", 1), agent, {"PE_HOSTFILE": str(tmp_path / "x")})
