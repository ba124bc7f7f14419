"""The step that judges ended attempts, makes the ones that go on, and stops the unwanted."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from harvester import ids
from harvester.daemon.desk import Desk
from harvester.daemon.judging import Judgement, judge
from harvester.daemon.nodes import charge, has_one_node, record
from harvester.effects import Finished
from harvester.model import Attempt, AttemptState
from harvester.planning.nodes import NodeRecord
from payload_runner.protocol import to_fields

log = logging.getLogger(__name__)


class Settle:
    """Turns ends into judgements; nothing here talks to the outside but by order logs."""

    effects: tuple[str, ...] = ()

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def take(self, finished: Finished) -> None:
        """It has no effects."""

    def step(self) -> bool:
        changed = self._stop_unwanted()
        # One record serves them all: what is judged here becomes true at the commit below.
        known = functools.cache(functools.partial(record, self._desk))
        for ended in self._desk.store.attempts.unjudged():
            self._judge(ended, known)
            changed = True
        if changed:
            self._desk.plan_wanted = True
            self._desk.journal.commit()
        return changed

    def due_in(self) -> float | None:
        return None

    def _stop_unwanted(self) -> bool:
        desk = self._desk
        ordered = closed = False
        for attempt in desk.store.attempts.unwanted():
            outcome = desk.store.attempts.unwanted_why(attempt.attempt)
            if attempt.state is AttemptState.LEASED:
                fields = {"attempt": attempt.attempt, "state": outcome, "reason": "not wanted"}
                desk.journal.record("attempt_closed", fields)
                closed = True
            elif attempt.tag is not None and desk.orders.is_open(attempt.tag):
                desk.orders.stop(attempt.tag, attempt.attempt, outcome, "not wanted any more")
                ordered = True
        if closed:
            desk.journal.commit()
        if ordered:
            desk.journal.commit_orders()
        return closed or ordered

    def _judge(self, ended: Attempt, known: Callable[[], NodeRecord]) -> None:
        store = self._desk.store
        told, ended = ended, charge(ended, known)
        attempts = tuple(
            ended if found.attempt == ended.attempt else found
            for found in store.attempts.of_lease(ended.lease)
        )
        judgement = judge(ended, store.leases.get(ended.lease), attempts)
        fields: dict[str, Any] = {
            "attempt": ended.attempt,
            "final": judgement.final,
            "summary": _summary(ended),
        }
        if ended.blame is not told.blame:
            fields["charged"] = ["blame", "reason"]
        if judgement.goes_on:
            fields["next"] = self._next(attempts)
            if ended.blame is not told.blame and has_one_node(self._desk, ended.tag):
                fields["next"]["not_in"] = ended.tag
        self._desk.journal.record("judged", fields)
        _say(ended, judgement)

    def _next(self, attempts: tuple[Attempt, ...]) -> dict[str, Any]:
        newest = attempts[-1]
        fields: dict[str, Any] = {
            "attempt": ids.attempt_id(newest.lease, ids.try_of(newest.attempt) + 1),
            "number": newest.number + 1,
        }
        for attempt in reversed(attempts):
            saved = self._desk.store.attempts.saved(attempt.attempt)
            if saved is not None:
                fields["checkpoint"] = to_fields(saved)
                fields["resumed_from"] = attempt.attempt
                break
        return fields


def _summary(ended: Attempt) -> dict[str, Any]:
    return {
        "state": ended.state.value,
        "blame": None if ended.blame is None else ended.blame.value,
        "reason": None if ended.reason is None else ended.reason[:500],
        "loss": ended.loss,
        "tag": ended.tag,
        "node": ended.node,
        "started_at": ended.started_at,
        "ended_at": ended.ended_at,
        "proof": None if ended.proof is None else to_fields(ended.proof),
    }


def _say(ended: Attempt, judgement: Judgement) -> None:
    level = logging.DEBUG if ended.state is AttemptState.SUCCEEDED else logging.INFO
    log.log(
        level,
        "Attempt %s. attempt=%s blame=%s reason=%s final=%s goes_on=%s",
        ended.state.value,
        ended.attempt,
        None if ended.blame is None else ended.blame.value,
        " ".join((ended.reason or "").split())[:200],
        judgement.final,
        judgement.goes_on,
    )
