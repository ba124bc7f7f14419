"""The ledger: what runners do not know, durable before it takes effect (rules 10 and 17).

One file per epoch in the state directory; one that has grown too large goes on in another of the
same epoch (rule 5). Kinds, with ``*`` for an intent whose effect follows::

    open {version, epoch, spool_id, by}
    lease_asked* {key, points}       payload PayloadSpec     leased LeasedPoint
    lease_answered {key}             lease_gone {leases}     lease_stop {lease, why}
    planned {tag, queue, nodes, walltime_s, gpus_per_node, why}
    submit_intent* {tag}             submitted {tag, job_id}        submit_failed {tag, reason}
    observed {tag, state, reason}    unseen {tag}    ending {tag, witness, reason, blame}
    cancel_intent* {tags, why}     cancelled {tags}
    allocation_ended {tag, witness, reason, blame, returns}
    judged {attempt, final, summary, next?}   what follows from an attempt's end
    attempt_closed {attempt, state, blame, reason}   an outcome that the harvester decided
    delivering* {attempts}           delivered {receipts: [[attempt, verdict, reason]]}
    uploaded {attempt}
    discarding* {tags}     discarded {tags, before}    what was settled before has left the spool
    continued {next}                 the last record: the ledger goes on in a file of that name
    read {log, to}                   the order of things: that log was applied up to this offset
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from harvester.clock import Clock
from harvester.spool.durable import DurableLog
from harvester.store.positions import Position
from payload_runner.files import Files
from payload_runner.logfile import PROTOCOL_VERSION, ROLL_BYTES, Fields, Record

_NAME = re.compile(r"ledger\.(\d+)(?:\.(\d+))?\.log")

LedgerNumber = tuple[int, int]  # epoch and part, both from 1


def ledger_path(state_dir: Path, epoch: int, part: int = 1) -> Path:
    """Where a part of an epoch's ledger lies."""
    return state_dir / (f"ledger.{epoch}.log" if part == 1 else f"ledger.{epoch}.{part}.log")


def ledger_number(path: Path) -> LedgerNumber:
    """Epoch and part of a ledger's file."""
    found = _NAME.fullmatch(path.name)
    assert found is not None, path
    return int(found[1]), int(found[2] or 1)


def ledgers(files: Files, state_dir: Path) -> tuple[Path, ...]:
    """Every ledger of a state directory, in the order in which they were written."""
    found = (state_dir / name for name in files.listdir(state_dir) if _NAME.fullmatch(name))
    return tuple(sorted(found, key=ledger_number))


class Ledger:
    """The ledger of one epoch: a ``DurableLog`` that goes on in another file when it has grown."""

    def __init__(
        self,
        files: Files,
        state_dir: Path,
        clock: Clock,
        *,
        epoch: int,
        spool_id: str,
        by: str,
        position_of: Callable[[str], Position],
        roll_bytes: int = ROLL_BYTES,
    ) -> None:
        """Create the epoch's ledger, or continue its newest part behind its position.

        Raises:
            StorageUnavailable: the state directory refuses.
        """
        self._files = files
        self._state_dir = state_dir
        self._clock = clock
        self._head = {
            "version": PROTOCOL_VERSION,
            "epoch": epoch,
            "spool_id": spool_id,
            "by": by,
        }
        self._roll_bytes = roll_bytes
        self._successor: DurableLog | None = None  # made, and named by the last record of this one
        parts = [path for path in ledgers(files, state_dir) if ledger_number(path)[0] == epoch]
        if not parts:
            self._log = self._create(epoch, 1)
            return
        position = position_of(parts[-1].name)
        self._log = DurableLog(
            files, parts[-1], clock, last_seq=position.max_seq, continue_at=position.offset
        )
        if position.max_seq == 0:  # made by a run that left before it wrote to it
            self._log.append("open", self._head)

    @property
    def name(self) -> str:
        """The file that records go to now."""
        return self._log.path.name

    @property
    def number(self) -> LedgerNumber:
        """Epoch and part of that file."""
        return ledger_number(self._log.path)

    @property
    def size(self) -> int:
        """Bytes that this file has on stable storage."""
        return self._log.size

    def append(self, kind: str, fields: Fields) -> None:
        """Buffer a record. Raises as ``DurableLog.append``."""
        self._log.append(kind, fields)

    def commit(self) -> tuple[Record, ...]:
        """Sync what is buffered and answer it. Raises StorageUnavailable."""
        return self._log.commit()

    def roll(self) -> tuple[str, tuple[Record, ...], int] | None:
        """Go on in another file if this one is large and nothing is buffered.

        Answers the old file's name, its last records and its size, to be applied; None if it was
        not time.

        Raises:
            StorageUnavailable: it goes on in the old file; call it again after the next commit.
        """
        if self._log.size <= self._roll_bytes or self._log.pending:
            return None
        if self._successor is None:
            epoch, part = self.number
            self._successor = self._create(epoch, part + 1)
            self._log.append("continued", {"next": self._successor.path.name})
        last = self._log.commit()
        old, self._log, self._successor = self._log, self._successor, None
        old.close()
        return old.path.name, last, old.size

    def close(self) -> None:
        """Commit and close. Raises StorageUnavailable."""
        if self._successor is not None:
            self._successor.close()
        self._log.close()

    def _create(self, epoch: int, part: int) -> DurableLog:
        log = DurableLog(self._files, ledger_path(self._state_dir, epoch, part), self._clock)
        log.append("open", self._head)
        return log
