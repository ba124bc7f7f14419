"""What a site still lets us submit: job limits, budgets, and the bins that queues offer. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from harvester.model import AllocationState
from harvester.planning.facts import NewAllocation, PlanInput
from harvester.planning.overhead import Overhead
from harvester.planning.windows import Window, next_window
from harvester.site import Queue, Site

_STARTED = (AllocationState.RUNNING, AllocationState.DRAINING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Allocations that one bin of one queue allows, within the site's preferences."""

    queue: Queue
    nodes_min: int
    nodes_max: int
    walltime_max_s: float
    walltime_min_s: float
    overhead: Overhead

    @property
    def usable_max_s(self) -> float:
        """The longest time that payloads can have."""
        return self.overhead.usable_s(self.walltime_max_s)


def offers(site: Site, overhead: Overhead) -> tuple[Offer, ...]:
    """Every bin of every queue that the preferences leave over, in the site's order."""
    return tuple(_offers(site, overhead))


def _offers(site: Site, overhead: Overhead) -> Iterable[Offer]:
    wish = site.planning
    for queue in site.queues:
        if not (queue.name in wish.queues if wish.queues else queue.planned):
            continue
        for found in queue.bins:
            offer = Offer(
                queue=queue,
                nodes_min=max(1, found.nodes_min),
                nodes_max=min(found.nodes_max, wish.nodes_max or found.nodes_max),
                walltime_max_s=min(
                    found.walltime_max_s, wish.walltime_max_s or found.walltime_max_s
                ),
                walltime_min_s=wish.walltime_min_s,
                overhead=overhead,
            )
            if offer.nodes_min <= offer.nodes_max and offer.usable_max_s > 0:
                yield offer


def is_offered(site: Site, queue: str, nodes: int, walltime_s: float) -> bool:
    """Whether some bin allows an allocation; one planned by another site file it may not."""
    return any(
        offer.queue.name == queue
        and offer.nodes_min <= nodes <= offer.nodes_max
        and walltime_s <= offer.walltime_max_s
        for offer in offers(site, Overhead(0.0))
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What may still be submitted. ``take`` answers what is left after one more."""

    submissions: int
    jobs: int  # in flight, all queues
    jobs_allowed: int
    per_queue: Mapping[str, int]
    node_hours: float | None
    walltime_step_s: float = 1.0
    window: Window | None = None  # the next maintenance

    @classmethod
    def of(cls, facts: PlanInput) -> Limits:
        """The limits as the facts leave them."""
        ended = AllocationState.ENDED
        live = [
            found for found in facts.allocations if found.state is not ended and not found.joined
        ]
        ours_started = Counter(found.queue for found in live if found.state in _STARTED)
        ours_waiting = Counter(found.queue for found in live if found.state not in _STARTED)
        room = {}
        for queue in facts.site.queues:
            waiting, running = _others(queue, facts)
            room[queue.name] = _room(
                queue,
                waiting=ours_waiting[queue.name] + waiting,
                running=ours_started[queue.name] + running,
            )
        allowed = facts.site.budgets.jobs_in_flight
        return cls(
            submissions=facts.submissions_left,
            jobs=allowed - len(live),
            jobs_allowed=allowed,
            per_queue=room,
            node_hours=facts.node_hours_left,
            walltime_step_s=facts.walltime_step_s,
            window=next_window(facts.site.reservations, facts.now),
        )

    def refusal(self, offer: Offer) -> str | None:
        """Why nothing of this offer can be submitted now, as a sentence; None when it can."""
        if self.submissions <= 0:
            return (
                "no submission is allowed now: the hourly budget is used up, or the batch system "
                "does not answer soundly"
            )
        if self.jobs <= 0:
            return f"all {self.jobs_allowed} jobs that the site's budget allows are in flight"
        if self.per_queue[offer.queue.name] <= 0:
            queue = offer.queue
            return f"queue {queue.name} takes no more jobs of this {queue.limits_per} now"
        if self.window is not None and self._usable_s(offer, self.window.in_s) <= 0:
            return self.window.sentence
        if offer.overhead.usable_s(self.walltime_s(offer, offer.nodes_min)) <= 0:
            return (
                f"the node-hours left ({self.node_hours:.1f}) do not pay for an allocation of "
                f"{offer.nodes_min} nodes in queue {offer.queue.name}"
            )
        return None

    def walltime_s(self, offer: Offer, nodes: int) -> float:
        """The longest walltime that offer, node-hours and maintenance allow for so many nodes."""
        longest = offer.walltime_max_s
        if self.window is not None:
            longest = min(longest, self.whole_steps(self.window.in_s))
        if self.node_hours is not None:
            longest = min(longest, self.whole_steps(self.node_hours * 3600 / nodes))
        return longest

    def _usable_s(self, offer: Offer, walltime_s: float) -> float:
        return offer.overhead.usable_s(min(offer.walltime_max_s, self.whole_steps(walltime_s)))

    def whole_steps(self, seconds: float) -> float:
        """The longest walltime within so many seconds that the batch system grants as it is."""
        if seconds == math.inf:
            return seconds
        return math.floor(seconds / self.walltime_step_s) * self.walltime_step_s

    def granted_s(self, asked_s: float) -> float:
        """The walltime that the batch system makes of such a request."""
        return math.ceil(asked_s / self.walltime_step_s) * self.walltime_step_s

    def take(self, chosen: NewAllocation) -> Limits:
        """What is left once ``chosen`` is submitted."""
        hours = self.node_hours
        return replace(
            self,
            submissions=self.submissions - 1,
            jobs=self.jobs - 1,
            per_queue={
                **self.per_queue,
                chosen.queue: self.per_queue[chosen.queue] - 1,
            },
            node_hours=None if hours is None else hours - chosen.nodes * chosen.walltime_s / 3600,
        )


def _others(queue: Queue, facts: PlanInput) -> tuple[int, int]:
    """Jobs that are not ours, waiting and running, that count against a queue's limits.

    They are this user's, or those of all members of the project where the centre counts so. Behind
    a routing queue they are listed under other names; a QOS is not what jobs are listed by, so
    that every job in a queue that the site does not know counts against it. One of which no queue
    is said counts everywhere.
    """
    others = facts.project_jobs if queue.limits_per == "project" else facts.other_jobs
    names = {"", queue.name, *queue.routes_to}
    if queue.kind == "qos":
        known = {item.name for item in facts.site.queues if item.kind == "queue"}
        names |= set(others) - known
    found = [others.get(name, (0, 0)) for name in names]
    return sum(waiting for waiting, _ in found), sum(running for _, running in found)


def _room(queue: Queue, *, waiting: int, running: int) -> int:
    """Jobs that the queue still takes. Beyond ``running_max`` one more may stand in line."""
    rooms = [10**6]
    if queue.queued_max is not None:
        rooms.append(queue.queued_max - waiting)
    if queue.total_max is not None:
        rooms.append(queue.total_max - waiting - running)
    if queue.running_max is not None:
        rooms.append(queue.running_max + 1 - waiting - running)
    return min(rooms)
