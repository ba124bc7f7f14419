"""What the next planning would do, from what others may know: status and task summaries. Pure.

The daemon plans from its index, which nobody else opens. The published status and the central
service know less of single attempts, but enough to say what would be submitted, and why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from harvester.model import AttemptId, BackfillWindow, TaskId
from harvester.planning.facts import AllocationFacts, Plan, PlanInput, WaitingAttempt
from harvester.planning.planner import plan
from harvester.site import Site
from payload_runner.protocol import Shape

# More of one kind change nothing in what is planned at a time.
POINTS_MAX = 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Points of one task that could be evaluated now."""

    task: TaskId
    points: int
    shape: Shape
    expected_s: float | None = None
    limit_s: float | None = None
    checkpointable: bool = False
    priority: int = 0
    grace_s: float = 0.0

    def attempts(self) -> tuple[WaitingAttempt, ...]:
        """They as attempts that wait."""
        return tuple(
            WaitingAttempt(
                attempt=AttemptId(f"{self.task}.{number}.0.1"),
                task=self.task,
                shape=self.shape,
                expected_s=self.expected_s,
                limit_s=self.limit_s,
                checkpointable=self.checkpointable,
                priority=self.priority,
                grace_s=self.grace_s,
            )
            for number in range(min(self.points, POINTS_MAX))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What of the site's budgets and jobs is taken already."""

    live: tuple[AllocationFacts, ...] = ()
    submissions: int = 0  # within the last hour
    walltime_step_s: float = 1.0
    stopping: bool = False
    now: float = 0.0  # wall clock, for maintenance windows
    # Queue -> queued and running jobs, not ours: of this user, and of all members of the project.
    other_jobs: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    project_jobs: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    node_hours_left: float | None = None
    windows: tuple[BackfillWindow, ...] = ()


def preview(site: Site, work: Sequence[Work], standing: Standing) -> Plan:
    """The plan for so much work at a site as it stands."""
    return plan(
        PlanInput(
            site=site,
            waiting=tuple(attempt for kind in work for attempt in kind.attempts()),
            allocations=standing.live,
            nothing_more=True,
            submissions_left=max(0, site.budgets.submissions_per_hour - standing.submissions),
            walltime_step_s=standing.walltime_step_s,
            other_jobs=standing.other_jobs,
            project_jobs=standing.project_jobs,
            node_hours_left=standing.node_hours_left,
            windows=standing.windows,
            stopping=standing.stopping,
            now=standing.now,
        )
    )
