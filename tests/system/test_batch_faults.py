"""The adapters of Slurm, PBS, LSF, Flux and Grid Engine while their commands misbehave."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from harvester.batch.flux import Flux
from harvester.batch.gridengine import GridEngine
from harvester.batch.lsf import Lsf
from harvester.batch.pbs import Pbs
from harvester.batch.port import BatchJob, BatchSystem
from harvester.batch.slurm import Slurm
from harvester.errors import BatchUnavailable
from harvester.model import JobId, Tag
from tests.fakes.cluster import FakeCluster
from tests.support import wait_until

TAG = Tag("habcde-aaaaaa")
MAKERS: Mapping[str, Callable[[float, Mapping[str, str]], BatchSystem]] = {
    "slurm": lambda timeout_s, environ: Slurm(timeout_s=timeout_s, environment=environ),
    "pbs": lambda timeout_s, environ: Pbs(timeout_s=timeout_s, environment=environ),
    "lsf": lambda timeout_s, environ: Lsf(timeout_s=timeout_s, environment=environ),
    "flux": lambda timeout_s, environ: Flux(timeout_s=timeout_s, environment=environ),
    "gridengine": lambda timeout_s, environ: GridEngine(timeout_s=timeout_s, environment=environ),
}


class Bench:
    """A fake cluster of one dialect, and its adapter."""

    def __init__(self, system: str, directory: Path) -> None:
        self.system = system
        self.directory = directory
        self.cluster = FakeCluster(directory / "cluster", system)

    def batch(self, timeout_s: float = 30.0) -> BatchSystem:
        return MAKERS[self.system](timeout_s, self.cluster.environment(os.environ))

    def submit(self) -> JobId:
        batch = self.batch()
        job = BatchJob(
            tag=TAG, nodes=1, walltime_s=60.0, directory=self.directory, command=("sleep", "60")
        )
        script = self.directory / "batch.sh"
        script.write_text(batch.render(job))
        return batch.submit(job, script)


# Every command that looks, and a call that needs it.
QUERIES: Mapping[tuple[str, str], Callable[[BatchSystem, JobId], object]] = {
    ("slurm", "squeue"): lambda batch, job: batch.observe(),
    ("slurm", "sacct"): lambda batch, job: batch.ended([job], []),
    ("pbs", "qselect"): lambda batch, job: batch.observe(),
    ("pbs", "qstat"): lambda batch, job: batch.ended([job], []),
    ("lsf", "bjobs"): lambda batch, job: batch.observe(),
    ("flux", "jobs"): lambda batch, job: batch.observe(),
    ("gridengine", "qstat"): lambda batch, job: batch.observe(),
    ("gridengine", "qacct"): lambda batch, job: batch.ended([job], []),
}
CANCELS = {
    "slurm": "scancel",
    "pbs": "qdel",
    "lsf": "bkill",
    "flux": "cancel",
    "gridengine": "qdel",
}
# Where no line is a sound answer, the daemon doubts it (`reconcile.is_suspiciously_empty`).
SOUNDLY_EMPTY = {("slurm", "squeue"), ("slurm", "sacct"), ("pbs", "qselect")}
SUBMITS = {"slurm": "sbatch", "pbs": "qsub", "lsf": "bsub", "flux": "batch", "gridengine": "qsub"}


@pytest.fixture
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(request.param, tmp_path)
    with bench.cluster:
        yield bench


queries = pytest.mark.parametrize(("bench", "command"), QUERIES, indirect=["bench"])
systems = pytest.mark.parametrize("bench", MAKERS, indirect=True)


@pytest.mark.fault("scheduler away")
@queries
@pytest.mark.parametrize("fault", ["down", "garbage", "partial", "lost"])
def test_query_that_fails_is_never_a_shorter_list(bench: Bench, command: str, fault: str) -> None:
    job = bench.submit()
    bench.cluster.fault(**{command: fault})

    with pytest.raises(BatchUnavailable):
        QUERIES[bench.system, command](bench.batch(), job)


@pytest.mark.fault("scheduler answers wrongly")
@pytest.mark.parametrize(
    ("bench", "command"),
    [case for case in QUERIES if case not in SOUNDLY_EMPTY],
    indirect=["bench"],
)
def test_no_answer_is_not_an_empty_list(bench: Bench, command: str) -> None:
    job = bench.submit()
    bench.cluster.fault(**{command: "empty"})

    with pytest.raises(BatchUnavailable, match="printed"):
        QUERIES[bench.system, command](bench.batch(), job)


@pytest.mark.fault("scheduler away")
@queries
def test_command_that_hangs_is_given_up(bench: Bench, command: str) -> None:
    job = bench.submit()
    bench.cluster.fault(**{command: "hang"})

    with pytest.raises(BatchUnavailable, match=r"did not answer within 1 s"):
        QUERIES[bench.system, command](bench.batch(1.0), job)


@systems
def test_slow_answers_are_answers(bench: Bench) -> None:
    job = bench.submit()
    slow = {command: "slow" for system, command in QUERIES if system == bench.system}
    bench.cluster.fault(**slow)

    assert [seen.job_id for seen in bench.batch().observe().jobs] == [job]


@pytest.mark.fault("scheduler answers wrongly")
@systems
def test_stale_answers_show_the_jobs_of_before(bench: Bench) -> None:
    batch = bench.batch()
    assert batch.observe().jobs == ()
    stale = {command: "stale" for system, command in QUERIES if system == bench.system}
    # A scheduler's cache may lag behind a submission: absence is doubt, not the end.
    if bench.system == "pbs":
        del stale["qstat"]
    bench.cluster.fault(**stale)
    job = bench.submit()
    assert batch.observe().jobs == ()

    bench.cluster.fault()

    assert [seen.job_id for seen in batch.observe().jobs] == [job]


@pytest.mark.fault("scheduler answers wrongly")
@systems
@pytest.mark.parametrize("fault", ["down", "lost"])
def test_cancellation_without_an_answer_does_not_count(bench: Bench, fault: str) -> None:
    job = bench.submit()
    bench.cluster.fault(**{CANCELS[bench.system]: fault})

    with pytest.raises(BatchUnavailable):
        bench.batch().cancel([job])


@pytest.mark.fault("scheduler answers wrongly")
@systems
def test_submission_whose_answer_is_lost_is_found_by_its_tag(bench: Bench) -> None:
    bench.cluster.fault(**{SUBMITS[bench.system]: "lost"})
    with pytest.raises(BatchUnavailable):
        bench.submit()

    assert [job.name for job in bench.batch().observe().jobs] == [TAG]
    if bench.system != "gridengine":  # its books know what has left
        assert [job.name for job in bench.batch().ended([], [TAG])] == [TAG]


@pytest.mark.fault("scheduler answers wrongly")
@systems
@pytest.mark.parametrize("fault", ["down", "empty", "partial"])
def test_submission_that_may_have_been_taken_is_not_a_refusal(bench: Bench, fault: str) -> None:
    bench.cluster.fault(**{SUBMITS[bench.system]: fault})

    with pytest.raises(BatchUnavailable):
        bench.submit()


@systems
def test_greeting_before_the_job_id_is_harmless(bench: Bench) -> None:
    bench.cluster.fault(**{SUBMITS[bench.system]: "garbage"})

    job = bench.submit()

    assert [seen.job_id for seen in bench.batch().observe().jobs] == [job]


@pytest.mark.fault("scheduler away")
@pytest.mark.parametrize(
    ("system", "command"),
    [
        ("slurm", "squeue"),
        ("pbs", "qselect"),
        ("lsf", "bjobs"),
        ("flux", "flux"),
        ("gridengine", "qstat"),
    ],
)
def test_missing_commands_are_named(system: str, command: str, tmp_path: Path) -> None:
    with pytest.raises(BatchUnavailable, match=rf"{command} cannot be started.*PATH"):
        MAKERS[system](30.0, {"PATH": str(tmp_path)}).observe()


@pytest.mark.parametrize("bench", ["pbs"], indirect=True)
def test_job_that_goes_between_two_commands_is_just_not_listed(bench: Bench) -> None:
    job = bench.submit()
    batch = bench.batch()
    assert [seen.job_id for seen in batch.observe().jobs] == [job]
    bench.cluster.fault(qselect="stale")
    batch.cancel([job])
    wait_until(lambda: batch.ended([job], [])[0].end)

    assert batch.observe().jobs == ()


@pytest.mark.parametrize("bench", ["flux"], indirect=True)
def test_batch_script_of_flux_learns_which_job_it_is(bench: Bench) -> None:
    batch = bench.batch()
    job = BatchJob(
        tag=TAG,
        nodes=1,
        walltime_s=60.0,
        directory=bench.directory,
        command=("sh", "-c", "echo $FLUX_JOB_ID"),
    )
    script = bench.directory / "batch.sh"
    script.write_text(batch.render(job))
    job_id = batch.submit(job, script)
    wait_until(lambda: batch.ended([job_id], [])[0].end)

    assert (bench.directory / "batch.out").read_text() == f"ƒ{job_id[1:]}\n"
