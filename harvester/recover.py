"""Brings the index up to the logs: at each start, and from nothing when it is gone (rule 17).

The ledger's ``read`` records say in which order ledger, order logs and event logs were applied,
so that a rebuilt index equals the one that was lost.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harvester.errors import StorageUnavailable
from harvester.fold.logs import (
    apply_event_records,
    apply_ledger_records,
    apply_order_records,
    tag_of,
)
from harvester.model import Tag
from harvester.spool.intake import read_until
from harvester.spool.ledger import ledgers
from harvester.spool.orderlog import order_log_epochs, order_log_name
from harvester.spool.snapshots import fetch_sound
from harvester.store import Store
from harvester.store.snapshots import fill_from
from payload_runner.files import Files
from payload_runner.logfile import Batch, Record
from payload_runner.protocol import BadRecord, SpoolPaths

log = logging.getLogger(__name__)

Apply = Callable[[Store, str, tuple[Record, ...], int], int]


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the truth lies."""

    files: Files
    spool: SpoolPaths
    state_dir: Path


def open_store(sources: Sources, index: Path, spool_id: str) -> Store:
    """The index, brought up to the logs; rebuilt if it is missing, corrupt or of another spool.

    Raises:
        StorageUnavailable: state directory, spool or the index's disk refuses.
    """
    store = Store.open(index, spool_id)
    if store is None:
        return rebuild(sources, index, spool_id)
    catch_up(sources, store)
    return store


def rebuild(sources: Sources, index: Path, spool_id: str) -> Store:
    """A new index from snapshot, ledgers, order and event logs; what lay at ``index`` is dropped.

    Raises:
        StorageUnavailable: state directory, spool or the index's disk refuses.
    """
    store = Store.create(index, spool_id)
    copy = index.with_name(f"{index.name}.copy")
    with contextlib.closing(fetch_sound(sources.files, sources.state_dir, copy)) as found:
        for snapshot in found:
            if fill_from(store, copy, spool_id):
                log.info("Start from a snapshot. path=%s", snapshot.path)
                break
    # One transaction: a rebuild that is cut short leaves an index that lags, not half a one.
    with store.transaction():
        catch_up(sources, store)
    log.info(
        "Rebuilt the index. index=%s attempts=%s", index, sum(store.attempts.counts().values())
    )
    return store


def catch_up(sources: Sources, store: Store) -> None:
    """Apply what the logs have beyond the index. Calling twice is safe.

    Raises:
        StorageUnavailable: a log cannot be read.
    """
    try:
        for path in ledgers(sources.files, sources.state_dir):
            _read_ledger(sources, store, path)
        for row in store.allocations.not_ended():
            _read_order_logs(sources, store, row.tag)
            _read_event_logs(sources, store, row.tag)
    except OSError as error:
        raise StorageUnavailable(f"catching up with the logs: {error}") from error


def _read_ledger(sources: Sources, store: Store, path: Path) -> None:
    name = path.name

    def apply(batch: Batch) -> None:
        for record in batch.records:
            if record.kind == "read":
                _follow_marker(sources, store, record)
            apply_ledger_records(store, name, (record,), record.end)
        apply_ledger_records(store, name, (), batch.offset)

    offset = store.positions.get(name).offset
    read_until(sources.files, path, offset=offset, to=None, apply=apply)


def _follow_marker(sources: Sources, store: Store, record: Record) -> None:
    name, to = str(record.fields["log"]), int(record.fields["to"])
    try:
        tag_of(name)
    except BadRecord:
        log.warning("Skip a marker of an unknown log. log=%s", name)
        return
    _read_log(sources, store, name, to)


def _read_order_logs(sources: Sources, store: Store, tag: Tag) -> None:
    for epoch in order_log_epochs(sources.files, sources.spool, tag):
        _read_log(sources, store, order_log_name(tag, epoch), None)


def _read_event_logs(sources: Sources, store: Store, tag: Tag) -> None:
    allocation = sources.spool.allocation(tag)
    try:
        names = sources.files.listdir(allocation.root)
    except FileNotFoundError:
        return
    for incarnation in allocation.incarnations(names):
        for path in incarnation.event_logs(sources.files.listdir(incarnation.root)):
            _read_log(sources, store, str(path.relative_to(sources.spool.root)), None)


def _read_log(sources: Sources, store: Store, name: str, to: int | None) -> None:
    apply: Apply = apply_order_records if "/orders." in name else apply_event_records
    read_until(
        sources.files,
        sources.spool.root / name,
        offset=store.positions.get(name).offset,
        to=to,
        apply=lambda batch: _apply_batch(store, apply, name, batch),
    )


def _apply_batch(store: Store, apply: Apply, name: str, batch: Batch) -> None:
    if batch.gaps:
        log.warning("Skip an unreadable stretch. log=%s bytes=%s", name, batch.gaps)
        store.count("log_gaps", len(batch.gaps))
    apply(store, name, batch.records, batch.offset)
