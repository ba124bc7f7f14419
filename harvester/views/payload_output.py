"""What a point's payloads printed, from the event logs in the spool. Needs no service.

A runner keeps head and tail of each payload's output and sends it up with a failure, or on
request; an attempt that succeeded usually has none here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from payload_runner.files import Files
from payload_runner.logfile import LogReader, Record
from payload_runner.protocol import (
    AllocationPaths,
    AttemptEnded,
    BadRecord,
    SpoolPaths,
    parse_event,
)


@dataclass(frozen=True, slots=True)
class PayloadOutput:
    """The end of one attempt."""

    allocation: str
    ended: AttemptEnded


def payload_outputs(files: Files, spool: Path, task: str, point: str) -> list[PayloadOutput]:
    """Every end of an attempt at this point that still lies in the spool, oldest first."""
    prefix = f"{task}.{point}."
    found = []
    for allocation in _allocations(files, SpoolPaths(spool)):
        for path in _event_logs(files, allocation):
            found += [
                (record.at, PayloadOutput(allocation.root.name, event))
                for record in _records(files, path)
                if (event := _ended(record)) is not None and event.attempt.startswith(prefix)
            ]
    return [output for _, output in sorted(found, key=lambda item: item[0])]


def _allocations(files: Files, paths: SpoolPaths) -> Iterator[AllocationPaths]:
    try:
        names = files.listdir(paths.allocations)
    except FileNotFoundError:
        return
    for name in names:
        try:
            yield paths.allocation(name)
        except BadRecord:
            continue  # not one of ours


def _event_logs(files: Files, allocation: AllocationPaths) -> Iterator[Path]:
    for incarnation in allocation.incarnations(files.listdir(allocation.root)):
        yield from incarnation.event_logs(files.listdir(incarnation.root))


def _records(files: Files, path: Path) -> Iterator[Record]:
    reader = LogReader(files, path, time.monotonic)
    while True:
        before = reader.position
        yield from reader.poll().records
        if reader.position == before:
            return


def _ended(record: Record) -> AttemptEnded | None:
    if record.kind != AttemptEnded.KIND:
        return None
    try:
        event = parse_event(record.kind, record.fields)
    except BadRecord:
        return None
    return event if isinstance(event, AttemptEnded) else None
