"""How long this allocation has: from the plan, and from what the batch system says. Pure."""

from __future__ import annotations

from typing import Mapping, Optional

from payload_runner.protocol import AllocationPlan

_END_VARIABLES = ("SLURM_JOB_END_TIME", "HARVESTER_LOCAL_END")  # seconds since the epoch
# Warning and killing payloads must not eat up a short allocation.
GRACE_FRACTION = 0.25


def remaining_at_start(
    plan: AllocationPlan, environ: Mapping[str, str], wall_clock: float
) -> float:
    """Seconds from the leader's start to the job's end.

    The batch system's end is believed only where it is earlier than the plan's: its clock need
    not be this node's, and an end in the past says that one of them is wrong.
    """
    end = _end_from(environ)
    if end is None or end <= wall_clock:
        return plan.walltime_s
    return min(plan.walltime_s, end - wall_clock)


def stopping_grace(walltime_s: float, wanted_s: float) -> float:
    """Seconds before the drain margin at which payloads are warned."""
    return min(wanted_s, walltime_s * GRACE_FRACTION)


def _end_from(environ: Mapping[str, str]) -> Optional[float]:
    for name in _END_VARIABLES:
        try:
            return float(environ[name])
        except (KeyError, ValueError):
            continue
    return None
