"""Append-only logs: one writer for life, readers that survive tears, rubbish and staleness.

Implements rules 1 to 8 and 12 of the file protocol. Format of a line: CRC-32 of the JSON bytes
as 8 lower-case hex digits, one space, one JSON object with ``seq``, ``kind`` and ``at``.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from payload_runner.files import AppendFile, Files

PROTOCOL_VERSION = 1
MAX_RECORD_BYTES = 64 * 1024
ROLL_BYTES = 64 * 1024 * 1024
GROUP_COMMIT_S = 0.020
GROUP_COMMIT_BYTES = 64 * 1024
# Pages of one file have been seen to arrive out of order on NFS for up to half a minute.
CORRUPT_AFTER_S = 60.0
READ_CHUNK = 4 * 1024 * 1024

_HEADER = frozenset({"seq", "kind", "at"})

Fields = dict[str, Any]  # a record's own keys; Any because it is JSON from another process


class RecordTooLarge(ValueError):
    """A record over 64 KiB; the writer should have made a file of the value."""


@dataclass(frozen=True)
class Record:
    """One good line of a log."""

    seq: int
    kind: str
    at: float
    fields: Fields
    offset: int  # of its first byte in the log, for audits
    end: int  # offset behind its newline


@dataclass(frozen=True)
class Gap:
    """A stretch that stayed unreadable: bytes [start, end) of the log."""

    start: int
    end: int


@dataclass(frozen=True)
class Batch:
    """What one poll found. ``offset`` is where the next poll goes on."""

    records: tuple[Record, ...]
    gaps: tuple[Gap, ...]
    offset: int
    waiting: bool  # unreadable bytes lie ahead whose 60 s have not passed


# Payload output may hold lone surrogates, which UTF-8 cannot carry; escapes can. One encoder for
# all: making one costs as much as a record.
_encode = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode


def encode_record(seq: int, kind: str, at: float, fields: Fields) -> bytes:
    """One line of a log.

    Raises:
        ValueError: NaN or Infinity among the fields, or a field with a name of the header.
        RecordTooLarge: the line would pass 64 KiB.
    """
    if not _HEADER.isdisjoint(fields):
        raise ValueError(f"record {kind!r} has fields of the header: {sorted(fields)}")
    body = _encode({"seq": seq, "kind": kind, "at": round(at, 6), **fields}).encode("ascii")
    if len(body) + 10 > MAX_RECORD_BYTES:
        raise RecordTooLarge(f"record {kind!r} has {len(body)} bytes; at most {MAX_RECORD_BYTES}")
    return b"%08x %s\n" % (zlib.crc32(body), body)


def decode_line(line: bytes) -> Fields | None:
    """The object of a complete line without its newline, or None if it is not a good record."""
    if len(line) < 11 or line[8:9] != b" ":
        return None
    body = line[9:]
    try:
        if int(line[:8], 16) != zlib.crc32(body):
            return None
        value = json.loads(body)
    except ValueError:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("seq"), int):
        return None
    if not isinstance(value.get("kind"), str) or not _is_finite(value.get("at")):
        return None
    return value


class LogWriter:
    """Appends records to a log that it creates; group-commits them.

    ``append`` only buffers. ``commit`` writes and syncs; ``commit_if_due`` does so when 20 ms or
    64 KiB are reached, and says when to call again. Sequence numbers start at 1. After a short or
    failed write the next one begins with a newline, so that a torn record costs only itself; the
    records of a failed commit stay buffered and are written again by the next.

    ``continue_at`` is for the one case of rule 13 (the next run after a clean exit): the size of
    the existing log that this writer goes on with.
    """

    def __init__(
        self,
        files: Files,
        path: Path,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        *,
        first_seq: int = 1,
        continue_at: int | None = None,
    ) -> None:
        self.path = path
        self.size = continue_at or 0
        self._files = files
        self._clock = clock
        self._monotonic = monotonic
        self._next_seq = first_seq
        self._buffer: list[bytes] = []
        self._buffered_bytes = 0
        self._buffered_since: float | None = None
        # A predecessor's tail is only believed to be whole.
        self._torn = continue_at is not None
        self._file: AppendFile = (
            files.create_log(path) if continue_at is None else files.continue_log(path)
        )

    @property
    def last_seq(self) -> int:
        """Sequence number of the newest record appended, committed or not; 0 when none."""
        return self._next_seq - 1

    @property
    def pending(self) -> bool:
        """Whether records wait for a commit."""
        return bool(self._buffer)

    def append(self, kind: str, fields: Fields) -> int:
        """Buffer a record and return its sequence number. Raises as :func:`encode_record`."""
        seq = self._next_seq
        self._push(encode_record(seq, kind, self._clock(), fields))
        self._next_seq += 1
        return seq

    def append_again(self, record: Record) -> None:
        """Buffer a record under the sequence number that it had (a resend)."""
        self._push(encode_record(record.seq, record.kind, record.at, record.fields))

    def due_in(self) -> float | None:
        """Seconds until the buffered records should be committed; None when there are none."""
        if self._buffered_since is None:
            return None
        if self._buffered_bytes >= GROUP_COMMIT_BYTES:
            return 0.0
        return max(0.0, self._buffered_since + GROUP_COMMIT_S - self._monotonic())

    def commit_if_due(self) -> bool:
        """Commit when the group is old or large enough; True if it did."""
        if self.due_in() != 0.0:
            return False
        self.commit()
        return True

    def commit(self) -> None:
        """Write and sync what is buffered. Raises OSError; the records then stay buffered."""
        if not self._buffer:
            return
        data = b"".join(self._buffer)
        if self._torn:
            data = b"\n" + data
        self._torn = True  # until proven whole
        view = memoryview(data)
        while view:
            written = self._file.write(bytes(view))
            self.size += written
            view = view[written:]
        self._file.sync()
        self._torn = False
        self._buffer.clear()
        self._buffered_bytes = 0
        self._buffered_since = None

    def close(self) -> None:
        """Commit and close."""
        try:
            self.commit()
        finally:
            self._file.close()

    def _push(self, line: bytes) -> None:
        if self._buffered_since is None:
            self._buffered_since = self._monotonic()
        self._buffer.append(line)
        self._buffered_bytes += len(line)


class LogReader:
    """Reads a log from an offset; the caller keeps the offset (``position``) durably.

    A missing file, a file shorter than the offset and an incomplete last line all mean "nothing
    new yet". A complete bad line, or NUL bytes, is read again until it has been bad for 60 s on
    the reader's own monotonic clock; then it becomes a :class:`Gap` and reading goes on at the
    next good line.
    """

    def __init__(
        self, files: Files, path: Path, monotonic: Callable[[], float], *, offset: int = 0
    ) -> None:
        self.path = path
        self.position = offset
        self._files = files
        self._monotonic = monotonic
        self._bad_since: float | None = None
        self._bad_at = -1

    def poll(self) -> Batch:
        """The records behind the position, which then moves on. Raises OSError, except absence."""
        try:
            data = self._files.read(self.path, self.position, READ_CHUNK)
        except FileNotFoundError:
            return Batch((), (), self.position, waiting=False)
        records, gaps, consumed, waiting = self._parse(data)
        self.position += consumed
        return Batch(tuple(records), tuple(gaps), self.position, waiting)

    def _parse(self, data: bytes) -> tuple[list[Record], list[Gap], int, bool]:
        records: list[Record] = []
        gaps: list[Gap] = []
        at = 0
        while True:
            newline = data.find(b"\n", at)
            if newline < 0 and len(data) - at <= MAX_RECORD_BYTES:
                return records, gaps, at, False
            if newline == at:  # the newline that follows a torn record
                at += 1
                continue
            value = decode_line(data[at:newline]) if newline > 0 else None
            if value is None:
                skip_to = self._skip(data, at)
                if skip_to is None:
                    return records, gaps, at, True
                gaps.append(Gap(self.position + at, self.position + skip_to))
                at = skip_to
                continue
            self._bad_since = None
            seq, kind, when = value.pop("seq"), value.pop("kind"), value.pop("at")
            start, end = self.position + at, self.position + newline + 1
            records.append(Record(seq, kind, float(when), value, start, end))
            at = newline + 1

    def _skip(self, data: bytes, at: int) -> int | None:
        """Where the next good line starts, once the bad stretch at ``at`` is 60 s old."""
        absolute = self.position + at
        if self._bad_since is None or self._bad_at != absolute:
            self._bad_since, self._bad_at = self._monotonic(), absolute
        if self._monotonic() - self._bad_since < CORRUPT_AFTER_S:
            return None
        self._bad_since = None
        end = data.find(b"\n", at) + 1
        while end:
            newline = data.find(b"\n", end)
            if newline < 0 or decode_line(data[end:newline]) is not None:
                return end
            end = newline + 1
        return len(data)  # over 64 KiB without a newline: no record can begin in it


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
