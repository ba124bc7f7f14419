"""One start of a batch script: identity, claim, what ran before (rule 16), time left."""

from __future__ import annotations

import stat
import time
from pathlib import Path

import pytest

from harvester.clock import FakeClock
from payload_runner.files import RealFiles
from payload_runner.incarnation import (
    Job,
    NoJob,
    NotOurs,
    await_quiet,
    claim,
    earlier_starts,
    enter,
    job_from,
    read_history,
)
from payload_runner.logfile import LogWriter
from payload_runner.protocol import (
    AllocationPaths,
    AllocationPlan,
    IncarnationPaths,
    NodeShape,
    SpoolPaths,
)
from payload_runner.walltime import remaining_at_start, stopping_grace

FILES = RealFiles()


@pytest.fixture
def paths(tmp_path: Path) -> AllocationPaths:
    made = SpoolPaths(tmp_path).allocation("haaaaa-bbbbbb")
    FILES.make_dir(made.root)
    return made


@pytest.mark.parametrize(
    ("environ", "job"),
    [
        ({"SLURM_JOB_ID": "7"}, Job("7", 0)),
        ({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "2"}, Job("7", 2)),
        ({"HARVESTER_LOCAL_JOB_ID": "j1", "HARVESTER_LOCAL_RESTART": "1"}, Job("j1", 1)),
        ({"PBS_JOBID": "12[3].pbs01"}, Job("12[3].pbs01", None)),
        ({"LSB_JOBID": "5"}, Job("5", None)),
        ({"JOB_ID": "9", "RESTARTED": "1"}, Job("9", None)),
        ({"FLUX_JOB_ID": "f23"}, Job("f23", None)),
    ],
)
def test_the_job_is_known_from_each_batch_systems_environment(
    environ: dict[str, str], job: Job
) -> None:
    assert job_from(environ) == job


def test_told_options_win_and_no_job_at_all_is_an_error() -> None:
    assert job_from({"SLURM_JOB_ID": "7"}, "8", 1) == Job("8", 1)
    with pytest.raises(NoJob, match="--job-id"):
        job_from({})


@pytest.mark.fault("second job of a tag, or requeued")
def test_the_first_job_has_the_tag_and_a_second_one_leaves_at_once(paths: AllocationPaths) -> None:
    clock = FakeClock()
    claim(FILES, paths, Job("1", 0), clock.monotonic, clock.advance)
    claim(FILES, paths, Job("1", 1), clock.monotonic, clock.advance)
    before = clock.monotonic()
    with pytest.raises(NotOurs, match="belongs to job 1; job 2 leaves"):
        claim(FILES, paths, Job("2", 0), clock.monotonic, clock.advance)
    assert clock.monotonic() - before < 10


def test_a_claim_that_stays_unreadable_belongs_to_someone_else(paths: AllocationPaths) -> None:
    clock = FakeClock()
    paths.claim.write_bytes(b"")
    before = clock.monotonic()
    with pytest.raises(NotOurs):
        claim(FILES, paths, Job("2", 0), clock.monotonic, clock.advance)
    assert clock.monotonic() - before < 10


def test_an_incarnation_is_private_and_taken_only_once(paths: AllocationPaths) -> None:
    mine = enter(FILES, paths, Job("7", 0))
    assert mine.name == "7.0"
    assert stat.S_IMODE(mine.root.stat().st_mode) == 0o700
    assert stat.S_IMODE(mine.secret.stat().st_mode) == 0o600
    assert len(mine.secret.read_bytes().strip()) == 64
    with pytest.raises(NotOurs):
        enter(FILES, paths, Job("7", 0))


def test_without_a_count_each_start_takes_the_next_number(paths: AllocationPaths) -> None:
    names = [enter(FILES, paths, Job("7.pbs")).name for _ in range(3)]
    assert names == ["7_pbs.0", "7_pbs.1", "7_pbs.2"]


def write_events(paths: IncarnationPaths, *records: tuple[str, dict[str, object]]) -> None:
    log = LogWriter(FILES, paths.events("0-aa"), time.time, time.monotonic)
    for kind, fields in records:
        log.append(kind, fields)
    log.close()


def test_what_an_earlier_start_did_is_read_from_its_events(paths: AllocationPaths) -> None:
    first = enter(FILES, paths, Job("7", 0))
    mine = enter(FILES, paths, Job("7", 1))
    ended: dict[str, object] = {"attempt": "1.2.1.1", "state": "succeeded", "loss": 1.0}
    write_events(
        first,
        ("attempt_started", {"attempt": "1.1.1.1", "nodes": ["n0"]}),
        ("attempt_started", {"attempt": "1.2.1.1", "nodes": ["n0"]}),
        ("attempt_ended", ended),
        ("handed_back", {"attempts": ["1.3.1.1", "1.4.1.1"], "reason": "no room"}),
    )
    earlier = earlier_starts(FILES, paths, mine)
    history = read_history(FILES, earlier, time.monotonic)
    assert [other.name for other in earlier] == ["7.0"]
    assert history.unfinished() == ("1.1.1.1",)
    assert history.outcomes == {
        "1.2.1.1": ("attempt_ended", ended),
        "1.3.1.1": ("handed_back", {"attempts": ["1.3.1.1"], "reason": "no room"}),
        "1.4.1.1": ("handed_back", {"attempts": ["1.4.1.1"], "reason": "no room"}),
    }


def test_a_new_start_waits_until_the_earlier_one_has_been_silent(paths: AllocationPaths) -> None:
    first = enter(FILES, paths, Job("7", 0))
    write_events(first, ("attempt_started", {"attempt": "1.1.1.1", "nodes": ["n0"]}))
    clock = FakeClock()
    began, grown = clock.monotonic(), 0

    def sleep(seconds: float) -> None:
        nonlocal grown
        clock.advance(seconds)
        if grown < 20:  # its agents still write
            grown += 1
            with first.outbox(0, "aa").open("a") as box:
                box.write("x")

    await_quiet(FILES, (first,), "local", clock.monotonic, sleep)
    assert clock.monotonic() - began >= 15 + 20


def test_a_new_start_does_not_wait_for_one_that_said_its_last_word(paths: AllocationPaths) -> None:
    first = enter(FILES, paths, Job("7", 0))
    write_events(first, ("allocation_ended", {"reason": "done"}))
    clock = FakeClock()
    began = clock.monotonic()
    await_quiet(FILES, (first,), "shared", clock.monotonic, clock.advance)
    assert clock.monotonic() == began


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, 3600.0),
        ({"SLURM_JOB_END_TIME": "1600"}, 600.0),
        ({"HARVESTER_LOCAL_END": "1000.5"}, 0.5),
        ({"SLURM_JOB_END_TIME": "99999"}, 3600.0),
        ({"SLURM_JOB_END_TIME": "900"}, 3600.0),
        ({"SLURM_JOB_END_TIME": "soon"}, 3600.0),
    ],
)
def test_the_earlier_end_counts_unless_it_makes_no_sense(
    environ: dict[str, str], expected: float
) -> None:
    plan = AllocationPlan("haaaaa-bbbbbb", "aaaaa", 1, NodeShape(), 3600.0, "slurm")
    assert remaining_at_start(plan, environ, 1000.0) == expected


def test_stopping_payloads_takes_at_most_a_quarter_of_a_short_allocation() -> None:
    assert stopping_grace(3600.0, 40.0) == 40.0
    assert stopping_grace(60.0, 40.0) == 15.0
