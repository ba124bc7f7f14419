"""Gathers what the planner is told, from the index and the steps' memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from harvester.daemon.desk import Desk
from harvester.daemon.nodes import quarantined_tags
from harvester.model import (
    AllocationState,
    Attempt,
    AttemptId,
    AttemptState,
    BackfillWindow,
    PayloadSpec,
    Tag,
    TaskId,
)
from harvester.planning.estimates import DurationEstimate, estimate_duration
from harvester.planning.facts import AllocationFacts, PlanInput, WaitingAttempt
from harvester.planning.shapes import node_share
from harvester.store.allocations import AllocationRow
from harvester.store.attempts import LiveAttempt

Durations = Mapping[TaskId, DurationEstimate]

HOUR_S = 3600.0
DAY_S = 86400.0
# Durations are learned from this many of the newest successes of all tasks.
LEARNED_FROM = 500
# Failures of a task by the site's fault that are looked at: more than run side by side anywhere.
FAULTS_SEEN = 1000
# A resumed attempt is expected to need at least this share of a whole one.
LEAST_LEFT = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What the steps know that the index does not."""

    unleased: int
    nothing_more: bool
    may_submit: bool
    durations: Durations
    windows: tuple[BackfillWindow, ...] = ()


def learned_durations(desk: Desk) -> Durations:
    """What the newest successes of each task tell of its durations."""
    samples = desk.store.attempts.durations(LEARNED_FROM)
    return {task: estimate_duration(values) for task, values in samples.items()}


def gather_facts(desk: Desk, outlook: Outlook) -> PlanInput:
    """Everything that a planning step may look at."""
    waiting: list[WaitingAttempt] = []
    ordered: dict[Tag, list[WaitingAttempt]] = defaultdict(list)
    running: dict[Tag, list[WaitingAttempt]] = defaultdict(list)
    typical = _typical(desk, outlook)
    tasks = set() if typical is None else {typical.task}
    for live in desk.store.attempts.live():
        tasks.add(live.task)
        value = _waiting(desk, live, outlook)
        if live.state is AttemptState.LEASED or live.tag is None:
            waiting.append(value)
        elif live.state is AttemptState.ORDERED:
            ordered[live.tag].append(value)
        else:
            running[live.tag].append(value)
    rows = desk.store.allocations.not_ended()
    bad_tags = quarantined_tags(desk)
    return PlanInput(
        site=desk.site,
        waiting=tuple(waiting),
        allocations=tuple(
            _allocation(desk, row, tuple(ordered[row.tag]), tuple(running[row.tag]), bad_tags)
            for row in rows
            if row.cancel == 0
        ),
        unleased=outlook.unleased,
        nothing_more=outlook.nothing_more,
        typical=typical,
        other_jobs=desk.other_jobs,
        project_jobs=desk.project_jobs,
        submissions_left=submissions_left(desk) if outlook.may_submit else 0,
        windows=outlook.windows,
        walltime_step_s=desk.batch.capabilities.walltime_step_s,
        node_hours_left=node_hours_left(desk),
        task_node_hours_left=_task_node_hours_left(desk),
        site_faults=_site_faults(desk, tasks),
        now=desk.clock.now(),
        stopping=desk.stopping,
    )


def submissions_left(desk: Desk) -> int:
    """How many jobs the budgets allow now."""
    budgets = desk.site.budgets
    spent = desk.store.spendings.within("submission", HOUR_S, desk.clock.now())
    in_flight = sum(not row.joined for row in desk.store.allocations.not_ended()) + desk.orphans
    return max(0, min(budgets.submissions_per_hour - spent, budgets.jobs_in_flight - in_flight))


def is_accepting(desk: Desk, row: AllocationRow, bad_tags: frozenset[Tag] = frozenset()) -> bool:
    """Whether the allocation's runner takes orders of this epoch and has a node for them."""
    if row.closing or not desk.orders.is_open(row.tag):
        return False
    if row.nodes == 1 and row.tag in bad_tags:
        return False  # its only node lets payloads die
    if _is_ordered_ahead(desk, row):
        return True
    return (
        row.runner == "up"
        and row.state in (AllocationState.RUNNING, AllocationState.UNKNOWN)
        and row.epoch_seen in (0, desk.lease.epoch)
    )


def remaining_s(desk: Desk, row: AllocationRow) -> float | None:
    """Seconds until the allocation's drain point, None while it has not started."""
    if _is_ordered_ahead(desk, row):
        return max(0.0, row.walltime_s - desk.site.runner.drain_margin_s)
    if row.remaining_s is None or row.heartbeat_at is None:
        return None
    heard = desk.heard.get(row.tag)
    if heard is not None:
        return max(0.0, heard.remaining_s - (desk.clock.monotonic() - heard.monotonic))
    # After a restart, until the next heartbeat: by wall clocks, which may differ between hosts.
    since = max(0.0, desk.clock.now() - row.heartbeat_at)
    return max(0.0, min(row.remaining_s, row.walltime_s) - since)


