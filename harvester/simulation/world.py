"""A whole simulated world around the production daemon: disk, cluster, runners, central service.

``World.run`` moves the fake clock from one of the daemon's ticks to the next and lets everything
else happen in between. A world survives its daemons: after a :class:`~.crashes.Crash` the next
daemon starts on what the last one left on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harvester.batch.port import BatchJob
from harvester.clock import FakeClock
from harvester.daemon import Daemon
from harvester.effects import InlineEffects
from harvester.planning.planner import plan
from harvester.simulation.agenda import Agenda
from harvester.simulation.central import SimulatedCentral
from harvester.simulation.cluster import JobStart, SimulatedCluster
from harvester.simulation.crashes import CrashingBatch, CrashingCentral, CrashingFiles, CrashPoint
from harvester.simulation.memory_files import SharedDisk
from harvester.simulation.runner import SimulatedRunner
from harvester.simulation.workload import Workload
from harvester.site import Site
from payload_runner.protocol import PayloadSpec, SpoolPaths

_LOGIN = "login"
# A tick that wants the next one at once gets it after this, so that time always moves.
_SHORTEST_STEP_S = 0.05
_LONGEST_STEP_S = 600.0


class Stuck(Exception):
    """The awaited state was not reached in the simulated time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What is simulated: one search on one site."""

    site: Site  # its index must lie on a real disk, all else is in memory
    payload: PayloadSpec
    parameters: Sequence[Mapping[str, Any]]
    workload: Workload
    nodes: int  # of the whole cluster
    wait_s: Callable[[BatchJob], float]  # from submission to start, if nodes are free
    parallel: int | None = None
    free_until: float | None = None  # the end of backfill windows, wall clock; None: it tells none
    visibility_s: float = 0.0  # until a host sees what another has written
    lease_s: float = 86_400.0
    bad_nodes: frozenset[str] = frozenset()  # every payload dies there within seconds


class World:
    """Everything outside the daemon, under one fake clock."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.clock = FakeClock()
        self.agenda = Agenda(self.clock)
        self.disk = SharedDisk(self.clock.monotonic, scenario.visibility_s)
        self.login = self.disk.host(_LOGIN)
        for directory in (scenario.site.spool, scenario.site.state_dir):
            self.login.make_dir(directory)
        self.spool = SpoolPaths(scenario.site.spool)
        self.central = SimulatedCentral(
            self.clock,
            scenario.payload,
            scenario.parameters,
            parallel=scenario.parallel,
            lease_s=scenario.lease_s,
            files=self.login,
        )
        self.cluster = SimulatedCluster(
            self.agenda,
            self._launch,
            nodes=scenario.nodes,
            wait_s=scenario.wait_s,
            free_until=scenario.free_until,
        )

    def daemon(self, point: CrashPoint | None = None, *, seed: int = 1) -> Daemon:
        """A new daemon on what lies on disk; ``point`` says where it crashes."""
        point = point or CrashPoint()
        return Daemon(
            self.scenario.site,
            batch=CrashingBatch(self.cluster, point),
            central=CrashingCentral(self.central, point),
            files=CrashingFiles(self.login, point),
            clock=self.clock,
            effects=InlineEffects(),
            plan=plan,
            seed=seed,
        )

    def run(self, daemon: Daemon, until: Callable[[], bool], *, limit_s: float) -> None:
        """Let time pass, tick after tick, until ``until`` holds.

        Raises:
            Stuck: it does not hold after ``limit_s`` simulated seconds.
        """
        end = self.clock.monotonic() + limit_s
        while not until():
            if self.clock.monotonic() > end:
                raise Stuck(f"not reached in {limit_s:g} s; {self.central.unsettled} points left")
            outcome = daemon.tick()
            step = min(max(outcome.next_in_s, _SHORTEST_STEP_S), _LONGEST_STEP_S)
            self.agenda.advance(step)

    def is_over(self) -> bool:
        """Whether every point has an outcome and no job is left."""
        return not self.central.unsettled and all(
            job.ended_at is not None for job in self.cluster.jobs.values()
        )

    def lose_login_host(self) -> None:
        """The login node dies: what it had not synced is gone, and the index with it."""
        self.disk.lose_unsynced(_LOGIN)
        index = self.scenario.site.index
        for suffix in ("", "-wal", "-shm"):
            index.with_name(index.name + suffix).unlink(missing_ok=True)

    def _launch(self, start: JobStart) -> SimulatedRunner:
        return SimulatedRunner(
            start,
            files=self.disk.host(start.node_names[0]),
            spool=self.spool,
            agenda=self.agenda,
            workload=self.scenario.workload,
            bad_nodes=self.scenario.bad_nodes,
        )


def parameters_of(count: int) -> Sequence[Mapping[str, Any]]:
    """So many different points."""
    return tuple({"x": n} for n in range(count))
