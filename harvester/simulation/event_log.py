"""A simulated runner's event log, with what it may have to send again."""

from __future__ import annotations

from harvester.clock import Clock
from payload_runner import protocol
from payload_runner.logfile import LogWriter, Record


class EventLog:
    """Writes events through a real ``LogWriter`` and keeps them until they are acknowledged."""

    def __init__(self, log: LogWriter, clock: Clock) -> None:
        self._log = log
        self._clock = clock
        self._kept: dict[int, Record] = {}

    @property
    def last_seq(self) -> int:
        """Number of the newest event; 0 when there is none."""
        return self._log.last_seq

    def emit(self, event: protocol.Event) -> Record:
        """Buffer an event."""
        fields = dict(protocol.to_fields(event))
        seq = self._log.append(event.KIND, fields)
        record = Record(seq, event.KIND, self._clock.now(), fields, 0, 0)
        self._kept[seq] = record
        return record

    def repeat(self, record: Record) -> None:
        """Buffer an event once more, under its own number."""
        self._log.append_again(record)

    def acknowledge(self, to: int) -> None:
        """Forget the events up to a number."""
        self._kept = {seq: record for seq, record in self._kept.items() if seq > to}

    def resend(self, first: int, last: int) -> None:
        """Buffer again what is still kept of a stretch."""
        for seq in range(first, last + 1):
            if seq in self._kept:
                self.repeat(self._kept[seq])

    def commit(self) -> None:
        """Write and sync what is buffered."""
        self._log.commit()

    def close(self) -> None:
        """Commit and close."""
        self._log.close()
