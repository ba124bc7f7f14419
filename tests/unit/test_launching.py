"""The one launcher call that starts an agent on every node."""

from __future__ import annotations

import pytest

from payload_runner.launching import launcher_words
from payload_runner.protocol import AllocationPlan, NodeShape


def words(launcher: str) -> str:
    plan = AllocationPlan(
        tag="haaaaa-aaaaaa",
        spool_id="aaaaa",
        nodes=12,
        node=NodeShape(gpus=6, cores=42),
        walltime_s=3600.0,
        batch_system="lsf",
        launcher=tuple(launcher.split()),
    )
    return " ".join(launcher_words(plan))


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
