"""A fleet with a few bad nodes, a search with a few bad points, and who is blamed for what.

The production daemon runs the search under the fake clock. Beside it, on the same fleet, the plain
rule of PanDA: a point has three tries, and whoever fails is charged.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harvester.batch.port import BatchJob
from harvester.model import PointId
from harvester.simulation.workload import Lognormal
from harvester.simulation.world import Scenario, World, parameters_of
from harvester.site import Budgets, PlanningChoice, Queue, RunnerChoice, Site, WalltimeBin
from payload_runner.protocol import NodeShape, PayloadSpec

DAY_S = 86_400.0
TRIES = 3
BAD_NODE_S = 5.0  # how long a payload lives on a bad node
MEDIAN_S = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What is simulated. Shares are of all nodes and of all points."""

    nodes: int = 100
    bad_nodes: float = 0.02
    points: int = 1000
    bad_points: float = 0.01
    gpus: int = 4
    nodes_per_job: int = 1
    seed: int = 1

    def node_names(self) -> tuple[str, ...]:
        """As the simulated cluster calls them."""
        return tuple(f"node{n:04d}" for n in range(self.nodes))

    def broken(self) -> frozenset[str]:
        """The bad nodes."""
        count = max(1, round(self.bad_nodes * self.nodes))
        return frozenset(random.Random(f"{self.seed} nodes").sample(self.node_names(), count))

    def failing(self) -> frozenset[str]:
        """The points that fail wherever they run."""
        count = max(1, round(self.bad_points * self.points))
        names = [str(n) for n in range(self.points)]
        return frozenset(random.Random(f"{self.seed} points").sample(names, count))


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How well a set that was named fits the true one."""

    precision: float  # share of the named that are bad; 1.0 when nobody was named
    recall: float  # share of the bad that were named


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """Who was held to be bad, and what that took."""

    points: Accuracy  # those that got the penalty loss
    charges: Accuracy  # single failures charged to a point, of those on a sound node
    nodes: Accuracy | None  # left alone at some time; None: the rule knows no nodes
    good_points_lost: int
    runs: int


def accuracy(named: frozenset[str], bad: frozenset[str]) -> Accuracy:
    """Precision and recall of ``named``."""
    hits = len(named & bad)
    return Accuracy(hits / len(named) if named else 1.0, hits / len(bad) if bad else 1.0)


def with_attribution(fleet: Fleet, index: Path) -> Attribution:
    """Run the search through the daemon; ``index`` is a new file on a real disk."""
    world = World(_scenario(fleet, index))
    daemon = world.daemon(seed=fleet.seed)
    try:
        world.run(daemon, world.is_over, limit_s=7 * DAY_S)
    finally:
        daemon.close()
    results = world.central.books.results.values()
    failed = [item for item in results if item.state == "failed"]
    charged = frozenset(item.attempt for item in failed if item.blame == "point")
    own = frozenset(item.attempt for item in failed if item.node not in fleet.broken())
    lost = frozenset(
        point.point for point in world.central.points.values() if point.state == "failed"
    )
    left_alone = frozenset(
        name for job in world.cluster.jobs.values() for name in job.job.exclude_nodes
    )
    return Attribution(
        points=accuracy(frozenset(map(str, lost)), fleet.failing()),
        charges=accuracy(charged, own),
        nodes=accuracy(left_alone, fleet.broken()),
        good_points_lost=len(lost - {PointId(name) for name in fleet.failing()}),
        runs=len(results),
    )


def with_retries(fleet: Fleet) -> Attribution:
    """The same search where every failure is the point's, which has three tries."""
    work = _workload(fleet)
    broken, failing = fleet.broken(), fleet.failing()
    durations = random.Random(f"{fleet.seed} durations")
    # When each GPU is free: the one that is free first takes the next point, so that a bad node,
    # which is free again at once, takes far more than its share.
    slots = [(0.0, n, node) for n, node in enumerate(fleet.node_names() * fleet.gpus)]
    waiting: list[tuple[str, int]] = [(str(n), 0) for n in range(fleet.points)]
    lost: set[str] = set()
    charged: set[str] = set()
    own: set[str] = set()
    runs = 0
    while waiting:
        point, tries = waiting.pop(0)
        free_at, n, node = min(slots)
        runs += 1
        bad_node, bad_point = node in broken, point in failing
        lasts = BAD_NODE_S if bad_node else work.median_s * durations.lognormvariate(0, work.sigma)
        slots[n] = (free_at + lasts, n, node)
        if not (bad_node or bad_point):
            continue
        charged.add(f"{point}.{tries}")
        if not bad_node:
            own.add(f"{point}.{tries}")
        if tries + 1 < TRIES:
            waiting.append((point, tries + 1))
        else:
            lost.add(point)
    return Attribution(
        points=accuracy(frozenset(lost), failing),
        charges=accuracy(frozenset(charged), frozenset(own)),
        nodes=None,
        good_points_lost=len(lost - failing),
        runs=runs,
    )


def _workload(fleet: Fleet) -> Lognormal:
    return Lognormal(median_s=MEDIAN_S, sigma=0.3, seed=fleet.seed, failing=fleet.failing())


def _scenario(fleet: Fleet, index: Path) -> Scenario:
    per_job = fleet.nodes_per_job
    bins = (WalltimeBin(nodes_min=1, nodes_max=per_job, walltime_max_s=14_400.0),)
    jobs = max(1, fleet.nodes // (2 * per_job))
    site = Site(
        name="fleet",
        batch_system="simulated",
        node=NodeShape(gpus=fleet.gpus, cores=16),
        queues=(Queue(name="batch", bins=bins),),
        spool=Path("/spool"),
        state_dir=Path("/state"),
        index=index,
        budgets=Budgets(jobs_in_flight=jobs, submissions_per_hour=10 * jobs),
        planning=PlanningChoice(boot_margin_s=30.0, default_expected_s=MEDIAN_S),
        runner=RunnerChoice(drain_margin_s=60.0),
    )
    return Scenario(
        site=site,
        payload=PayloadSpec("p1", "python train.py"),
        parameters=parameters_of(fleet.points),
        workload=_workload(fleet),
        nodes=fleet.nodes,
        wait_s=_wait_s(fleet),
        bad_nodes=fleet.broken(),
    )


def _wait_s(fleet: Fleet) -> Callable[[BatchJob], float]:
    rng = random.Random(f"{fleet.seed} queue")

    def wait(job: BatchJob) -> float:
        del job
        return rng.uniform(30.0, 600.0)

    return wait
