"""What a task will cost at a site, before it is submitted. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from harvester.planning.overhead import fixed_overhead_s
from harvester.planning.shapes import node_share
from harvester.quantities import format_duration
from harvester.site import Site
from payload_runner.protocol import Shape

HOUR_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Node-hours of a search; without a declared duration a guess."""

    site: str
    points: int
    share: float  # of a node, for one evaluation
    each_s: float
    is_guess: bool
    node_hours: float
    warnings: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The forecast for people."""
        guess = " (a guess: payload.expected_minutes is not given)" if self.is_guess else ""
        return (
            f"forecast for {self.site}: about {self.node_hours:.3g} node-hours, {self.points} "
            f"evaluations of {format_duration(self.each_s)}{guess} on {self.share:.3g} node(s) "
            "each, and what allocations spend on starting and ending"
        )


def forecast(
    site: Site, *, shape: Shape, points: int, expected_s: float | None, budget: float | None
) -> Forecast | None:
    """Node-hours of so many evaluations; None where no node can hold one.

    ``budget`` is the task's own, in node-hours.
    """
    share = node_share(shape, site.node)
    if share == math.inf:
        return None
    each_s = site.planning.default_expected_s if expected_s is None else expected_s
    hours = points * share * each_s / HOUR_S
    return Forecast(
        site=site.name,
        points=points,
        share=share,
        each_s=each_s,
        is_guess=expected_s is None,
        node_hours=hours,
        warnings=_warnings(site, hours, budget, share * each_s / HOUR_S),
    )


def _warnings(site: Site, hours: float, budget: float | None, each: float) -> tuple[str, ...]:
    found = []
    if budget is not None and hours > budget:
        found.append(
            f"payload.node_hours ({budget:g}) pays for about {int(budget / each)} evaluations only"
        )
    total, daily = site.budgets.node_hours_total, site.budgets.node_hours_per_day
    if total is not None and hours > total:
        found.append(f"site {site.name} may spend {total:g} node-hours in all: it cannot finish")
    if daily is not None and hours > daily:
        days = math.ceil(hours / daily)
        found.append(f"site {site.name} may spend {daily:g} node-hours a day: at least {days} days")
    longest = max((item.walltime_max_s for queue in site.queues for item in queue.bins), default=0)
    overhead = fixed_overhead_s(site)
    if longest and overhead > longest / 4:
        found.append(f"start and drain take {overhead / longest:.0%} of the longest allocation")
    return tuple(found)
