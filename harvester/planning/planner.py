"""One planning step: from facts to orders, submissions, leases and their reasons. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from harvester.model import AllocationState, AttemptId, Tag
from harvester.planning.backfill import Backfill
from harvester.planning.blockage import blockage, misfit_sentence
from harvester.planning.estimates import Estimator
from harvester.planning.facts import AllocationFacts, NewAllocation, Plan, PlanInput, WaitingAttempt
from harvester.planning.limits import Limits, Offer, offers
from harvester.planning.orders import ahead, left_s, order_attempts
from harvester.planning.overhead import Overhead, overhead_of
from harvester.planning.permission import permitted
from harvester.planning.shapes import misfit, slots
from harvester.planning.sizing import (
    Demand,
    absorb_in_flight,
    choose_allocations,
    demand_of,
    demands,
    usable_s,
)
from harvester.planning.trials import on_trial

# A search hands out its points as results come in: an allocation for the few that wait now would
# end when their successors come. One that is not needed so long closes early and costs nothing.
_ROUNDS_WHILE_MORE_COMES = 4
_STOPPING = "the site's spool is stopped (STOP file or drain request): nothing new is started"


def plan(facts: PlanInput) -> Plan:
    """What to do next. Depends on nothing but the facts; the same facts give the same plan."""
    if facts.stopping:
        return Plan(blocked=dict.fromkeys(_ids(facts.waiting), _STOPPING))
    overhead = overhead_of(facts)
    bins = offers(facts.site, overhead)
    estimator = _estimator(facts, bins)
    held, (facts, forbidden) = _held(facts), permitted(facts, estimator)
    # What rests comes again: it closes and cancels nothing.
    allowed, (facts, series, resting) = facts, on_trial(facts)
    orders = order_attempts(facts, estimator, overhead)
    ordered = {attempt for attempt, _ in orders}
    left = tuple(item for item in facts.waiting if item.attempt not in ordered)
    limits = Limits.of(facts)
    backlog = _backlog(facts, orders, left, estimator, overhead)
    rounds = 1 if facts.nothing_more else _ROUNDS_WHILE_MORE_COMES
    backfill = Backfill(facts.windows, facts.now)
    submit = choose_allocations(backlog, bins, limits, overhead, rounds, backfill)
    for chosen in submit:
        limits = limits.take(chosen)
    return Plan(
        submit=submit,
        orders=orders,
        lease=max(0, _points_wanted(facts, submit, bins, overhead) - held),
        close=_allocations_to_close(allowed),
        cancel=_allocations_to_cancel(allowed, estimator),
        on_trial=series,
        resting=resting,
        forbidden=forbidden,
        blocked={
            **forbidden,
            **resting,
            **_blocked(facts, left, submit, bins, limits, estimator, overhead),
        },
    )


def _estimator(facts: PlanInput, bins: Sequence[Offer]) -> Estimator:
    longest = max((offer.usable_max_s for offer in bins), default=math.inf)
    return Estimator(min(facts.site.planning.default_expected_s, longest), longest)


def _backlog(
    facts: PlanInput,
    orders: Sequence[tuple[AttemptId, Tag]],
    left: tuple[WaitingAttempt, ...],
    estimator: Estimator,
    overhead: Overhead,
) -> tuple[Demand, ...]:
    """Attempts, at hand or to come, that need more than what is in flight."""
    kinds = [(attempt, 1) for attempt in left]
    if facts.typical is not None:
        kinds.append((facts.typical, facts.unleased))
    backlog = demands(kinds, facts.site.node, estimator)
    return absorb_in_flight(backlog, _with_orders(facts, orders), estimator, overhead)


def _with_orders(facts: PlanInput, orders: Sequence[tuple[AttemptId, Tag]]) -> PlanInput:
    """The facts as they will be once the orders are given."""
    waiting = {attempt.attempt: attempt for attempt in facts.waiting}
    given: dict[Tag, list[WaitingAttempt]] = {}
    for attempt, tag in orders:
        given.setdefault(tag, []).append(waiting[attempt])
    return replace(
        facts,
        allocations=tuple(
            replace(found, ordered=(*found.ordered, *given.get(found.tag, ())))
            for found in facts.allocations
        ),
    )


def _held(facts: PlanInput) -> int:
    """Points that are ours and have not ended; those that may not run count too."""
    return len(facts.waiting) + sum(
        len(found.ordered) + len(found.running) for found in facts.allocations
    )


def _points_wanted(
    facts: PlanInput, submit: Sequence[NewAllocation], bins: Sequence[Offer], overhead: Overhead
) -> int:
    """Points to hold, so that the slots in flight have work now and when they next are free."""
    nodes = [found.nodes for found in facts.allocations if usable_s(found, overhead) > 0]
    nodes += [chosen.nodes for chosen in submit]
    if not nodes:
        # The shape of what comes is not known before the first lease: hold enough for one
        # allocation of the first kind that the site offers. Also while nothing may be submitted:
        # only points that wait make it worth asking the batch system whether it is well again.
        nodes = [bins[0].nodes_max] if bins else []
    return math.ceil(sum(_slots(facts, count) for count in nodes) * _lookahead(facts))


def _slots(facts: PlanInput, nodes: int) -> int:
    typical = facts.typical
    if typical is None or misfit(typical.shape, facts.site.node) is not None:
        return nodes * max(1, facts.site.node.gpus)
    return max(1, slots(typical.shape, facts.site.node, nodes))


def _lookahead(facts: PlanInput) -> float:
    """Points per slot: the site's wish, and more where payloads are shorter than their supply."""
    wish = facts.site.planning.lookahead
    if facts.typical is None:
        return wish
    return max(wish, 2.0 * ahead(facts.typical, facts.site.filesystem))


