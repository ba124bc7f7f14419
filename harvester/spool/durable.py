"""A log of ours whose records take effect in the index only once they are on stable storage."""

from __future__ import annotations

from pathlib import Path

from harvester.clock import Clock
from harvester.errors import StorageUnavailable
from payload_runner.files import Files
from payload_runner.logfile import Fields, LogWriter, Record


class DurableLog:
    """Wraps a ``LogWriter``: ``append`` buffers, ``commit`` answers what has become durable.

    A commit that fails keeps its records; the next one that succeeds answers them too, so that
    log and index never part.
    """

    def __init__(
        self,
        files: Files,
        path: Path,
        clock: Clock,
        *,
        last_seq: int = 0,
        continue_at: int | None = None,
    ) -> None:
        self.path = path
        self._clock = clock
        self._at = 0.0
        self._waiting: list[Record] = []
        try:
            self._writer = LogWriter(
                files,
                path,
                lambda: self._at,
                clock.monotonic,
                first_seq=last_seq + 1,
                continue_at=continue_at,
            )
        except OSError as error:
            raise StorageUnavailable(f"{path}: {error}") from error

    @property
    def pending(self) -> bool:
        """Whether records wait for a commit."""
        return bool(self._waiting)

    def append(self, kind: str, fields: Fields) -> None:
        """Buffer a record.

        Raises:
            RecordTooLarge, ValueError: it cannot be written; nothing was buffered.
        """
        self._at = round(self._clock.now(), 6)
        seq = self._writer.append(kind, fields)
        self._waiting.append(Record(seq, kind, self._at, fields, 0, 0))

    def commit(self) -> tuple[Record, ...]:
        """Sync what is buffered and answer it; ``end`` of the last record is the log's size.

        Raises:
            StorageUnavailable: nothing is lost, commit again later.
        """
        if not self._waiting:
            return ()
        try:
            self._writer.commit()
        except OSError as error:
            raise StorageUnavailable(f"{self.path}: {error}") from error
        done, self._waiting = tuple(self._waiting), []
        return done

    @property
    def size(self) -> int:
        """Bytes that this log has on stable storage."""
        return self._writer.size

    def close(self) -> None:
        """Commit and close; the records of a failed last commit are lost with the process."""
        try:
            self._writer.close()
        except OSError as error:
            raise StorageUnavailable(f"{self.path}: {error}") from error
