"""The leader's event log: group commits, memory of what is not acknowledged, resends, rolling."""

from __future__ import annotations

import sys
from collections import deque
from typing import Any, Callable, Deque, Dict, Optional, Tuple

from payload_runner.files import Files
from payload_runner.logfile import ROLL_BYTES, LogWriter, Record, RecordTooLarge
from payload_runner.protocol import IncarnationPaths, Opened, to_fields
from payload_runner.shrinking import fitted

RETRY_S = 1.0  # after a failed commit
# Beyond this many unacknowledged records the oldest are forgotten; a resend then says so.
MEMORY_RECORDS = 100_000


class Journal:
    """Writes the events of one leader. ``emit`` buffers; ``commit_if_due`` in every turn."""

    def __init__(
        self,
        files: Files,
        paths: IncarnationPaths,
        opened: Callable[[str], Opened],
        new_writer: Callable[[], str],
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        *,
        roll_bytes: int = ROLL_BYTES,
    ) -> None:
        """``opened`` makes the first record for a writer's name. Raises OSError."""
        self._files = files
        self._paths = paths
        self._opened = opened
        self._new_writer = new_writer
        self._clock = clock
        self._monotonic = monotonic
        self._roll_bytes = roll_bytes
        self._at = clock()
        self._kept: Dict[str, Deque[Record]] = {}
        self._retry_at: Optional[float] = None
        self._urgent = False
        self._successor: Optional[Tuple[str, LogWriter]] = None  # named, not in use yet
        self._roll_at = 0.0
        self.writer = ""
        self._log = self._begin(*self._create())

    def emit(self, kind: str, fields: Dict[str, Any], *, urgent: bool = False) -> None:
        """Buffer an event; too long texts in it are cut. ``urgent``: no waiting for company."""
        self._at = self._clock()
        try:
            seq = self._log.append(kind, fields)
        except RecordTooLarge:
            fields = fitted(kind, fields)
            seq = self._log.append(kind, fields)
        kept = self._kept[self.writer]
        kept.append(Record(seq, kind, self._at, fields, 0, 0))
        if len(kept) > MEMORY_RECORDS:
            kept.popleft()
        self._urgent = self._urgent or urgent

    def due_in(self) -> Optional[float]:
        """Seconds until ``commit_if_due`` has something to do."""
        if not self._log.pending:
            return None
        if self._retry_at is not None:
            return max(0.0, self._retry_at - self._monotonic())
        return 0.0 if self._urgent else self._log.due_in()

    def commit_if_due(self) -> None:
        """Commit the group when it is due; rolls the log when it has grown too large."""
        if self.due_in() == 0.0:
            self.commit()
        if self._log.size > self._roll_bytes and self._monotonic() >= self._roll_at:
            self._roll()

    def commit(self) -> bool:
        """Commit now; False, and tried again in a second, if the file system refuses."""
        try:
            self._log.commit()
        except OSError as error:
            if self._retry_at is None:
                print(f"payload-runner: cannot write events: {error}", file=sys.stderr)
            self._retry_at = self._monotonic() + RETRY_S
            return False
        self._retry_at = None
        self._urgent = False
        return True

    def forget(self, writer: str, seq: int) -> None:
        """The harvester has committed everything of this writer up to ``seq``."""
        kept = self._kept.get(writer)
        while kept and kept[0].seq <= seq:
            kept.popleft()
        if not kept and writer != self.writer:
            self._kept.pop(writer, None)

    def resend(self, writer: str, first: int, last: int) -> None:
        """Append records again under their own numbers (rule 12).

        Those of a log before the last roll cannot be put into this one, so they count as gone.
        """
        kept = self._kept.get(writer, ()) if writer == self.writer else ()
        again = [record for record in kept if first <= record.seq <= last]
        for record in again:
            self._log.append_again(record)
        if len(again) < last - first + 1:
            self.emit("resend_gone", {"writer": writer, "from": first, "to": last})

    def close(self) -> None:
        """Commit and close; a failure is told on stderr, as nobody else is left to tell."""
        self.commit()
        try:
            if self._successor is not None:
                self._successor[1].close()
            self._log.close()
        except OSError as error:
            print(f"payload-runner: the last events are lost: {error}", file=sys.stderr)

    def _create(self) -> Tuple[str, LogWriter]:
        writer = self._new_writer()
        path = self._paths.events(writer)
        return writer, LogWriter(self._files, path, lambda: self._at, self._monotonic)

    def _begin(self, writer: str, log: LogWriter) -> LogWriter:
        self.writer = writer
        fields = to_fields(self._opened(writer))
        seq = log.append(Opened.KIND, fields)
        self._kept[writer] = deque([Record(seq, Opened.KIND, self._at, fields, 0, 0)])
        return log

    def _roll(self) -> None:
        """Go on in another log; a file system that refuses only delays that."""
        if self._successor is None:
            try:
                self._successor = self._create()
            except OSError as error:
                print(f"payload-runner: cannot begin another log: {error}", file=sys.stderr)
                self._roll_at = self._monotonic() + RETRY_S
                return
            self._log.append("continued", {"next": self._successor[0]})
        if not self.commit():
            return
        self._log.close()
        successor, self._successor = self._successor, None
        self._log = self._begin(*successor)
