"""Whole searches on a real Slurm of 3 nodes with 4 GPUs each, in good and in bad weather."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.stack import Account
from tests.live.clusters import SlurmCluster
from tests.live.searching import Search

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]
QUERY_INTERVAL_S = 2.0


@pytest.fixture
def ordinary(slurm_cluster: SlurmCluster, installed: Callable[[SlurmCluster], Account]) -> Account:
    return installed(slurm_cluster)


def test_ordinary_user_searches_over_all_gpus_of_three_nodes(
    slurm_cluster: SlurmCluster, ordinary: Account
) -> None:
    with Search(slurm_cluster, ordinary, nodes="3", jobs=1) as search:
        search.start(24, seconds=2)
        books = search.finish()

        books.check(24)
        places = {point["attempts"][0]["node"] for point in books.points}
        assert places == {"node1", "node2", "node3"}
        assert len(books.attempts) == 24
        assert {job["User"] for job in books.jobs} == {"hpcuser"}


def test_one_query_serves_all_jobs_and_is_counted(slurm_cluster: SlurmCluster) -> None:
    with Search(
        slurm_cluster, Account(), nodes="1", jobs=3, boot_margin="0s", drain_margin="1s"
    ) as search:
        search.start(18, seconds=6)
        search.started_jobs(2)
        shown = search.stack.status()["budgets"]
        books = search.finish()

        books.check(18)
        assert len(books.jobs) >= 2
        looks = search.calls("squeue", without="--start")
        apart = [later - earlier for earlier, later in itertools.pairwise(looks)]
        assert min(apart) > 0.9 * QUERY_INTERVAL_S
        asked = ("squeue", "sacct", "sinfo", "scontrol")
        assert books.queries == sum(len(search.calls(name)) for name in asked)
        assert search.calls("sinfo")  # for idle nodes, before a submission
        assert shown["queries_last_minute"] >= 1
        assert shown["submissions_last_hour"] >= 2
        assert shown["queries_allowed"] == 40


@pytest.mark.fault("walltime or preemption")
def test_payload_that_the_walltime_cuts_goes_on_in_the_next_allocation(
    slurm_cluster: SlurmCluster, ordinary: Account
) -> None:
    with Search(
        slurm_cluster, ordinary, nodes="1", jobs=1, walltime="00:01:00", drain_margin="25s"
    ) as search:
        search.start(2, seconds=40)
        books = search.finish()

        books.check(2)
        assert len(books.jobs) >= 2
        for point in books.points:
            *cut, last = point["attempts"]
            assert {attempt["state"] for attempt in cut} == {"timed_out"}
            assert last["resumed_from"] == cut[-1]["n"]


@pytest.mark.fault("second job of a tag, or requeued")
@pytest.mark.slow
def test_requeued_job_takes_up_its_work_under_its_old_id(
    slurm_cluster: SlurmCluster, ordinary: Account
) -> None:
    with Search(slurm_cluster, ordinary, nodes="1", jobs=1, requeue="true") as search:
        search.start(4, seconds=15)
        (job,) = search.started_jobs()
        slurm_cluster.control("requeue", job)
        books = search.finish()

        books.check(4)
        starts = {path.name for path in search.spool.glob(f"allocations/*/{job}.*")}
        assert starts == {f"{job}.0", f"{job}.1"}
        (again,) = search.spool.glob(f"allocations/*/{job}.1/events.*.log")
        assert '"attempt_started"' in again.read_text()


def test_job_that_the_administrator_cancels_is_replaced(
    slurm_cluster: SlurmCluster, ordinary: Account
) -> None:
    with Search(slurm_cluster, ordinary, nodes="1", jobs=1) as search:
        search.start(4, seconds=15)
        (job,) = search.started_jobs()
        subprocess.run(["scancel", job], check=True)
        books = search.finish()

        books.check(4)
        assert len(books.jobs) == 2
        ends = {item["JobID"]: item["State"] for item in books.jobs}
        assert ends[job].startswith("CANCELLED")


@pytest.mark.slow
def test_job_that_waits_or_is_held_says_why(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    blocker = _occupy(slurm_cluster)
    try:
        with Search(slurm_cluster, Account(), nodes="1", jobs=1) as search:
            search.start(4)
            waits = search.wait(lambda: search.live("queued"), 60, "the job is queued")
            search.wait(lambda: _says(search, "Resources"), 60, "it says that it waits for nodes")
            slurm_cluster.control("hold", waits[0]["job_id"])
            held = search.wait(lambda: search.live("held"), 60, "the job is held")
            assert held[0]["reason"] == "JobHeldAdmin"
            screen = search.stack.harvester("status")
            assert "JobHeldAdmin" in screen
            slurm_cluster.control("release", waits[0]["job_id"])
            subprocess.run(["scancel", blocker], check=True)
            search.finish().check(4)
    finally:
        subprocess.run(["scancel", blocker], check=True)


@pytest.mark.fault("daemon killed")
def test_daemon_that_dies_between_submission_and_record_finds_its_job_again(
    slurm_cluster: SlurmCluster, ordinary: Account
) -> None:
    with Search(slurm_cluster, ordinary, nodes="1", jobs=1) as search:
        search.after("sbatch", "kill -KILL $1")
        search.start(4)
        assert search.stack.wait_for_daemon(60) == -9
        search.after("sbatch", "true")

        search.stack.start_daemon()
        books = search.finish()

        books.check(4)
        assert len(search.calls("sbatch")) == 1


@pytest.mark.fault("scheduler away")
@pytest.mark.slow
def test_search_goes_on_without_the_accounting_daemon(
    slurm_cluster: SlurmCluster, ordinary: Account
) -> None:
    slurm_cluster.stop("slurmdbd")
    try:
        with Search(slurm_cluster, ordinary, nodes="1", jobs=1) as search:
            search.start(4)
            search.settle()
            slurm_cluster.heal()
            search.finish().check(4)
    finally:
        slurm_cluster.heal()


@pytest.mark.fault("scheduler away")
@pytest.mark.slow
def test_nothing_is_submitted_while_the_controller_is_away(
    slurm_cluster: SlurmCluster, ordinary: Account
) -> None:
    slurm_cluster.stop("slurmctld")
    try:
        with Search(slurm_cluster, ordinary, nodes="1", jobs=1) as search:
            search.start(4)
            search.wait(lambda: "does not answer" in search.problems(), 90, "the breaker opens")
            assert search.stack.status()["budgets"]["breaker"].startswith("open since")
            assert search.calls("sbatch") == []
            slurm_cluster.heal()
            search.finish().check(4)
            assert search.problems() == ""
    finally:
        slurm_cluster.heal()


@pytest.mark.fault("scheduler away")
@pytest.mark.slow
def test_controller_that_goes_away_in_mid_run_costs_nothing(
    slurm_cluster: SlurmCluster, ordinary: Account
) -> None:
    with Search(slurm_cluster, ordinary, nodes="1", jobs=2, boot_margin="0s") as search:
        search.start(24, seconds=12)
        search.started_jobs(2)
        slurm_cluster.stop("slurmctld")
        try:
            search.wait(lambda: "does not answer" in search.problems(), 90, "the breaker opens")
        finally:
            slurm_cluster.heal()
        books = search.finish()

        books.check(24)
        assert len(books.attempts) == 24


@pytest.mark.fault("node lost")
@pytest.mark.slow
@pytest.mark.parametrize(("nodes", "victim"), [("1", "first"), ("3", "last")])
def test_lost_node_costs_only_what_ran_there(
    slurm_cluster: SlurmCluster, ordinary: Account, nodes: str, victim: str
) -> None:
    """``first``: a job's only node, with its leader. ``last``: another node than the leader's."""
    jobs = 2 if nodes == "1" else 1
    with Search(slurm_cluster, ordinary, nodes=nodes, jobs=jobs, boot_margin="0s") as search:
        search.start(24, seconds=12)
        search.started_jobs(jobs)
        busy = sorted({point["node"] for point in search.stack.status()["points"]})
        slurm_cluster.kill(busy[0] if victim == "first" else busy[-1])
        try:
            search.wait(lambda: search.live("ended"), 240, "the lost node's job has ended")
        finally:
            slurm_cluster.heal()
        books = search.finish(timeout=400)

        books.check(24)
        assert "NODE_FAIL" in {item["State"] for item in books.jobs}


def test_users_own_allocation_joins_from_inside_salloc(
    slurm_cluster: SlurmCluster, ordinary: Account
) -> None:
    with Search(slurm_cluster, ordinary, nodes="1", jobs=1) as search:
        search.stack.harvester("alloc", "wrap", "--site", str(search.stack.site_file))
        (runner,) = search.spool.glob("runner/*.pyz")
        line = (
            f"salloc --nodes=2 --gres=gpu:4 --cpus-per-task=8 --mem=6000M --time=10 "
            f"/usr/bin/python3 {runner} join {search.spool} --walltime 10m"
        )
        with search.as_user(line) as own:
            search.wait(lambda: list(search.spool.glob("allocations/*/joined")), 60, "it joined")
            search.start(16, seconds=2)
            books = search.settle_with(own)

        books.check(16)
        assert len(books.joined) == 1
        places = {(attempt["tag"], attempt["node"]) for attempt in books.attempts}
        nodes = {node for tag, node in places if tag == books.joined[0]["tag"]}
        assert len(nodes) == 2
        assert not search.calls("scancel")


def _says(search: Search, reason: str) -> bool:
    return any(item["reason"] == reason for item in search.live("queued"))


def _occupy(cluster: SlurmCluster) -> str:
    """Somebody else's job on all nodes; its id."""
    done = subprocess.run(
        ["sbatch", "--parsable", f"--nodes={cluster.nodes}", "--exclusive", "--output=/dev/null",
         f"--chdir={cluster.shared}", "--uid=nobody", "--wrap=sleep 600"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ},
    )  # fmt: skip
    return done.stdout.strip()
