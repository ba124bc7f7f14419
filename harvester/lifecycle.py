"""The lives of attempts and allocations: one table each, and the only code that moves a state.

A step that a table lacks raises :class:`~harvester.errors.IllegalTransition`. A step to the
state that holds already is answered with ``None`` (nothing changed), because events repeat.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from harvester.errors import IllegalTransition
from harvester.model import AllocationState as Al
from harvester.model import AttemptState as At

_S = TypeVar("_S", At, Al)

_OUTCOMES = frozenset(
    {At.SUCCEEDED, At.FAILED, At.TIMED_OUT, At.PREEMPTED, At.PRUNED, At.CANCELLED}
)

ATTEMPT_STEPS: Mapping[At, frozenset[At]] = {
    # Leased attempts may be withdrawn; an order may also come back unstarted (to LEASED).
    # FAILED: it cannot be ordered at all.
    At.LEASED: frozenset({At.ORDERED, At.FAILED, At.CANCELLED, At.PRUNED, At.LOST}),
    # The started event may have been lost while the outcome arrived.
    At.ORDERED: _OUTCOMES | {At.LEASED, At.RUNNING, At.LOST},
    At.RUNNING: _OUTCOMES | {At.LOST},
    # Provisional: a result that turns up later counts, once; so does a sign of life.
    At.LOST: _OUTCOMES | {At.RUNNING},
    At.SUCCEEDED: frozenset(),
    At.FAILED: frozenset(),
    At.TIMED_OUT: frozenset(),
    At.PREEMPTED: frozenset(),
    At.PRUNED: frozenset(),
    At.CANCELLED: frozenset(),
}

_AFTER_SUBMISSION = frozenset({Al.QUEUED, Al.HELD, Al.RUNNING, Al.DRAINING, Al.ENDED, Al.UNKNOWN})

ALLOCATION_STEPS: Mapping[Al, frozenset[Al]] = {
    Al.PLANNED: frozenset({Al.SUBMITTING, Al.ENDED}),
    # ENDED: refused by the batch system, or proven absent after a crash.
    Al.SUBMITTING: _AFTER_SUBMISSION,
    Al.QUEUED: _AFTER_SUBMISSION - {Al.QUEUED},
    Al.HELD: _AFTER_SUBMISSION - {Al.HELD},
    # Back to QUEUED or HELD: the batch system requeued it; its next start is a new incarnation.
    Al.RUNNING: _AFTER_SUBMISSION - {Al.RUNNING},
    Al.DRAINING: _AFTER_SUBMISSION - {Al.DRAINING},
    Al.UNKNOWN: _AFTER_SUBMISSION - {Al.UNKNOWN},
    Al.ENDED: frozenset(),
}


def step_attempt(current: At, to: At, history: str = "") -> At | None:
    """The attempt's new state, or None if it is there already.

    Raises:
        IllegalTransition: with ``history`` (the attempt's id and past) in the message.
    """
    return _step(ATTEMPT_STEPS, current, to, history)


def step_allocation(current: Al, to: Al, history: str = "") -> Al | None:
    """The allocation's new state, or None if it is there already; raises as ``step_attempt``."""
    return _step(ALLOCATION_STEPS, current, to, history)


def _step(table: Mapping[_S, frozenset[_S]], current: _S, to: _S, history: str) -> _S | None:
    if current is to:
        return None
    if to not in table[current]:
        raise IllegalTransition(f"{current.value} -> {to.value} is not a step; history: {history}")
    return to
