"""Whole searches on a real Grid Engine of 3 nodes with 4 GPUs each, in good and in bad weather."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable

import pytest

from scripts.stack import Account
from tests.live.clusters import GridCluster
from tests.live.grid_searching import GridSearch

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]


@pytest.fixture
def ordinary(grid: GridCluster, installed: Callable[[GridCluster], Account]) -> Account:
    return installed(grid)


def test_ordinary_user_searches_over_all_gpus_with_an_agent_on_each_node(
    grid: GridCluster, ordinary: Account
) -> None:
    with GridSearch(grid, ordinary, nodes="3", jobs=1) as search:
        search.start(24, seconds=1.5)
        books = search.finish()

        books.check(24)
        places = {point["attempts"][0]["node"] for point in books.points}
        assert places == {"sge1", "sge2", "sge3"}
        (job,) = books.jobs
        assert (job["User"], job["State"]) == (grid.user, "failed 0, exit 0")


@pytest.mark.slow
def test_job_that_the_administrator_deletes_is_replaced(grid: GridCluster) -> None:
    with GridSearch(grid, Account(), nodes="1", jobs=1) as search:
        search.start(4, seconds=15)
        (job,) = search.started_jobs()
        grid.control("qdel", job)
        books = search.finish()

        books.check(4)
        assert len(books.jobs) == 2


def test_allocation_on_another_number_of_hosts_says_so(grid: GridCluster) -> None:
    # "pile" fills a node before it takes another: six slots lie on one.
    with GridSearch(grid, Account(), environment="pile", nodes="3", jobs=1) as search:
        search.start(4)
        words = "gave slots on 1 hosts, 3 were asked for"
        search.wait(
            lambda: any(
                words in path.read_text() for path in search.spool.glob("allocations/*/*/events.*")
            ),
            90,
            "the leader says what is wrong",
        )


@pytest.mark.slow
def test_job_that_waits_or_is_held_says_so(grid: GridCluster) -> None:
    queues = ("all.q", "spare.q")
    grid.control("qmod", "-d", *queues)
    try:
        with GridSearch(grid, Account(), nodes="1", jobs=1) as search:
            search.start(4)
            (waits,) = search.wait(lambda: search.live("queued"), 60, "the job is queued")
            grid.control("qhold", waits["job_id"])
            (held,) = search.wait(lambda: search.live("held"), 60, "the job is held")
            assert held["reason"] == "hqw"
            assert "hqw" in search.stack.harvester("status")
            grid.control("qmod", "-e", *queues)
            grid.control("qrls", waits["job_id"])
            search.finish().check(4)
    finally:
        grid.control("qmod", "-e", *queues)


@pytest.mark.fault("scheduler away")
@pytest.mark.slow
def test_qmaster_that_goes_away_in_mid_run_costs_nothing(
    grid: GridCluster, ordinary: Account
) -> None:
    with GridSearch(grid, ordinary, nodes="1", jobs=1) as search:
        search.start(8, seconds=10)
        search.started_jobs()
        grid.stop_qmaster()
        try:
            search.wait(lambda: "does not answer" in search.problems(), 120, "the breaker opens")
        finally:
            grid.heal()
        books = search.finish()

        books.check(8)
        assert len(books.attempts) == 8


@pytest.mark.fault("node lost")
@pytest.mark.slow
def test_lost_node_costs_only_what_ran_there(grid: GridCluster, ordinary: Account) -> None:
    with GridSearch(grid, ordinary, nodes="1", jobs=1) as search:
        search.start(8, seconds=10)
        search.started_jobs()
        busy = sorted({point["node"] for point in search.stack.status()["points"]})
        grid.kill(busy[0])
        try:
            # qmaster learns of a job's end from the node that comes back.
            search.wait(lambda: _is_unheard_of(grid, busy[0]), 120, "the node is missed")
        finally:
            grid.heal()
        books = search.finish(timeout=400)

        books.check(8)
        lost = [item for item in books.attempts if item["state"] == "lost"]
        assert {item["state"] for item in books.attempts} <= {"succeeded", "lost"}, lost


@pytest.mark.slow
def test_nodes_are_measured_where_they_are(grid: GridCluster) -> None:
    with GridSearch(grid, Account(), nodes="1-3", jobs=1) as search:
        command = ("site", "probe", str(search.stack.site_file), "--json", "--wait", "2")
        done = subprocess.run(
            search.stack.account.command(*command),
            env=search.stack.environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

        assert done.returncode in (0, 1), done.stderr  # 1: it has corrections
        found = json.loads(done.stdout)
        hosts = {node["host"] for node in found["nodes"]}
        assert len(hosts) == 2
        assert hosts <= {"sge1", "sge2", "sge3"}
        measured = {item["key"]: item["measured"] for item in found["findings"]}
        assert measured["network.compute"] == "no route out"


def _is_unheard_of(grid: GridCluster, node: str) -> bool:
    """Whether qmaster has given up on a node: state u, for unknown."""
    lines = grid.control("qstat", "-f", "-q", "all.q").splitlines()
    (states,) = [line.split()[5:] for line in lines if line.startswith(f"all.q@{node}")]
    return any("u" in state for state in states)
