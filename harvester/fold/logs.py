"""Applies batches of log records to the index, each record once, together with the position."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace

from harvester.errors import IllegalTransition
from harvester.fold.events import apply_event
from harvester.fold.ledger import apply_ledger
from harvester.fold.orders import apply_order
from harvester.model import Tag
from harvester.store import Store
from harvester.store.positions import Position
from payload_runner.logfile import Record
from payload_runner.protocol import check_tag

log = logging.getLogger(__name__)


def apply_ledger_records(store: Store, name: str, records: Iterable[Record], size: int) -> int:
    """Apply records of a ledger in one transaction; answers how many were new."""
    return _apply(store, name, records, size, lambda record: apply_ledger(store, record))


def apply_order_records(store: Store, name: str, records: Iterable[Record], size: int) -> int:
    """Apply records of an order log in one transaction; answers how many were new."""
    tag = tag_of(name)
    return _apply(store, name, records, size, lambda record: apply_order(store, tag, record))


def apply_event_records(store: Store, name: str, records: Iterable[Record], size: int) -> int:
    """Apply records of an event log in one transaction; answers how many were new."""
    tag = tag_of(name)
    return _apply(store, name, records, size, lambda record: apply_event(store, tag, record, name))


def tag_of(name: str) -> Tag:
    """The allocation that a log under the spool belongs to. Raises BadRecord."""
    return Tag(check_tag(name.split("/")[1]))


def _apply(
    store: Store,
    name: str,
    records: Iterable[Record],
    size: int,
    apply: Callable[[Record], None],
) -> int:
    fresh = 0
    with store.transaction():
        position = store.positions.get(name)
        for record in records:
            admitted = position.admit(record.seq)
            if admitted is None:
                continue
            position = admitted
            if record.kind == "resend_gone":
                position = _without(position, name, record)
            else:
                _guarded(store, name, record, apply)
            fresh += 1
        store.positions.put(name, replace(position, offset=max(position.offset, size)))
    return fresh


def _without(position: Position, name: str, record: Record) -> Position:
    first, last = int(record.fields["from"]), int(record.fields["to"])
    log.error("Events are gone for good. log=%s from=%s to=%s", name, first, last)
    return position.without((first, last))


def _guarded(store: Store, name: str, record: Record, apply: Callable[[Record], None]) -> None:
    try:
        apply(record)
    except IllegalTransition:
        # Our own fault, but one record must not stop a daemon that has thousands to relay.
        log.exception("Skip a record whose step is illegal. log=%s seq=%s", name, record.seq)
        store.count("illegal_steps")
    except KeyError as error:
        # What it goes on from lay in a stretch that is damaged: lost with it, not the daemon too.
        log.warning("Skip a record about the unknown. log=%s seq=%s of=%s", name, record.seq, error)
        store.count("orphaned_records")