def _is_ordered_ahead(desk: Desk, row: AllocationRow) -> bool:
    """From cron, orders wait in the log for the job: it would idle until the round after."""
    # A held job may stand there for days, and its points with it.
    waits = row.state is AllocationState.QUEUED
    return desk.single_round and waits and not row.runner


def expected_s(
    payload: PayloadSpec, task: TaskId, durations: Durations, done_s: float = 0.0
) -> float | None:
    """What is left of the learned or declared duration after ``done_s``; None: nobody knows."""
    learned = durations.get(task)
    declared = payload.expected_s
    whole = declared if learned is None else learned.expected_s(declared)
    return None if whole is None else max(whole - done_s, LEAST_LEFT * whole)


def high_s(task: TaskId, durations: Durations, done_s: float = 0.0) -> float | None:
    """What nine in ten attempts stay below after ``done_s``; None: nothing was learned."""
    learned = durations.get(task)
    return None if learned is None else max(learned.high_s - done_s, LEAST_LEFT * learned.high_s)


def _waiting(desk: Desk, live: LiveAttempt, outlook: Outlook) -> WaitingAttempt:
    payload = desk.store.leases.payload(live.payload_id)
    since = live.started_at if live.state is AttemptState.RUNNING else live.since
    return WaitingAttempt(
        attempt=live.attempt,
        task=live.task,
        shape=payload.shape,
        expected_s=expected_s(payload, live.task, outlook.durations, live.done_s),
        checkpointable=payload.checkpoint is not None,
        priority=live.priority,
        waiting_s=max(0.0, desk.clock.now() - (since or live.since)),
        limit_s=payload.time_limit_s,
        high_s=high_s(live.task, outlook.durations, live.done_s),
        cut_s=live.cut_s,
        grace_s=payload.warn_s + payload.kill_s,
        handed_back_by=live.returned_by,
        forbidden=_forbidden(desk, payload),
    )


def _typical(desk: Desk, outlook: Outlook) -> WaitingAttempt | None:
    newest = desk.store.leases.newest_payload()
    if newest is None:
        return None
    task, payload = TaskId(newest[0]), newest[1]
    return WaitingAttempt(
        attempt=AttemptId("typical"),
        task=task,
        shape=payload.shape,
        expected_s=expected_s(payload, task, outlook.durations),
        checkpointable=payload.checkpoint is not None,
        limit_s=payload.time_limit_s,
        high_s=high_s(task, outlook.durations),
        grace_s=payload.warn_s + payload.kill_s,
        forbidden=_forbidden(desk, payload),
    )


def _allocation(
    desk: Desk,
    row: AllocationRow,
    ordered: tuple[WaitingAttempt, ...],
    running: tuple[WaitingAttempt, ...],
    bad_tags: frozenset[Tag],
) -> AllocationFacts:
    return AllocationFacts(
        tag=row.tag,
        state=row.state,
        queue=row.queue,
        nodes=row.nodes,
        walltime_s=row.walltime_s,
        remaining_s=remaining_s(desk, row),
        accepting=is_accepting(desk, row, bad_tags),
        ordered=ordered,
        running=running,
        queued_s=max(0.0, desk.clock.now() - row.planned_at) if row.started_at is None else 0.0,
        joined=row.joined,
    )


def _forbidden(desk: Desk, payload: PayloadSpec) -> str | None:
    if desk.site.containers_only and payload.container is None:
        return f"site {desk.site.name} runs containers only; submit with evaluationContainer"
    if payload.shape.start == "mpi" and not desk.site.runner.mpi_launcher:
        return (
            f"site {desk.site.name} names no runner.mpi_launcher, which payload.start: mpi needs; "
            f"set it in {desk.site.where}, or submit with start: processes"
        )
    return None


def _site_faults(desk: Desk, tasks: set[TaskId]) -> dict[TaskId, tuple[Attempt, ...]]:
    found = {task: desk.store.attempts.site_faults(task, FAULTS_SEEN) for task in sorted(tasks)}
    return {task: faults for task, faults in found.items() if faults}


def node_hours_left(desk: Desk) -> float | None:
    """What the site's budgets have left, the nearer one; None without one."""
    budgets = desk.site.budgets
    windows = (
        (budgets.node_hours_per_day, desk.clock.now() - DAY_S),
        (budgets.node_hours_total, 0.0),
    )
    left = [
        budget - desk.store.allocations.node_seconds_since(since) / HOUR_S
        for budget, since in windows
        if budget is not None
    ]
    return max(0.0, min(left)) if left else None


def _task_node_hours_left(desk: Desk) -> dict[TaskId, float]:
    """Of each task with a budget and an open lease: what its ended attempts have left over."""
    left = {}
    for task, payload in desk.store.leases.budgeted():
        shares = (
            node_share(desk.store.leases.payload(payload_id).shape, desk.site.node) * seconds
            for payload_id, seconds in desk.store.attempts.spent_s(task).items()
            if seconds > 0
        )
        left[task] = (payload.node_hours or 0.0) - sum(shares) / HOUR_S
    return left
