"""Which attempts may run at all: what a site forbids, and what a task's node-hours still pay. Pure.

An attempt is charged its share of a node for the time that it may take: its time limit where it
has one, else what it almost surely needs. Nothing is started beyond a task's budget; without a
time limit a payload that runs longer than anything known can still pass it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from harvester.model import AttemptId, TaskId
from harvester.planning.estimates import Estimator
from harvester.planning.facts import PlanInput, WaitingAttempt
from harvester.planning.orders import in_line
from harvester.planning.shapes import node_share
from payload_runner.protocol import NodeShape

HOUR_S = 3600.0


def permitted(facts: PlanInput, estimator: Estimator) -> tuple[PlanInput, Mapping[AttemptId, str]]:
    """The facts with only those attempts that may run, and a sentence for each other one."""
    left = _left_after_live(facts, estimator)
    allowed, forbidden = [], {}
    for attempt in in_line(facts.waiting):
        sentence = attempt.forbidden or _charge(attempt, left, facts.site.node, estimator)
        if sentence is None:
            allowed.append(attempt)
        else:
            forbidden[attempt.attempt] = sentence
    typical = facts.typical
    comes = typical is not None and (
        typical.forbidden or _charge(typical, left, facts.site.node, estimator)
    )
    unleased = 0 if comes else facts.unleased
    return replace(facts, waiting=tuple(allowed), unleased=unleased), forbidden


def node_hours(
    attempt: WaitingAttempt, node: NodeShape, estimator: Estimator, run_s: float = 0.0
) -> float:
    """Node-hours that an attempt, running for ``run_s``, may take; infinite where none fits."""
    seconds = (
        max(estimator.needed_s(attempt), run_s) if attempt.limit_s is None else attempt.limit_s
    )
    return node_share(attempt.shape, node) * seconds / HOUR_S


def _left_after_live(facts: PlanInput, estimator: Estimator) -> dict[TaskId, float]:
    left = dict(facts.task_node_hours_left)
    for found in facts.allocations:
        places = [(item, 0.0) for item in found.ordered]
        for attempt, run_s in (*places, *((item, item.waiting_s) for item in found.running)):
            if attempt.task in left:
                left[attempt.task] -= node_hours(attempt, facts.site.node, estimator, run_s)
    return left


def _charge(
    attempt: WaitingAttempt, left: dict[TaskId, float], node: NodeShape, estimator: Estimator
) -> str | None:
    """Take an attempt's node-hours from its task's; why that cannot be."""
    needed = node_hours(attempt, node, estimator)
    if attempt.task not in left or needed == math.inf:
        return None  # what fits no node has a reason of its own
    if needed <= left[attempt.task]:
        left[attempt.task] -= needed
        return None
    return (
        f"task {attempt.task} has {max(0.0, left[attempt.task]):.3g} of its node-hours left, and "
        f"this may need {needed:.3g}: submit with more payload.node_hours, or finish the task"
    )
