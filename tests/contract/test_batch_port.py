"""The contract of ``BatchSystem``, kept by every implementation that runs here for real.

The local one is itself; the others are our adapters over fake commands with the habits of the real
ones (``tests/fakes``). What only a real Slurm or Grid Engine can show is in ``tests/live``.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from harvester.batch.flux import Flux
from harvester.batch.gridengine import GridEngine
from harvester.batch.local import LocalBatch
from harvester.batch.lsf import Lsf
from harvester.batch.pbs import Pbs
from harvester.batch.port import BatchJob, BatchSystem, JobEnd, JobState, ObservedJob
from harvester.batch.slurm import Slurm
from harvester.errors import SubmissionRefused
from harvester.model import JobId, Tag
from payload_runner.protocol import NodeShape
from tests.fakes.cluster import FakeCluster
from tests.support import wait_until

TAG = Tag("habcde-aaaaaa")
OTHER = Tag("habcde-bbbbbb")


@dataclass
class Bench:
    """An implementation with a place to work in."""

    batch: BatchSystem
    directory: Path

    def job(self, *command: str, tag: Tag = TAG, walltime_s: float = 60.0) -> BatchJob:
        directory = self.directory / tag
        directory.mkdir(exist_ok=True)
        return BatchJob(
            tag=tag,
            nodes=1,
            walltime_s=walltime_s,
            directory=directory,
            command=command,
            gpus_per_node=1,
            cores_per_node=1,
        )

    def submit(self, job: BatchJob) -> JobId:
        script = job.directory / "batch.sh"
        script.write_text(self.batch.render(job))
        return self.batch.submit(job, script)

    def state(self, job: JobId) -> JobState | None:
        return next((seen.state for seen in self.batch.observe().jobs if seen.job_id == job), None)

    def wait_for_end(self, job: JobId) -> ObservedJob:
        (end,) = wait_until(lambda: self._final(job))
        return end

    def _final(self, job: JobId) -> list[ObservedJob]:
        return [seen for seen in self.batch.ended([job], []) if seen.state is JobState.ENDED]

    def output(self, tag: Tag = TAG) -> str:
        path = self.directory / tag / "batch.out"
        return path.read_text() if path.exists() else ""


MAKERS: Mapping[str, Callable[..., BatchSystem]] = {
    "slurm": Slurm,
    "pbs": Pbs,
    "lsf": Lsf,
    "flux": Flux,
    "gridengine": GridEngine,
}


@pytest.fixture(params=["local", *MAKERS])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    if request.param == "local":
        local = LocalBatch(tmp_path / "cluster", 2, NodeShape(gpus=2, cores=2), 0.5)
        yield Bench(local, tmp_path)
        local.shut_down()
        return
    with FakeCluster(tmp_path / "cluster", request.param) as cluster:
        environment = cluster.environment(os.environ)
        yield Bench(MAKERS[request.param](environment=environment), tmp_path)


class TestBatchPort:
    def test_submitted_job_is_listed_under_its_tag(self, bench: Bench) -> None:
        job = bench.submit(bench.job("sleep", "60"))

        (seen,) = wait_until(lambda: [j for j in bench.batch.observe().jobs if j.job_id == job])

        assert (seen.name, seen.nodes, seen.end) == (TAG, 1, None)
        assert seen.state in (JobState.QUEUED, JobState.RUNNING)

    def test_running_job_names_its_nodes(self, bench: Bench) -> None:
        job = bench.submit(bench.job("sleep", "60"))

        wait_until(lambda: bench.state(job) is JobState.RUNNING)

        assert [bool(seen.node_names) for seen in bench.batch.observe().jobs] == [True]

    def test_command_runs_in_its_directory_and_its_output_is_kept(self, bench: Bench) -> None:
        job = bench.submit(bench.job("pwd"))

        bench.wait_for_end(job)

        assert bench.output().strip() == str(bench.directory / TAG)

    def test_arguments_reach_the_command_untouched(self, bench: Bench) -> None:
        words = ("$(id)", "a b", "'\"", "`id`;id", "%j", "\\", "é")
        job = bench.submit(bench.job("printf", "%s\\n", *words))

        bench.wait_for_end(job)

        assert tuple(bench.output().splitlines()) == words

    def test_files_of_a_job_are_private(self, bench: Bench) -> None:
        job = bench.submit(bench.job("touch", "made"))

        bench.wait_for_end(job)

        assert (bench.directory / TAG / "made").stat().st_mode & 0o777 == 0o600

    def test_command_takes_the_place_of_the_script(self, bench: Bench) -> None:
        job = bench.submit(bench.job("cat", "/proc/self/comm"))

        bench.wait_for_end(job)

        assert bench.output() == "cat\n"

    def test_exit_zero_is_completed(self, bench: Bench) -> None:
        job = bench.submit(bench.job("true"))

        end = bench.wait_for_end(job)

        assert (end.job_id, end.name, end.end) == (job, TAG, JobEnd.COMPLETED)

    def test_other_exit_is_failed_and_says_so(self, bench: Bench) -> None:
        job = bench.submit(bench.job("sh", "-c", "exit 3"))

        end = bench.wait_for_end(job)

        assert end.end is JobEnd.FAILED
        assert re.search(r"exit 3\b", end.reason)

    def test_cancel_ends_a_running_job(self, bench: Bench) -> None:
        job = bench.submit(bench.job("sleep", "60"))
        wait_until(lambda: bench.state(job) is JobState.RUNNING)

        bench.batch.cancel([job])

        assert bench.wait_for_end(job).end is JobEnd.CANCELLED

    def test_cancel_of_a_job_that_is_gone_is_fine(self, bench: Bench) -> None:
        job = bench.submit(bench.job("true"))
        bench.wait_for_end(job)

        bench.batch.cancel([job, JobId("4000")])

    def test_windows_are_told_by_those_that_say_so_and_lack_what_runs(self, bench: Bench) -> None:
        if not bench.batch.capabilities.window_commands:
            assert bench.batch.backfill_windows() == ()
            return
        assert {window.nodes for window in bench.batch.backfill_windows()} == {2}
        whole = replace(bench.job("sleep", "60"), gpus_per_node=2, cores_per_node=2)
        job = bench.submit(whole)
        wait_until(lambda: bench.state(job) is JobState.RUNNING)

        assert {window.nodes for window in bench.batch.backfill_windows()} == {1}
        assert all(window.until > time.time() for window in bench.batch.backfill_windows())

    def test_held_job_starts_when_it_is_released_and_not_before(self, bench: Bench) -> None:
        assert bench.batch.capabilities.held_submission
        held = bench.submit(replace(bench.job("touch", "made"), held=True))
        # Whoever comes after it passes it.
        bench.wait_for_end(bench.submit(bench.job("true", tag=OTHER)))

        (seen,) = [job for job in bench.batch.observe().jobs if job.job_id == held]
        assert (seen.state, seen.end) == (JobState.HELD, None)
        assert seen.reason
        assert not (bench.directory / TAG / "made").exists()

        bench.batch.release([held])

        assert bench.wait_for_end(held).end is JobEnd.COMPLETED
        assert (bench.directory / TAG / "made").exists()

    def test_held_job_can_be_cancelled(self, bench: Bench) -> None:
        held = bench.submit(replace(bench.job("true"), held=True))

        bench.batch.cancel([held])

        wait_until(lambda: bench.state(held) in (None, JobState.ENDED))

    def test_release_of_what_is_not_held_or_gone_is_fine(self, bench: Bench) -> None:
        ended = bench.submit(bench.job("true"))
        bench.wait_for_end(ended)
        runs = bench.submit(bench.job("sleep", "60", tag=OTHER))
        wait_until(lambda: bench.state(runs) is JobState.RUNNING)

        bench.batch.release([ended])
        bench.batch.release([runs])
        bench.batch.release([])

        assert bench.state(runs) is JobState.RUNNING

    def test_cancel_of_nothing_is_fine(self, bench: Bench) -> None:
        bench.batch.cancel([])

    def test_job_that_does_not_fit_waits_in_the_queue_with_a_reason(self, bench: Bench) -> None:
        whole = replace(bench.job("sleep", "60"), nodes=2, gpus_per_node=2, cores_per_node=2)
        first = bench.submit(whole)
        wait_until(lambda: bench.state(first) is JobState.RUNNING)
        second = bench.submit(bench.job("true", tag=OTHER))

        (seen,) = [j for j in bench.batch.observe().jobs if j.job_id == second]
        assert seen.state is JobState.QUEUED
        assert seen.reason

        bench.batch.cancel([first])
        assert bench.wait_for_end(second).end is JobEnd.COMPLETED

    def test_accounting_finds_a_job_by_its_tag(self, bench: Bench) -> None:
        job = bench.submit(bench.job("true"))
        other = bench.submit(bench.job("true", tag=OTHER))
        bench.wait_for_end(job)
        bench.wait_for_end(other)

        assert [found.job_id for found in bench.batch.ended([], [OTHER])] == [other]
        assert {found.job_id for found in bench.batch.ended([job], [OTHER])} == {job, other}

    def test_accounting_leaves_out_what_it_does_not_know(self, bench: Bench) -> None:
        assert bench.batch.ended([JobId("4000")], [Tag("habcde-zzzzzz")]) == ()

    def test_empty_queue_is_an_empty_observation(self, bench: Bench) -> None:
        assert bench.batch.observe().jobs == ()

    def test_impossible_request_is_refused_with_the_reason(self, bench: Bench) -> None:
        with pytest.raises(SubmissionRefused, match=r"refuse.*\w"):
            bench.submit(replace(bench.job("true"), gpus_per_node=64))
        assert bench.batch.observe().jobs == ()

    def test_walltime_ends_a_job_and_everything_it_started(self, bench: Bench) -> None:
        step = bench.batch.capabilities.walltime_step_s
        if step > 1:
            pytest.skip("limits of whole minutes; the live tests wait for one")
        job = bench.submit(bench.job("sh", "-c", "setsid sleep 60 & sleep 60", walltime_s=1.0))

        assert bench.wait_for_end(job).end is JobEnd.TIMED_OUT

    def test_excluded_nodes_get_no_part_of_the_job(self, bench: Bench) -> None:
        if not bench.batch.capabilities.exclude_nodes:
            pytest.skip("cannot exclude nodes")
        first = bench.submit(bench.job("true"))
        name = bench.wait_for_end(first).node_names

        second = bench.submit(replace(bench.job("true", tag=OTHER), exclude_nodes=(name,)))

        assert name not in bench.wait_for_end(second).node_names.split(",")


@pytest.mark.parametrize("system", MAKERS)
class TestJobsOfOthers:
    """What only batch systems with several users can show."""

    def test_jobs_of_others_are_no_jobs_of_ours(self, system: str, tmp_path: Path) -> None:
        with FakeCluster(tmp_path / "cluster", system) as cluster:
            bench = Bench(MAKERS[system](environment=cluster.environment(os.environ)), tmp_path)
            cluster.plant(user="mate", account="proj", name=TAG)
            job = bench.submit(bench.job("sleep", "60", tag=OTHER))

            seen = bench.batch.observe()

            assert [found.job_id for found in seen.jobs] == [job]
            assert seen.of_project == ()

    def test_jobs_of_the_project_are_listed_apart_whosever_they_are(
        self, system: str, tmp_path: Path
    ) -> None:
        with FakeCluster(tmp_path / "cluster", system) as cluster:
            make = MAKERS[system]
            batch = make(environment=cluster.environment(os.environ), project="proj")
            bench = Bench(batch, tmp_path)
            cluster.plant(user="mate", account="proj", name="waits", queue="debug")
            cluster.plant(user="mate", account="else")
            ours = bench.submit(replace(bench.job("sleep", "60"), account="proj"))
            mine = bench.submit(replace(bench.job("sleep", "60", tag=OTHER), account="else"))

            seen = batch.observe()

            assert [found.job_id for found in seen.jobs] == [ours, mine]
            (waits,) = [found for found in seen.of_project if found.job_id != ours]
            assert (waits.name, waits.state) == ("waits", JobState.HELD)
            # Grid Engine names no queue of a job that waits.
            assert waits.queue in ("debug", "")
            assert len(seen.of_project) == 2
