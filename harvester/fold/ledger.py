"""What a record of the ledger changes in the index."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

from harvester import ids
from harvester.model import (
    AllocationState,
    AttemptId,
    AttemptState,
    FileRef,
    LeasedPoint,
    Tag,
)
from harvester.store import Store
from payload_runner.logfile import Record
from payload_runner.protocol import from_fields

log = logging.getLogger(__name__)
# A job that is listed again is neither missing nor on its way out.
_SEEN = {"unseen": 0, "unseen_since": None, "unseen_last": None, "end_witness": None}
Fields = dict[str, Any]  # a record's own keys, written by ``daemon``; JSON


def apply_ledger(store: Store, record: Record) -> None:
    """Apply one record of a ledger; kinds of a newer release are counted and skipped."""
    apply = _APPLY.get(record.kind)
    if apply is None:
        store.count("unknown_ledger_records")
        return
    apply(store, record.at, record.fields)


def _nothing(store: Store, at: float, fields: Fields) -> None:
    del store, at, fields


def _payload(store: Store, at: float, fields: Fields) -> None:
    del at
    store.leases.define(fields)


def _lease_asked(store: Store, at: float, fields: Fields) -> None:
    del at
    store.leases.ask(fields["key"], fields["points"])


def _leased(store: Store, at: float, fields: Fields) -> None:
    known = LeasedPoint.__dataclass_fields__
    point = LeasedPoint(**{name: fields[name] for name in fields if name in known})
    if store.leases.grant(point):
        store.attempts.add(
            ids.attempt_id(point.lease, 1),
            (point.lease, point.task, point.point),
            point.attempts_before + 1,
            at,
            "its point was leased",
            **_start_of(fields),
        )
        if "refused" in fields:
            refused = {"state": "failed", "blame": "point", "reason": fields["refused"]}
            attempt = ids.attempt_id(point.lease, 1)
            _attempt_closed(store, at, {"attempt": attempt, **refused})


def _lease_answered(store: Store, at: float, fields: Fields) -> None:
    del at
    store.leases.answer(fields["key"])


def _lease_gone(store: Store, at: float, fields: Fields) -> None:
    del at
    store.leases.mark_gone(fields["leases"])
    for lease in fields["leases"]:
        store.attempts.mark_unstarted_unwanted(lease)


def _lease_stop(store: Store, at: float, fields: Fields) -> None:
    del at
    store.leases.mark_stop(fields["lease"], fields["why"])
    store.attempts.mark_unwanted(fields["lease"], fields["why"])


def _planned(store: Store, at: float, fields: Fields) -> None:
    store.allocations.add(Tag(fields["tag"]), at, fields)


def _joined(store: Store, at: float, fields: Fields) -> None:
    tag = Tag(fields["tag"])
    if store.allocations.state(tag) is not None:
        return
    store.allocations.add(tag, at, fields)
    columns = {"joined": 1, "job_id": fields["job_id"], "submitted_at": at}
    store.allocations.step(tag, AllocationState.SUBMITTING, at, fields["why"], columns)
    store.allocations.step(tag, AllocationState.QUEUED, at, "its runner is on its way")


def _submit_intent(store: Store, at: float, fields: Fields) -> None:
    why = "the batch system is being asked"
    store.allocations.step(Tag(fields["tag"]), AllocationState.SUBMITTING, at, why)
    store.spendings.add("submission", at)


def _submitted(store: Store, at: float, fields: Fields) -> None:
    tag = Tag(fields["tag"])
    columns = {"job_id": fields["job_id"], "submitted_at": at, **_SEEN}
    store.allocations.change(tag, columns)
    if store.allocations.state(tag) is AllocationState.SUBMITTING:
        why = f"job {fields['job_id']}"
        store.allocations.step(tag, AllocationState.QUEUED, at, why)


def _submit_failed(store: Store, at: float, fields: Fields) -> None:
    _end_allocation(store, at, {**fields, "witness": "submission", "returns": True, "blame": None})


def _observed(store: Store, at: float, fields: Fields) -> None:
    tag, state = Tag(fields["tag"]), AllocationState(fields["state"])
    columns: Fields = {"reason": fields.get("reason") or None}
    if state is not AllocationState.UNKNOWN:
        columns.update(_SEEN)
    if state is AllocationState.RUNNING and store.allocations.get(tag).started_at is None:
        columns["started_at"] = at
    why = fields.get("reason") or "the batch system says so"
    store.allocations.step(tag, state, at, why, columns)


def _unseen(store: Store, at: float, fields: Fields) -> None:
    tag = Tag(fields["tag"])
    row = store.allocations.get(tag)
    since = at if row.unseen_since is None else row.unseen_since
    columns = {"unseen": row.unseen + 1, "unseen_since": since, "unseen_last": at}
    store.allocations.change(tag, columns)


def _ending(store: Store, at: float, fields: Fields) -> None:
    columns = {f"end_{name}": fields[name] for name in ("witness", "reason", "blame")}
    store.allocations.change(Tag(fields["tag"]), {**columns, "end_said_at": at})


def _cancel_intent(store: Store, at: float, fields: Fields) -> None:
    for tag in fields["tags"]:
        store.allocations.change(tag, {"cancel": 1})
        store.allocations.remark(tag, at, f"to be cancelled: {fields['why']}")


def _cancelled(store: Store, at: float, fields: Fields) -> None:
    del at
    for tag in fields["tags"]:
        store.allocations.change(tag, {"cancel": 2})


def _end_allocation(store: Store, at: float, fields: Fields) -> None:
    tag = Tag(fields["tag"])
    columns = {
        "ended_at": at,
        "witness": fields["witness"],
        "reason": fields["reason"],
        "slots_busy": 0.0,
    }
    if not store.allocations.step(tag, AllocationState.ENDED, at, fields["reason"], columns):
        return
    for attempt in store.attempts.in_allocation(tag):
        if fields["returns"] and attempt.state is AttemptState.ORDERED:
            why = f"{tag} ended without starting it"
            store.attempts.step(attempt.attempt, AttemptState.LEASED, at, why, {"tag": None})
        else:
            _lose(store, at, attempt.attempt, fields)


def _lose(store: Store, at: float, attempt: AttemptId, fields: Fields) -> None:
    reason = f"no word of its end: {fields['reason']}"
    columns = {
        "blame": fields["blame"],
        "reason": reason,
        "ended_at": at,
        "progress": int(store.attempts.saved(attempt) is not None),
    }
    store.attempts.step(attempt, AttemptState.LOST, at, reason, columns)


def _judged(store: Store, at: float, fields: Fields) -> None:
    attempt = AttemptId(fields["attempt"])
    _restore_outcome(store, at, attempt, fields["summary"])
    # What many nodes together tell may contradict the runner's own word of whom to blame.
    charged = {name: fields["summary"][name] for name in fields.get("charged", ())}
    store.attempts.change(attempt, {"judged": 1, **charged})
    if fields["final"]:
        lease = store.attempts.lease_of(attempt)
        store.leases.settle(lease, attempt)
        store.attempts.mark_unwanted(lease, "cancelled")
    following = fields.get("next")
    if following:
        _follow(store, at, attempt, following)


def _restore_outcome(store: Store, at: float, attempt: AttemptId, summary: Fields) -> None:
    """Where the runner's own word is gone (purged or corrupt), the judgement carries its gist."""
    state = store.attempts.state(attempt)
    if state is None or state.is_final:
        return
    columns = {name: summary.get(name) for name in ("blame", "reason", "loss", "node", "tag")}
    proof = summary.get("proof")
    columns["proof"] = json.dumps(proof) if proof else None
    columns.update(started_at=summary.get("started_at"), ended_at=summary.get("ended_at", at))
    if state is AttemptState.LEASED:
        store.attempts.step(attempt, AttemptState.ORDERED, at, "as the ledger implies")
    to = AttemptState(summary["state"])
    store.attempts.step(attempt, to, at, "as the ledger says", columns)


