"""Proves what was delivered: from the receipt back to the record that a runner wrote.

For each attempt that the central service has a receipt for: the ledger's ``delivered`` record, the
ledger's ``judged`` record before it, and the runner's event that the judgement names by log, offset
and SHA-256. The two logs lie in different places and are compared with each other, so that a loss
that was changed in one of them, with a right checksum or not, shows.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harvester.errors import StorageUnavailable
from harvester.model import RecordRef
from harvester.spool.intake import read_now
from harvester.spool.ledger import ledgers
from harvester.spool.snapshots import fetch_sound
from harvester.store.snapshots import settled_in
from payload_runner.files import Files
from payload_runner.logfile import MAX_RECORD_BYTES, Fields, Record, decode_line, encode_record
from payload_runner.protocol import BadRecord, from_fields

# What a runner's word and the judgement made of it must agree in.
_AGREE = ("attempt", "state", "loss")


@dataclass(frozen=True, slots=True)
class Entry:
    """A delivered attempt and what vouches for it.

    ``judged`` and ``delivered`` are records of ledgers, or the snapshot that holds what they said.
    ``doubt`` is None where its outcome is proven, else what is wrong, in a sentence. ``event`` is
    None for outcomes that the harvester itself decided (lost, never started): those have no loss.
    """

    attempt: str
    point: str
    state: str
    loss: float | None
    doubt: str | None
    event: RecordRef | None
    judged: RecordRef | None
    delivered: RecordRef
    retired: bool = False  # its event left the spool after the retention: the books alone vouch


@dataclass(frozen=True, slots=True)
class Report:
    """The audit of one task."""

    task: str
    entries: tuple[Entry, ...]
    waiting: int  # outcomes without a receipt yet
    damaged: Mapping[str, int]  # ledger -> unreadable stretches, whatever they held
    own: frozenset[str]  # attempts that this harvester has judged or delivered
    central: int | None = None  # attempts that the central service has; None: it was not asked
    strangers: int = 0  # of those, told by other harvesters
    odd_points: tuple[str, ...] = ()  # whose loss there is that of none of their attempts

    @property
    def is_proven(self) -> bool:
        """Whether every delivered outcome is proven, and every loss at the service explained."""
        return not self.odd_points and all(entry.doubt is None for entry in self.entries)


@dataclass(slots=True)
class _Books:
    """What the ledgers say of one task."""

    leased: int = 0
    judged: dict[str, tuple[Fields, RecordRef]] = field(default_factory=dict)
    delivered: dict[str, RecordRef] = field(default_factory=dict)
    damaged: Counter[str] = field(default_factory=Counter)
    discarded: set[str] = field(default_factory=set)  # tags whose directories left the spool


def audit(files: Files, spool: Path, state_dir: Path, task: str, scratch: Path) -> Report | None:
    """Audit what was delivered of a task; None where no ledger knows the task. Only reads.

    ``scratch``: a directory on a local disk for a copy of the newest snapshot.

    Raises:
        StorageUnavailable: a ledger cannot be read. (An event log that cannot is a doubt.)
    """
    if not files.exists(state_dir):
        return None
    books = _read_books(files, state_dir, task, scratch)
    if not books.leased and not books.delivered:
        return None
    entries = [_entry(files, spool, books, attempt) for attempt in books.delivered]
    return Report(
        task,
        tuple(sorted(entries, key=lambda entry: _by_number(entry.attempt))),
        waiting=len(books.judged.keys() - books.delivered.keys()),
        damaged=dict(books.damaged),
        own=frozenset(books.judged.keys() | books.delivered.keys()),
    )


def compare(report: Report, points: Iterable[Mapping[str, Any]]) -> Report:
    """The report, held against the points of the task as the central service shows them. Pure."""
    told: dict[str, Mapping[str, Any]] = {}
    odd: list[str] = []
    for point in points:
        attempts = point.get("attempts", ())
        told.update((str(attempt.get("attempt")), attempt) for attempt in attempts)
        losses = [attempt.get("loss") for attempt in attempts]
        if point.get("state") == "done" and point.get("loss") not in losses:
            odd.append(str(point.get("point")))
    entries = tuple(
        entry if entry.doubt else replace(entry, doubt=_difference(entry, told.get(entry.attempt)))
        for entry in report.entries
    )
    return replace(
        report,
        entries=entries,
        central=len(told),
        strangers=len(told.keys() - report.own),
        odd_points=tuple(odd),
    )


def _difference(entry: Entry, told: Mapping[str, Any] | None) -> str | None:
    if told is None:
        return "the central service does not have it"
    if told.get("loss") != entry.loss:
        return f"the central service has loss {told.get('loss')}"
    return None


def _read_books(files: Files, state_dir: Path, task: str, scratch: Path) -> _Books:
    books = _Books()
    copy = scratch / "snapshot.copy"
    with contextlib.closing(fetch_sound(files, state_dir, copy)) as found:
        for snapshot in found:
            ref = RecordRef(snapshot.path.name, 0, snapshot.sha256)
            settled = settled_in(copy, task)
            books.discarded |= settled.gone
            books.leased += settled.attempts
            books.judged.update((name, (said, ref)) for name, said in settled.judged.items())
            books.delivered.update(dict.fromkeys(settled.delivered, ref))
            break
    for name, record, gaps in _records(files, state_dir):
        books.damaged[name] += gaps
        if record is not None:
            _book(books, task, name, record)
    books.damaged = +books.damaged
    return books


def _records(files: Files, state_dir: Path) -> Iterator[tuple[str, Record | None, int]]:
    """Every record of every ledger with the ledger's name; and unreadable stretches, counted."""
    try:
        for path in ledgers(files, state_dir):
            for batch in read_now(files, path):
                yield from ((path.name, record, 0) for record in batch.records)
                yield path.name, None, len(batch.gaps)
    except OSError as error:
        raise StorageUnavailable(f"the ledgers in {state_dir}: {error}") from error


