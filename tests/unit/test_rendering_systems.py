"""Batch scripts of PBS, LSF, Flux and Grid Engine: golden files, and walltimes that parse back."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harvester.batch import flux, gridengine, lsf, pbs, slurm
from harvester.batch.flux import Flux
from harvester.batch.gridengine import GridEngine
from harvester.batch.lsf import Lsf
from harvester.batch.pbs import Pbs
from harvester.batch.port import BatchJob, BatchSystem
from harvester.errors import ConfigurationError
from harvester.model import Tag
from harvester.site import RunnerChoice, Site
from harvester.wiring import make_batch
from payload_runner.protocol import NodeShape

GOLDEN = Path(__file__).parents[1] / "golden"

JOB = BatchJob(
    tag=Tag("habcde-aaaaaa"),
    nodes=3,
    walltime_s=5400.0,
    directory=Path("/scratch/spool/allocations/habcde-aaaaaa"),
    command=("python3", "/scratch/runner.pyz", "lead", "/scratch/spool", "habcde-aaaaaa"),
)
FULL = replace(
    JOB,
    account="phy123",
    gpus_per_node=4,
    cores_per_node=32,
    memory_mb_per_node=480_000,
    warn_s=120.0,
    prologue=("module load python/3.11",),
)
SYSTEMS: dict[str, Callable[[], BatchSystem]] = {
    "pbs": Pbs,
    "lsf": Lsf,
    "lsf_jsrun": lambda: Lsf(whole_nodes=True),
    "flux": Flux,
    "gridengine": GridEngine,
}
each = pytest.mark.parametrize("system", SYSTEMS)


@pytest.mark.parametrize(
    ("name", "batch", "job"),
    [
        ("pbs", Pbs(), replace(FULL, queue="prod", directives=("-l filesystems=home:eagle",))),
        ("lsf", Lsf(), replace(FULL, queue="gpu", exclude_nodes=("n1", "n2"))),
        (
            "lsf_jsrun",
            Lsf(whole_nodes=True),
            replace(FULL, queue="batch", directives=('-alloc_flags "gpumps smt4 nvme"',)),
        ),
        (
            "flux",
            Flux(),
            replace(
                FULL,
                queue="pbatch",
                exclude_nodes=("n1", "n2"),
                directives=("--conf=resource.noverify=true",),
            ),
        ),
        (
            "gridengine",
            GridEngine(),
            replace(
                FULL,
                queue="gpu.q",
                exclude_nodes=("n1", "n2"),
                directives=("-pe mpi-32 {slots}", "-l exclusive=true"),
            ),
        ),
    ],
)
def test_script_with_everything(name: str, batch: BatchSystem, job: BatchJob) -> None:
    assert batch.render(job) == (GOLDEN / f"{name}.sh").read_text()


@each
@pytest.mark.parametrize("key", ["queue", "account"])
def test_option_that_is_no_plain_word_is_refused_by_name(system: str, key: str) -> None:
    job = replace(JOB, queue="a b") if key == "queue" else replace(JOB, account="a'b")
    with pytest.raises(ConfigurationError, match=f"{key}.*one word"):
        SYSTEMS[system]().render(job)


@each
def test_directive_of_two_lines_is_refused(system: str) -> None:
    with pytest.raises(ConfigurationError, match="one line per directive"):
        SYSTEMS[system]().render(replace(JOB, directives=("-x\nrm -rf /",)))


@each
def test_what_is_not_asked_for_is_not_written(system: str) -> None:
    # Grid Engine's signals come unasked for.
    text = SYSTEMS[system]().render(JOB).replace("trap '' USR1 USR2", "")
    absent = ("gpu", "mem=", "phy123", "USR1", "exclude", "hname", "-q ", "-A ", "-P ", "bank")
    assert [word for word in absent if word in text] == []


@each
def test_every_batch_script_is_a_script_that_bash_reads(system: str) -> None:
    script = SYSTEMS[system]().render(replace(FULL, directory=Path("/s p/it's $HOME")))
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("system", "launcher", "line"),
    [
        ("pbs", "mpiexec", "#PBS -l select=3"),
        ("lsf", "/opt/bin/jsrun", "#BSUB -nnodes 3"),
        ("lsf", "mpiexec", "#BSUB -n 3"),
        ("flux", "flux", "# flux: --nodes=3"),
        ("gridengine", "qrsh", "#$ -pe mpi 3"),
    ],
)
def test_sites_get_the_batch_system_they_name(system: str, launcher: str, line: str) -> None:
    site = Site(
        name="mine",
        batch_system=system,
        node=NodeShape(),
        queues=(),
        spool=Path("/s"),
        runner=RunnerChoice(launcher=(launcher,)),
    )
    batch = make_batch(site)
    assert batch.name == system
    assert line in batch.render(JOB).splitlines()


# --- PBS ---


def test_a_site_chooses_nodes_by_its_own_words() -> None:
    job = replace(FULL, directives=("-l select={nodes}:system=polaris", "-l place=scatter"))
    lines = [line for line in Pbs().render(job).splitlines() if "select" in line or "place" in line]
    assert lines == ["#PBS -l select=3:system=polaris", "#PBS -l place=scatter"]


def test_pbs_scripts_enter_the_directory_of_their_allocation() -> None:
    text = Pbs().render(replace(JOB, directory=Path("/s p/it's")))
    (line,) = [line for line in text.splitlines() if line.startswith("cd ")]
    assert shlex.split(line) == ["cd", "/s p/it's", "||", "exit", "1"]


def test_pbs_keeps_the_output_with_the_allocation() -> None:
    command = Pbs().submit_command(JOB, Path("/s/b.sh"))
    assert command == ("qsub", "-o", f"{JOB.directory}/batch.out", "/s/b.sh")


# --- LSF ---


def test_lsf_reads_the_script_from_its_standard_input() -> None:
    job = replace(JOB, directory=Path("/s p/$(id)"))
    command = Lsf().submit_command(job, Path("/s p/b.sh"))
    assert command == (
        *("sh", "-c", 'exec bsub "$@" < "$0"', "/s p/b.sh"),
        *("-cwd", "/s p/$(id)", "-o", "/s p/$(id)/batch.out"),
    )


def test_whole_nodes_cannot_be_chosen_one_by_one() -> None:
    assert not Lsf(whole_nodes=True).capabilities.exclude_nodes
    assert Lsf().capabilities.exclude_nodes


def test_leftovers_of_an_outer_job_do_not_reach_bsub() -> None:
    base = {"LSB_JOBID": "7", "LSB_DEFAULTQUEUE": "q", "LSF_ENVDIR": "/etc/lsf", "LS_JOBPID": "1"}
    kept = {"LSB_DEFAULTQUEUE": "q", "LSF_ENVDIR": "/etc/lsf"}
    assert lsf.bsub_environment(base) == kept


# --- Flux ---


def test_flux_gets_its_paths_as_arguments() -> None:
    command = Flux().submit_command(replace(JOB, directory=Path("/s p/x")), Path("/s p/b.sh"))
    assert command == ("flux", "batch", "--cwd=/s p/x", "--output=/s p/x/batch.out", "/s p/b.sh")


def test_leftovers_of_an_outer_job_do_not_reach_flux() -> None:
    base = {"FLUX_JOB_ID": "f7", "FLUX_TASK_RANK": "0", "PMI_RANK": "0", "FLUX_URI": "local:///r"}
    assert flux.batch_environment(base) == {"FLUX_URI": "local:///r"}


# --- Grid Engine ---


def test_slots_are_those_of_all_nodes_and_memory_is_of_one_slot() -> None:
    lines = GridEngine().render(replace(FULL, memory_mb_per_node=100_000)).splitlines()
    assert "#$ -pe mpi 96" in lines
    assert "#$ -l mem_free=3125M" in lines


def test_job_of_one_slot_needs_no_parallel_environment() -> None:
    assert "-pe" not in GridEngine().render(replace(JOB, nodes=1))


def test_grid_engine_scripts_enter_the_directory_of_their_allocation() -> None:
    text = GridEngine().render(replace(JOB, directory=Path("/s p/it's $HOME")))
    (line,) = [line for line in text.splitlines() if line.startswith("cd ")]
    assert shlex.split(line) == ["cd", "/s p/it's $HOME", "||", "exit", "1"]


def test_job_that_can_never_run_is_to_be_refused_unless_free_memory_decides() -> None:
    assert "#$ -w e" in GridEngine().render(JOB).splitlines()
    assert "#$ -w n" in GridEngine().render(FULL).splitlines()


def test_grid_engine_is_asked_for_the_bare_job_id() -> None:
    command = GridEngine().submit_command(JOB, Path("/s p/b.sh"))
    assert command == ("qsub", "-terse", "/s p/b.sh")


# --- walltimes ---


def _hours_minutes_seconds(text: str) -> int:
    """As qsub reads it: [[hours:]minutes:]seconds, each within its range here."""
    found = re.fullmatch(r"(\d{2,}):([0-5]\d):00", text)
    assert found, text
    return int(found.group(1)) * 60 + int(found.group(2))


def _slurm_time(text: str) -> int:
    """As sbatch(1) reads it: [days-]hours:minutes:seconds."""
    found = re.fullmatch(r"(?:(\d+)-)?([01]\d|2[0-3]):([0-5]\d):00", text)
    assert found, text
    days, hours, minutes = (int(part or 0) for part in found.groups())
    return (days * 24 + hours) * 60 + minutes


def _hours_minutes(text: str) -> int:
    """As bsub(1) reads it: [hours:]minutes."""
    found = re.fullmatch(r"(\d+):([0-5]\d)", text)
    assert found, text
    return int(found.group(1)) * 60 + int(found.group(2))


def _standard_duration(text: str) -> int:
    """As RFC 23 has it: a number and a unit; minutes here."""
    found = re.fullmatch(r"(\d+)m", text)
    assert found, text
    return int(found.group(1))


WALLTIMES: dict[str, tuple[Callable[[float], str], Callable[[str], int]]] = {
    "slurm": (slurm.walltime_text, _slurm_time),
    "pbs": (pbs.walltime_text, _hours_minutes_seconds),
    "lsf": (lsf.walltime_text, _hours_minutes),
    "flux": (flux.walltime_text, _standard_duration),
    "gridengine": (gridengine.walltime_text, _hours_minutes_seconds),
}


@pytest.mark.parametrize("system", WALLTIMES)
def test_every_minute_of_a_week_parses_back(system: str) -> None:
    render, parse = WALLTIMES[system]
    assert [parse(render(60.0 * minutes)) for minutes in range(1, 10081)] == list(range(1, 10081))


@pytest.mark.parametrize("system", WALLTIMES)
@pytest.mark.parametrize(("seconds", "minutes"), [(0.5, 1), (60.5, 2), (119.9, 2), (5400.0, 90)])
def test_a_part_of_a_minute_is_a_minute(system: str, seconds: float, minutes: int) -> None:
    render, parse = WALLTIMES[system]
    assert parse(render(seconds)) == minutes
