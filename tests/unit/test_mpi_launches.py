"""How MPI payloads are launched: command lines, resource files, environments, blame."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harvester.config_rules import broken_rules
from harvester.mpi_launchers import usual_mpi_launcher
from payload_runner.attempts import Live
from payload_runner.environment import for_launcher, of_launcher
from payload_runner.launches import launch_words, resource_file
from payload_runner.placement import Slot
from payload_runner.protocol import AllocationPlan, NodeShape, Order
from payload_runner.rank import rank_from

HOSTS = ("n3", "n7")
SLOTS = tuple(
    Slot(node, ranks=2, first_rank=2 * place, world_size=4, hosts=HOSTS)
    for place, node in enumerate((3, 7))
)


def plan_of(*launcher: str) -> AllocationPlan:
    return AllocationPlan(
        tag="haaaaa-aaaaaa",
        spool_id="aaaaa",
        nodes=12,
        node=NodeShape(gpus=2, cores=42),
        walltime_s=3600.0,
        batch_system="slurm",
        mpi_launcher=launcher,
    )


@pytest.mark.parametrize(
    ("batch_system", "launcher", "told"),
    [
        (
            "slurm",
            ["srun", "--ntasks-per-node=1"],
            "srun --overlap --nodes=2 --nodelist=n3,n7 --ntasks=4 --ntasks-per-node=2 "
            "--cpu-bind=none --kill-on-bad-exit=1",
        ),
        (
            "pbs",
            ["/opt/pals/mpiexec", "-n", "{nodes}"],
            "/opt/pals/mpiexec -n 4 -ppn 2 -hosts n3,n7",
        ),
        (
            "pbs",
            ["mpirun"],
            "mpirun -n 4 --host n3:2,n7:2 --map-by ppr:2:node:OVERSUBSCRIBE --bind-to none",
        ),
        ("lsf", ["jsrun"], "jsrun --erf_input /a/x.erf -b none"),
        ("local", [], "mpiexec -n 4"),
        ("gridengine", ["qrsh", "-inherit"], ""),
        ("flux", ["flux", "run"], ""),
    ],
)
def test_usual_launchers_are_told_ranks_and_hosts(
    batch_system: str, launcher: list[str], told: str
) -> None:
    plan = plan_of(*usual_mpi_launcher(batch_system, launcher))
    assert " ".join(launch_words(plan, SLOTS, Path("/a/x.erf"))) == told


def test_resource_file_of_jsrun_names_every_rank_with_its_host() -> None:
    *preamble, first, second, third, fourth = resource_file(plan_of("jsrun"), SLOTS).splitlines()
    assert dict(line.split(": ") for line in preamble) == {
        "cpu_index_using": "logical",
        "overlapping_rs": "allow",  # the agents hold the same nodes
        "oversubscribe_cpu": "allow",
        "oversubscribe_gpu": "allow",
        "oversubscribe_mem": "allow",
        "launch_distribution": "packed",
    }
    whole = "cpu: {0-41} ; gpu: {0,1} }"
    assert (first, second) == tuple(f"rank: {n}: {{ hostname: n3 ; {whole}" for n in (0, 1))
    assert (third, fourth) == tuple(f"rank: {n}: {{ hostname: n7 ; {whole}" for n in (2, 3))


def test_resource_file_of_nodes_without_gpus_names_none() -> None:
    plan = replace(plan_of("jsrun"), node=NodeShape(gpus=0, cores=8))
    assert resource_file(plan, SLOTS).splitlines()[-1] == "rank: 3: { hostname: n7 ; cpu: {0-7} }"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("srun -n {ranks} {rank}", "unknown placeholder {rank}"),
        ("ssh -n {ranks}", "unknown launcher 'ssh'"),
        ("mpiexec -n 4", "expected {ranks}"),
        ("mpiexec -n {ranks}", None),
        ("jsrun --erf_input {erf}", None),
    ],
)
def test_mpi_launcher_of_a_site_file_is_checked(given: str, said: str | None) -> None:
    values = {"batch_system": "local", "runner": {"mpi_launcher": given}}
    found = [text for key, text in broken_rules(values) if key == ("runner", "mpi_launcher")]
    assert len(found) == (said is not None)
    assert said is None or found[0].startswith(said)


def test_mpi_transport_needs_a_launcher_that_starts_ranks() -> None:
    for launcher, wrong in ((["qrsh", "-inherit"], True), (["srun"], False), ([], False)):
        values = {"runner": {"transport": "mpi", "launcher": launcher}}
        keys = [key for key, _ in broken_rules(values)]
        assert (("runner", "transport") in keys) is wrong


OUTER = {
    "PMI_RANK": "0",
    "PMI_FD": "9",
    "PMIX_NAMESPACE": "outer",
    "PALS_RANKID": "0",
    "OMPI_COMM_WORLD_RANK": "0",
    "OMPI_MCA_ess_base_jobid": "1",
    "HYDI_CONTROL_FD": "8",
    "MPI_LOCALRANKID": "0",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "0",
    "SLURM_TASK_PID": "77",
    "SLURM_CPUS_PER_TASK": "8",
    "SLURM_TRES_PER_TASK": "cpu:8",
}
KEPT = {
    "PATH": "/bin",
    "SLURM_JOB_ID": "7",
    "SLURM_TASKS_PER_NODE": "8(x3)",  # of the job; Open MPI's mpirun does not start without it
    "OMPI_MCA_btl": "tcp,self",
    "PMIX_MCA_gds": "hash",
    "PRTE_ALLOW_RUN_AS_ROOT": "1",
    "HYDRA_LAUNCHER": "slurm",
}


def test_launcher_call_shows_no_trace_of_an_outer_one() -> None:
    assert for_launcher({**OUTER, **KEPT}) == KEPT


def test_rank_keeps_what_its_launcher_told_and_no_secret() -> None:
    told = {"PMI_RANK": "3", "PMIX_NAMESPACE": "inner", "SLINGSHOT_VNIS": "1"}
    assert of_launcher({**told, "HOME": "/root", "SLURM_JWT": "secret"}) == told


def test_rank_is_read_from_the_innermost_launcher() -> None:
    assert rank_from({"SLURM_PROCID": "0", "PMI_RANK": "3"}) == 3
    assert rank_from({"SLURM_PROCID": "2"}) == 2
    assert rank_from({"HOME": "/root"}) is None


# --- whose fault it was ---


def live_with(*ends: dict[str, Any]) -> Live:
    live = Live(Order("1.1.1.1", "1", "1", "p", {}), SLOTS, 0.0)
    for slot, end in zip(SLOTS, ends, strict=True):
        live.end_on(slot.node, end)
    return live


def failed(blame: str, **more: Any) -> dict[str, Any]:
    return {"state": "failed", "blame": blame, "reason": f"of the {blame}", **more}


def test_loss_of_a_node_explains_the_ranks_that_failed_before_it_was_noticed() -> None:
    outcome = live_with(failed("point", stderr="connection reset"), failed("node")).outcome()
    assert outcome == failed("node", stderr="connection reset")


def test_rank_that_never_began_explains_why_the_others_failed() -> None:
    assert live_with(failed("point"), failed("site")).outcome()["blame"] == "site"


def test_attempt_that_was_stopped_stays_what_it_was_stopped_for() -> None:
    stopped = {"state": "pruned", "reason": "asked to"}
    assert live_with(stopped, failed("node")).outcome() == stopped


def test_output_is_that_of_the_node_that_has_any() -> None:
    outcome = live_with(failed("point", stderr=""), failed("point", stderr="trace")).outcome()
    assert outcome["stderr"] == "trace"
