"""A node on which every payload dies must not cost good points, nor get the next job."""

from __future__ import annotations

from pathlib import Path

from harvester.batch.port import BatchJob
from harvester.daemon import Daemon
from harvester.effects import InlineEffects
from harvester.errors import SubmissionRefused
from harvester.model import JobId, Tag
from harvester.simulation.cluster import SimulatedCluster
from harvester.simulation.crashes import CrashingBatch, CrashPoint
from harvester.simulation.fleet import Fleet, with_attribution, with_retries
from tests.simulation.daemon_world import problems_of, small_world

HOUR_S = 3600.0
BAD_NODE = "node0001"


class _Stranger(CrashingBatch):
    """Knows its nodes by other names than they do themselves."""

    def __init__(self, cluster: SimulatedCluster, point: CrashPoint) -> None:
        super().__init__(cluster, point)
        self.refused: list[Tag] = []

    def submit(self, job: BatchJob, script: Path) -> JobId:
        if job.exclude_nodes:
            self.refused.append(job.tag)
            raise SubmissionRefused("Invalid node name specified")
        return super().submit(job, script)


def test_bad_node_costs_no_good_point_and_bad_points_still_end(tmp_path: Path) -> None:
    fleet = Fleet(nodes=6, gpus=2, points=30, bad_nodes=0.1, bad_points=0.06, seed=3)

    ours = with_attribution(fleet, tmp_path / "index")
    plain = with_retries(fleet)

    assert (ours.points.precision, ours.points.recall) == (1.0, 1.0)
    assert ours.charges.precision == 1.0
    assert plain.points.precision < 1.0
    assert ours.runs < plain.runs


def test_bad_node_is_told_of_and_excluded_from_later_jobs(tmp_path: Path) -> None:
    world = small_world(tmp_path, bad_nodes=frozenset({BAD_NODE}))
    daemon = world.daemon()
    told: list[str] = []

    def over() -> bool:
        if world.login.exists(world.spool.status):
            told.extend(what for what in problems_of(world) if BAD_NODE in what)
        return world.is_over()

    world.run(daemon, over, limit_s=20 * HOUR_S)

    assert any("are left alone" in what for what in told)
    assert any(BAD_NODE in job.job.exclude_nodes for job in world.cluster.jobs.values())


def test_batch_system_that_knows_no_such_node_still_gets_jobs(tmp_path: Path) -> None:
    world = small_world(tmp_path, bad_nodes=frozenset({BAD_NODE}))
    batch = _Stranger(world.cluster, CrashPoint())
    daemon = Daemon(
        world.scenario.site,
        batch=batch,
        central=world.central,
        files=world.login,
        clock=world.clock,
        effects=InlineEffects(),
        seed=1,
    )

    world.run(daemon, world.is_over, limit_s=40 * HOUR_S)

    assert len(batch.refused) == 1
