"""What an event of a runner changes in the index."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from typing import Any

from harvester.lifecycle import ALLOCATION_STEPS, ATTEMPT_STEPS
from harvester.model import AllocationState, AttemptId, AttemptState, Blame, RecordRef, Tag
from harvester.store import Store
from payload_runner import protocol
from payload_runner.logfile import Record, encode_record
from payload_runner.protocol import BadRecord, FileRef, to_fields

log = logging.getLogger(__name__)

_ASLEEP = frozenset(
    {
        AllocationState.SUBMITTING,
        AllocationState.QUEUED,
        AllocationState.HELD,
        AllocationState.UNKNOWN,
    }
)
_BLAMES = frozenset(blame.value for blame in Blame)


def apply_event(store: Store, tag: Tag, record: Record, log_name: str) -> None:
    """Apply one event of an allocation's runner, which lies in the log of that name.

    Records that make no sense (of another release, of unknown attempts) are counted, not fatal:
    a log is another process's word.
    """
    try:
        event = protocol.parse_event(record.kind, _storable(record.fields))
    except BadRecord as error:
        log.warning("Skip a bad event. tag=%s seq=%s error=%s", tag, record.seq, error)
        store.count("bad_events")
        return
    if event is None:
        store.count("unknown_events")
        return
    if isinstance(event, protocol.AttemptEnded):
        _attempt_ended(store, tag, record.at, event, _proof(record, log_name))
    else:
        _APPLY[type(event)](store, tag, record.at, event)


def _storable(value: Any) -> Any:
    """The same JSON without lone surrogates: a payload may write them, SQLite takes none."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_storable(key): _storable(item) for key, item in value.items()}
    return [_storable(item) for item in value] if isinstance(value, list) else value


def _wake_allocation(store: Store, tag: Tag, at: float, why: str) -> None:
    """A word from its runner proves that the job runs, whatever the batch system lists."""
    if store.allocations.state(tag) in _ASLEEP:
        row = store.allocations.get(tag)
        started = {} if row.started_at is not None else {"started_at": at}
        store.allocations.step(tag, AllocationState.RUNNING, at, why, started)


def _opened(store: Store, tag: Tag, at: float, event: protocol.Opened) -> None:
    _wake_allocation(store, tag, at, f"its runner is up on {event.host}")
    # A requeued allocation has a new runner, which has not drained.
    store.allocations.change(tag, {"runner": "", "remaining_s": None, "heartbeat_at": None})


def _started(store: Store, tag: Tag, at: float, event: protocol.AllocationStarted) -> None:
    slots = len(event.nodes) * (event.node.gpus or 1)
    if store.allocations.state(tag) is AllocationState.DRAINING:
        why = "its runner has started again"
        store.allocations.step(tag, AllocationState.RUNNING, at, why, {"reason": None})
    store.allocations.change(
        tag,
        {
            "runner": "up",
            "remaining_s": event.remaining_s,
            "heartbeat_at": at,
            "slots": float(slots),
        },
    )


def _attempt_started(store: Store, tag: Tag, at: float, event: protocol.AttemptStarted) -> None:
    node = ",".join(event.nodes) or None
    columns: dict[str, Any] = {"tag": tag, "node": node, "started_at": at}
    if event.resumed_from is not None:
        columns["resumed_from"] = event.resumed_from
    _move(store, tag, AttemptId(event.attempt), AttemptState.RUNNING, at, "started", columns)


def _attempt_resized(store: Store, tag: Tag, at: float, event: protocol.AttemptResized) -> None:
    del at
    attempt = AttemptId(event.attempt)
    if _is_known(store, tag, attempt):
        store.attempts.change(attempt, {"node": ",".join(event.nodes) or None})


def _reports(store: Store, tag: Tag, at: float, event: protocol.Reports) -> None:
    attempt = AttemptId(event.attempt)
    del at
    if not _is_known(store, tag, attempt):
        return
    values = [value for value in event.values if isinstance(value.get("step"), int)]
    store.attempts.add_reports(attempt, values)
    if values:
        newest = max(values, key=lambda value: int(value["step"]))
        store.attempts.change(
            attempt, {"last_step": newest["step"], "last_loss": newest.get("loss")}
        )


def _checkpoint(store: Store, tag: Tag, at: float, event: protocol.CheckpointSaved) -> None:
    del at
    attempt = AttemptId(event.attempt)
    if _is_known(store, tag, attempt):
        store.attempts.save_checkpoint(attempt, event.file)


def _proof(record: Record, log_name: str) -> str:
    """Where the record lies and what its line was, as JSON of a ``RecordRef``."""
    line = encode_record(record.seq, record.kind, record.at, record.fields)
    ref = RecordRef(log_name, record.offset, hashlib.sha256(line).hexdigest())
    return json.dumps(to_fields(ref))


