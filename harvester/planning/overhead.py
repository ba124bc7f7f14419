"""What of an allocation's walltime no payload can use. Pure; agrees with the runner's own rules."""

from __future__ import annotations

from dataclasses import dataclass

from harvester.planning.facts import PlanInput
from harvester.site import Site
from payload_runner.walltime import GRACE_FRACTION, stopping_grace


@dataclass(frozen=True, slots=True)
class Overhead:
    """Start and drain of an allocation, and the warning that its payloads get before the end."""

    fixed_s: float
    grace_s: float = 0.0

    def usable_s(self, walltime_s: float) -> float:
        """Seconds that payloads have in an allocation of this walltime; may be negative."""
        return walltime_s - self.fixed_s - stopping_grace(walltime_s, self.grace_s)

    def walltime_s(self, usable_s: float) -> float:
        """The shortest walltime that leaves payloads so much time."""
        needed = usable_s + self.fixed_s
        return min(needed + self.grace_s, needed / (1 - GRACE_FRACTION))


def fixed_overhead_s(site: Site) -> float:
    """Seconds that every allocation of a site spends on starting and on its drain margin."""
    return site.planning.boot_margin_s + site.runner.drain_margin_s


def overhead_of(facts: PlanInput) -> Overhead:
    """The overhead of the allocations that the attempts at hand would run in."""
    attempts = [*facts.waiting]
    if facts.typical is not None:
        attempts.append(facts.typical)
    grace = max((attempt.grace_s for attempt in attempts), default=0.0)
    return Overhead(fixed_overhead_s(facts.site), grace)