def _book(books: _Books, task: str, name: str, record: Record) -> None:
    fields = record.fields
    if record.kind == "leased" and fields.get("task") == task:
        books.leased += 1
    elif record.kind == "judged" and _is_of(str(fields["attempt"]), task):
        books.judged[str(fields["attempt"])] = (fields["summary"], _ref(name, record))
    elif record.kind == "discarding":
        books.discarded.update(fields["tags"])
    elif record.kind == "delivered":
        for attempt, verdict, _ in fields["receipts"]:
            if verdict != "refused" and _is_of(attempt, task):
                books.delivered[attempt] = _ref(name, record)


def _entry(files: Files, spool: Path, books: _Books, attempt: str) -> Entry:
    summary, judged = books.judged.get(attempt, ({}, None))
    entry = Entry(
        attempt,
        attempt.split(".")[1],
        str(summary.get("state", "unknown")),
        summary.get("loss"),
        None,
        None,
        judged,
        books.delivered[attempt],
    )
    if judged is None:
        return replace(entry, doubt="the ledger has a receipt for it but no judgement of it")
    named = summary.get("proof")
    if named is None:
        doubt = None if entry.loss is None else "the ledger names no event that brought its loss"
        return replace(entry, doubt=doubt)
    try:
        event = from_fields(RecordRef, named)
    except BadRecord as error:
        return replace(entry, doubt=f"the ledger names its event wrongly: {error}")
    if summary.get("tag") in books.discarded:
        return replace(entry, event=event, retired=True)
    doubt = _doubt(files, spool, event, {"attempt": attempt, **summary})
    return replace(entry, event=event, doubt=doubt)


def _doubt(files: Files, spool: Path, event: RecordRef, judged: Mapping[str, Any]) -> str | None:
    """What is wrong with the event that a judgement names; None if nothing is."""
    where = f"{event.log} at {event.offset}"
    parts = Path(event.log).parts
    if not parts or ".." in parts or Path(event.log).is_absolute() or event.offset < 0:
        return f"the ledger names an event outside the spool: {where}"
    try:
        data = files.read(spool.joinpath(*parts), event.offset, MAX_RECORD_BYTES)
    except OSError as error:
        return f"{where} cannot be read: {error.strerror or error}"
    line = data[: data.find(b"\n") + 1]
    if hashlib.sha256(line).hexdigest() != event.sha256:
        return f"{where} is not the record that was judged (SHA-256 differs)"
    found = decode_line(line[:-1])
    if found is None or found["kind"] != "attempt_ended":
        return f"{where} is no end of an attempt"
    differing = [name for name in _AGREE if found.get(name) != judged.get(name)]
    if differing:
        name = differing[0]
        return f"{where} says {name} {found.get(name)!r}, the ledger {judged.get(name)!r}"
    return None


def _ref(name: str, record: Record) -> RecordRef:
    line = encode_record(record.seq, record.kind, record.at, record.fields)
    return RecordRef(name, record.offset, hashlib.sha256(line).hexdigest())


def _is_of(attempt: str, task: str) -> bool:
    return attempt.startswith(f"{task}.") and attempt.count(".") > 1


def _by_number(attempt: str) -> tuple[tuple[int, str], ...]:
    """Sorts 1.2 before 1.10."""
    return tuple((int(part) if part.isdecimal() else 0, part) for part in attempt.split("."))