def _follow(store: Store, at: float, attempt: AttemptId, following: Fields) -> None:
    ended = store.attempts.get(attempt)
    store.attempts.add(
        AttemptId(following["attempt"]),
        (ended.lease, ended.task, ended.point),
        following["number"],
        at,
        f"goes on after {attempt}",
        **_start_of(following),
    )
    if "not_in" in following:
        store.attempts.add_return(AttemptId(following["attempt"]), Tag(following["not_in"]))


def _start_of(fields: Fields) -> dict[str, Any]:
    """What an attempt starts from, if not from zero."""
    checkpoint = fields.get("checkpoint")
    return {
        "checkpoint": from_fields(FileRef, checkpoint) if checkpoint else None,
        "resumed_from": fields.get("resumed_from"),
    }


def _attempt_closed(store: Store, at: float, fields: Fields) -> None:
    attempt = AttemptId(fields["attempt"])
    columns = {"blame": fields.get("blame"), "reason": fields["reason"], "ended_at": at}
    to = AttemptState(fields["state"])
    state = store.attempts.state(attempt)
    if state is not None and not state.is_final:
        store.attempts.step(attempt, to, at, fields["reason"], columns)


def _delivering(store: Store, at: float, fields: Fields) -> None:
    del at
    store.attempts.mark_delivering(fields["attempts"])


def _delivered(store: Store, at: float, fields: Fields) -> None:
    del at
    for attempt, verdict, _ in fields["receipts"]:
        store.attempts.mark_delivered(attempt, verdict)
        store.leases.close(attempt)


def _uploaded(store: Store, at: float, fields: Fields) -> None:
    del at
    store.attempts.change(fields["attempt"], {"uploads": 0})


def _discarding(store: Store, at: float, fields: Fields) -> None:
    """Its logs and files go: nothing may be looked for there any more."""
    del at
    for tag in fields["tags"]:
        store.allocations.change(tag, {"discard": 1})
        store.attempts.drop_saved(tag)
        store.positions.forget(f"allocations/{tag}/")


def _discarded(store: Store, at: float, fields: Fields) -> None:
    del at
    for tag in fields["tags"]:
        store.allocations.change(tag, {"discard": 2})
    store.leases.forget_settled(fields["before"])


_APPLY: dict[str, Callable[[Store, float, Fields], None]] = {
    "open": _nothing,
    "read": _nothing,
    "payload": _payload,
    "lease_asked": _lease_asked,
    "leased": _leased,
    "lease_answered": _lease_answered,
    "lease_gone": _lease_gone,
    "lease_stop": _lease_stop,
    "planned": _planned,
    "joined": _joined,
    "submit_intent": _submit_intent,
    "submitted": _submitted,
    "submit_failed": _submit_failed,
    "observed": _observed,
    "unseen": _unseen,
    "ending": _ending,
    "cancel_intent": _cancel_intent,
    "cancelled": _cancelled,
    "allocation_ended": _end_allocation,
    "judged": _judged,
    "attempt_closed": _attempt_closed,
    "delivering": _delivering,
    "delivered": _delivered,
    "uploaded": _uploaded,
    "discarding": _discarding,
    "discarded": _discarded,
    "continued": _nothing,
}