def _is_idle(found: AllocationFacts) -> bool:
    return not found.ordered and not found.running


def _allocations_to_close(facts: PlanInput) -> tuple[Tag, ...]:
    """Running allocations without work when no more will come; the others are closed in turn."""
    if not _work_is_over(facts):
        return ()
    # A user's own job may wait for the next search; its runner leaves when that does not come.
    idle = [found for found in facts.allocations if found.accepting and _is_idle(found)]
    return tuple(found.tag for found in idle if not found.joined)


def _allocations_to_cancel(facts: PlanInput, estimator: Estimator) -> tuple[tuple[Tag, str], ...]:
    """Queued allocations when all that is left will finish in running ones."""
    if not _work_is_over(facts) or not all(
        _finishes(item, found, estimator)
        for found in facts.allocations
        for item in (*found.ordered, *found.running)
    ):
        return ()
    queued = (AllocationState.QUEUED, AllocationState.HELD)
    why = "no point is left that would need it"
    return tuple(
        (found.tag, why)
        for found in facts.allocations
        if found.state in queued and _is_idle(found) and not found.joined
    )


def _work_is_over(facts: PlanInput) -> bool:
    return facts.nothing_more and not facts.waiting and not facts.unleased


def _finishes(attempt: WaitingAttempt, found: AllocationFacts, estimator: Estimator) -> bool:
    return found.remaining_s is not None and left_s(attempt, estimator) < found.remaining_s


def _blocked(
    facts: PlanInput,
    left: Sequence[WaitingAttempt],
    submit: Sequence[NewAllocation],
    bins: Sequence[Offer],
    limits: Limits,
    estimator: Estimator,
    overhead: Overhead,
) -> Mapping[AttemptId, str]:
    """A sentence for each attempt that no allocation, in flight or planned, can take."""
    # As long as they last, however many rounds of attempts that takes.
    places = {found.tag: (found.nodes, usable_s(found, overhead)) for found in facts.allocations}
    planned = [(chosen.nodes, overhead.usable_s(chosen.walltime_s)) for chosen in submit]
    blocked = {}
    for kind, attempts in _by_kind(left, facts, estimator).items():
        in_flight = [place for tag, place in places.items() if tag not in kind.not_in]
        if any(kind.runs_in(nodes, usable) for nodes, usable in (*in_flight, *planned)):
            continue
        counted = replace(kind, count=len(attempts))
        sentence = misfit_sentence(kind.shape, facts.site.node, facts.site.name) or blockage(
            counted, facts.site.name, bins, limits
        )
        blocked.update(dict.fromkeys(_ids(attempts), sentence))
    return blocked


def _by_kind(
    attempts: Sequence[WaitingAttempt], facts: PlanInput, estimator: Estimator
) -> Mapping[Demand, Sequence[WaitingAttempt]]:
    kinds: dict[Demand, list[WaitingAttempt]] = {}
    for attempt in attempts:
        kinds.setdefault(demand_of(attempt, facts.site.node, estimator), []).append(attempt)
    return kinds


def _ids(attempts: Sequence[WaitingAttempt]) -> tuple[AttemptId, ...]:
    return tuple(attempt.attempt for attempt in attempts)