def _attempt_ended(
    store: Store, tag: Tag, at: float, event: protocol.AttemptEnded, proof: str
) -> None:
    try:
        to = AttemptState(event.state)
    except ValueError:
        store.count("bad_events")
        return
    known_blame = event.blame is None or event.blame in _BLAMES
    if not known_blame:
        store.count("bad_events")
    files: list[FileRef | None] = [event.metadata_file, event.metrics_file]
    columns = {
        "tag": tag,
        "blame": event.blame if known_blame else None,
        "reason": event.reason,
        "loss": event.loss,
        "ended_at": at,
        "progress": int(event.progress),
        "duration_s": event.duration_s,
        "proof": proof,
        "uploads": sum(ref is not None for ref in files),
        # A late word about a lost attempt is judged and told anew.
        "judged": 0,
        "delivered": 0,
        "outcome": json.dumps(to_fields(event)),
    }
    why = event.reason or "its runner says so"
    _move(store, tag, AttemptId(event.attempt), to, at, why, columns)


def _handed_back(store: Store, tag: Tag, at: float, event: protocol.HandedBack) -> None:
    for name in event.attempts:
        attempt = AttemptId(name)
        # Only what stands ordered here: the word may repeat after the attempt went elsewhere.
        if (
            store.attempts.state(attempt) is AttemptState.ORDERED
            and store.attempts.get(attempt).tag == tag
        ):
            columns = {"tag": None}
            why = f"handed back by {tag}: {event.reason}"
            store.attempts.step(attempt, AttemptState.LEASED, at, why, columns)
            store.attempts.add_return(attempt, tag)


def _heartbeat(store: Store, tag: Tag, at: float, event: protocol.Heartbeat) -> None:
    store.allocations.change(
        tag,
        {
            "epoch_seen": event.epoch,
            "remaining_s": event.remaining_s,
            "heartbeat_at": at,
            "slots": event.slots,
            "slots_busy": event.slots_busy,
        },
    )


def _fenced(store: Store, tag: Tag, at: float, event: protocol.Fenced) -> None:
    del at
    seen = store.allocations.get(tag).epoch_seen
    store.allocations.change(tag, {"epoch_seen": max(seen, event.epoch)})


def _draining(store: Store, tag: Tag, at: float, event: protocol.Draining) -> None:
    _drain(store, tag, at, "draining", event.reason, {})


def _allocation_ended(store: Store, tag: Tag, at: float, event: protocol.AllocationEnded) -> None:
    row = store.allocations.get(tag)  # an earlier start may have used some as well
    columns = {
        "slot_seconds": row.slot_seconds + event.slot_seconds,
        "busy_slot_seconds": row.busy_slot_seconds + event.busy_slot_seconds,
        "slots_busy": 0.0,
    }
    _drain(store, tag, at, "ended", event.reason, columns)


def _drain(
    store: Store, tag: Tag, at: float, runner: str, reason: str, columns: dict[str, Any]
) -> None:
    state = store.allocations.state(tag)
    store.allocations.change(tag, {"runner": runner, **columns})
    if state is not None and AllocationState.DRAINING in ALLOCATION_STEPS[state]:
        store.allocations.step(
            tag, AllocationState.DRAINING, at, f"its runner: {reason}", {"reason": reason}
        )


def _node_word(
    store: Store, tag: Tag, at: float, event: protocol.NodeLost | protocol.NodeQuarantined
) -> None:
    log.warning("Node trouble. tag=%s node=%s reason=%s", tag, event.node, event.reason)
    store.allocations.remark(tag, at, f"{event.KIND} {event.node}: {event.reason}")


def _refused_checkpoint(
    store: Store, tag: Tag, at: float, event: protocol.CheckpointRefused
) -> None:
    attempt = AttemptId(event.attempt)
    if _is_known(store, tag, attempt):
        store.attempts.remark(attempt, at, f"no checkpoint: {event.reason}")


def _move(
    store: Store,
    tag: Tag,
    attempt: AttemptId,
    to: AttemptState,
    at: float,
    why: str,
    columns: dict[str, Any],
) -> bool:
    current = store.attempts.state(attempt)
    if current is None:
        store.count("unknown_attempts")
        return False
    if current is AttemptState.LEASED:
        # Its order came back, or the index forgot it; the runner's word that it ran is stronger.
        store.attempts.step(attempt, AttemptState.ORDERED, at, f"{tag} has it", {"tag": tag})
        current = AttemptState.ORDERED
    if to is not current and to not in ATTEMPT_STEPS[current]:
        store.count("late_events")  # the attempt was settled without this word
        return False
    return store.attempts.step(attempt, to, at, why, columns)


def _is_known(store: Store, tag: Tag, attempt: AttemptId) -> bool:
    if store.attempts.state(attempt) is not None:
        return True
    log.debug("Skip an event of an unknown attempt. tag=%s attempt=%s", tag, attempt)
    store.count("unknown_attempts")
    return False


# Any: each function takes the event type that it stands beside.
_APPLY: dict[type, Callable[[Store, Tag, float, Any], None]] = {
    protocol.Opened: _opened,
    protocol.AllocationStarted: _started,
    protocol.NodeLost: _node_word,
    protocol.NodeQuarantined: _node_word,
    protocol.AttemptStarted: _attempt_started,
    protocol.AttemptResized: _attempt_resized,
    protocol.Reports: _reports,
    protocol.CheckpointSaved: _checkpoint,
    protocol.CheckpointRefused: _refused_checkpoint,
    protocol.HandedBack: _handed_back,
    protocol.Heartbeat: _heartbeat,
    protocol.Fenced: _fenced,
    protocol.Draining: _draining,
    protocol.AllocationEnded: _allocation_ended,
}
