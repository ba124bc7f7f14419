"""The step that plans and carries the plan out: orders, submissions, leases, closings."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable

from harvester.daemon.desk import Desk
from harvester.daemon.facts import Durations, Outlook, expected_s, gather_facts, learned_durations
from harvester.daemon.inputs import FetchInputs
from harvester.daemon.points import LeasePoints
from harvester.daemon.submit import Submit
from harvester.daemon.trials import tell_on_trial
from harvester.effects import Finished
from harvester.model import Attempt, AttemptId, AttemptState, PayloadSpec, Tag
from harvester.planning.facts import Plan, PlanInput
from harvester.store.leases import LeaseRow
from payload_runner.logfile import RecordTooLarge
from payload_runner.protocol import Order

log = logging.getLogger(__name__)

# Without a change, a plan is made anew this often: time alone changes what fits.
REPLAN_S = {"local": 1.0, "shared": 10.0}
REPLAN_IDLE_S = 60.0  # nothing waits, nothing is in flight: only the service can change that
# A burst of events makes one plan, not one each.
PLAN_APART_S = {"local": 0.01, "shared": 1.0}
# The more is in flight the longer a plan takes, and the less often one is made, but for this.
PLAN_SHARE = 0.05
PLAN_APART_AT_MOST_S = 1.0


class MakePlan:
    """Plans when something changed, and turns the answer into intents."""

    effects: tuple[str, ...] = ()

    def __init__(
        self,
        desk: Desk,
        plan: Callable[[PlanInput], Plan],
        points: LeasePoints,
        inputs: FetchInputs,
        submit: Submit,
    ) -> None:
        self._desk = desk
        self._plan = plan
        self._points = points
        self._inputs = inputs
        self._submit = submit
        self._kind = "local" if desk.is_local else "shared"
        self._planned_at = float("-inf")
        self._planning_s = 0.0  # how long the last plan took
        self._idle = False
        self._durations: Durations = {}
        self.plan = Plan()

    def take(self, finished: Finished) -> None:
        """It has no effects of its own."""

    def step(self) -> bool:
        if self._left() > 0:
            return False
        desk = self._desk
        self._planned_at = desk.clock.monotonic()
        try:
            return self._make()
        finally:
            self._planning_s = desk.clock.monotonic() - self._planned_at

    def _make(self) -> bool:
        desk = self._desk
        desk.plan_wanted = False
        self._durations = learned_durations(desk)
        facts = gather_facts(desk, self._outlook())
        self._idle = not facts.waiting and not facts.allocations
        self.plan = plan = self._plan(facts)
        self._points.wanted = plan.lease
        self._tell_blocked(facts, plan)
        tell_on_trial(desk, plan.on_trial)
        changed = self._order(plan.orders)
        changed = self._close(plan.close) or changed
        changed = self._submit.plan(plan.submit) or changed
        return self._submit.cancel(plan.cancel) or changed

    def due_in(self) -> float | None:
        return max(0.0, self._left())

    def _left(self) -> float:
        pause = REPLAN_IDLE_S if self._idle else REPLAN_S[self._kind]
        if self._desk.plan_wanted:
            pause = 0.0 if self._desk.single_round else self._apart_s()
        return self._planned_at + pause - self._desk.clock.monotonic()

    def _apart_s(self) -> float:
        rest = min(PLAN_APART_AT_MOST_S, self._planning_s / PLAN_SHARE)
        return max(PLAN_APART_S[self._kind], rest)

    def _outlook(self) -> Outlook:
        return Outlook(
            unleased=self._points.unleased,
            nothing_more=self._points.nothing_more,
            may_submit=self._submit.may_plan(),
            durations=self._durations,
            windows=self._submit.windows.usable(),
        )

    def _tell_blocked(self, facts: PlanInput, plan: Plan) -> None:
        """Report what keeps points from running, but not that they wait for their turn."""
        stands_still = self._submit.may_plan() and not facts.allocations and not plan.submit
        blocked = plan.blocked if stands_still else plan.forbidden
        # What rests after faults of the site has a line of its own.
        reasons = Counter(why for name, why in blocked.items() if name not in plan.resting)
        if not reasons or facts.stopping:
            self._desk.problems.clear("blocked")
            return
        sentence, count = reasons.most_common(1)[0]
        what = f"{count} points cannot run here now: {sentence}"
        where = self._desk.site.where
        cure = (
            f"change the search, or the limits in {where}; `harvester task show` lists the points"
        )
        self._desk.problems.report("blocked", what, cure)

    def _order(self, orders: Iterable[tuple[AttemptId, Tag]]) -> bool:
        ordered = 0
        for name, tag in orders:
            ordered += self._order_one(self._desk.store.attempts.get(name), tag)
        if ordered:
            self._desk.journal.commit_orders()
            log.debug("Gave orders. orders=%s", ordered)
        self._desk.journal.commit()
        return ordered > 0

    def _order_one(self, attempt: Attempt, tag: Tag) -> bool:
        desk = self._desk
        lease = desk.store.leases.get(attempt.lease)
        payload = desk.store.leases.payload(lease.payload_id)
        if attempt.state is not AttemptState.LEASED or not self._inputs.is_ready(payload):
            return False
        try:
            desk.orders.order(tag, order_of(desk, attempt, lease, self._durations), payload)
        except RecordTooLarge as error:
            fields = {
                "attempt": attempt.attempt,
                "state": AttemptState.FAILED.value,
                "blame": "point",
                "reason": f"its parameters do not fit an order: {error}",
            }
            desk.journal.record("attempt_closed", fields)
            return False
        return True

    def _close(self, tags: Iterable[Tag]) -> bool:
        closed = False
        for tag in tags:
            if not self._desk.store.allocations.get(tag).closing:
                self._desk.orders.close_orders(tag)
                log.info("Close an allocation: nothing more will come. tag=%s", tag)
                closed = True
        if closed:
            self._desk.journal.commit_orders()
        return closed


def order_of(desk: Desk, attempt: Attempt, lease: LeaseRow, durations: Durations) -> Order:
    """The order for an attempt of a lease."""
    payload = desk.store.leases.payload(lease.payload_id)
    done_s = desk.store.attempts.done_s(attempt.attempt) if attempt.checkpoint is not None else 0.0
    return Order(
        attempt=attempt.attempt,
        task=attempt.task,
        point=attempt.point,
        payload_id=lease.payload_id,
        parameters=lease.parameters,
        segment=lease.segment,
        priority=lease.priority,
        expected_s=expected_s(payload, attempt.task, durations, done_s),
        checkpoint=attempt.checkpoint,
        checkpoint_of=attempt.resumed_from if attempt.checkpoint is not None else None,
        number=attempt.number,
    )


def snapshot(desk: Desk, tag: Tag) -> list[tuple[Order, PayloadSpec]]:
    """What is ordered and unfinished in an allocation, for the opening of a new epoch's log."""
    found = []
    for attempt in desk.store.attempts.in_allocation(tag):
        order = order_of(desk, attempt, desk.store.leases.get(attempt.lease), {})
        found.append((order, desk.store.leases.payload(order.payload_id)))
    return found
