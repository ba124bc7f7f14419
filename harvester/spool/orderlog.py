"""The order logs: what the harvester tells each allocation's runner (rules 2, 10, 11, 12, 15)."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from typing import Any

from harvester.clock import Clock
from harvester.errors import StorageUnavailable
from harvester.model import AttemptId, PayloadSpec, Tag
from harvester.spool.durable import DurableLog
from harvester.store.positions import Position, Range
from payload_runner.files import Files
from payload_runner.logfile import PROTOCOL_VERSION, Record
from payload_runner.protocol import Order, SpoolPaths, to_fields

log = logging.getLogger(__name__)

_NAME = re.compile(r"orders\.(\d+)\.log")
# An acknowledgement only frees the runner's memory: it may wait for company.
ACK_DELAY_S = 2.0


def order_log_name(tag: Tag, epoch: int) -> str:
    """The log's name in the index: its path relative to the spool."""
    return f"allocations/{tag}/orders.{epoch}.log"


def order_log_epochs(files: Files, spool: SpoolPaths, tag: Tag) -> tuple[int, ...]:
    """The epochs of the order logs of an allocation, oldest first; () without a directory."""
    try:
        names = files.listdir(spool.allocation(tag).root)
    except FileNotFoundError:
        return ()
    found = (_NAME.fullmatch(name) for name in names)
    return tuple(sorted(int(match[1]) for match in found if match))


class OrderLogs:
    """The order logs of one epoch, one per allocation that has not ended.

    Nothing that is written here counts before ``commit`` has answered it.
    """

    def __init__(
        self, files: Files, spool: SpoolPaths, clock: Clock, *, epoch: int, spool_id: str, by: str
    ) -> None:
        self.epoch = epoch
        self._files = files
        self._spool = spool
        self._clock = clock
        self._head = {
            "version": PROTOCOL_VERSION,
            "epoch": epoch,
            "spool_id": spool_id,
            "by": by,
        }
        self._logs: dict[Tag, DurableLog] = {}
        self._defined: dict[Tag, set[str]] = {}
        self._acked: dict[tuple[Tag, str], int] = {}
        self._acks_since: dict[Tag, float] = {}
        self._resent: dict[tuple[Tag, str, Range], float] = {}

    def open(
        self,
        tag: Tag,
        position: Position,
        snapshot: Iterable[tuple[Order, PayloadSpec]] = (),
    ) -> None:
        """Make the allocation's log of this epoch ready: continued, or begun with a snapshot.

        Opening one that is open is fine. Raises StorageUnavailable.
        """
        if tag in self._logs:
            return
        path = self._spool.allocation(tag).orders(self.epoch)
        if position.max_seq > 0:
            self._logs[tag] = DurableLog(
                self._files,
                path,
                self._clock,
                last_seq=position.max_seq,
                continue_at=position.offset,
            )
            self._defined[tag] = set()
            return
        self._logs[tag] = log = DurableLog(self._files, path, self._clock)
        self._defined[tag] = set()
        log.append("open", self._head)
        for order, payload in snapshot:
            self.order(tag, order, payload)
        log.append("snapshot_end", {})

    def is_open(self, tag: Tag) -> bool:
        """Whether the allocation's log is ready."""
        return tag in self._logs

    def order(self, tag: Tag, order: Order, payload: PayloadSpec) -> None:
        """Order an attempt. Raises RecordTooLarge if its parameters do not fit a record."""
        log = self._logs[tag]
        if payload.payload_id not in self._defined[tag]:
            log.append("define", to_fields(payload))
            self._defined[tag].add(payload.payload_id)
        log.append("order", to_fields(order))

    def stop(self, tag: Tag, attempt: AttemptId, outcome: str, reason: str) -> None:
        """Stop an attempt; ``outcome`` is ``pruned`` or ``cancelled``."""
        self._tell(tag, "stop", {"attempt": attempt, "outcome": outcome, "reason": reason})

    def drain(self, tag: Tag, reason: str, *, now: bool) -> None:
        """Start nothing more; with ``now``, checkpoint what runs and leave."""
        self._tell(tag, "drain", {"reason": reason, "now": now})

    def close_orders(self, tag: Tag) -> None:
        """No more orders will come."""
        self._tell(tag, "close", {})

    def ack(self, tag: Tag, writer: str, seq: int) -> None:
        """The events of a writer up to ``seq`` are committed; goes out within 2 s."""
        if tag not in self._logs or self._acked.get((tag, writer), 0) >= seq:
            return
        self._acked[tag, writer] = seq
        self._acks_since.setdefault(tag, self._clock.monotonic())

    def resend(self, tag: Tag, writer: str, missing: Range, *, again_after_s: float) -> None:
        """Ask for missing events; repeated calls are told on only every ``again_after_s``."""
        now = self._clock.monotonic()
        last = self._resent.get((tag, writer, missing))
        if tag not in self._logs or (last is not None and now - last < again_after_s):
            return
        self._resent[tag, writer, missing] = now
        self._tell(tag, "resend", {"writer": writer, "from": missing[0], "to": missing[1]})

    def commit(self) -> Iterator[tuple[Tag, tuple[Record, ...], int]]:
        """Sync every log that has something to say; answers tag, records and the log's size.

        Raises:
            StorageUnavailable: one log's file system refuses; the others come with the next call.
        """
        self._append_acks()
        for tag, log in self._logs.items():
            if log.pending:
                yield tag, log.commit(), log.size

    def ack_due_in(self) -> float | None:
        """Seconds until the oldest acknowledgement goes out."""
        if not self._acks_since:
            return None
        return max(0.0, min(self._acks_since.values()) + ACK_DELAY_S - self._clock.monotonic())

    def forget(self, tag: Tag) -> None:
        """The allocation ended: close its log and drop what was kept for it. Never raises."""
        self._defined.pop(tag, None)
        self._acks_since.pop(tag, None)
        self._acked = {key: seq for key, seq in self._acked.items() if key[0] != tag}
        self._resent = {key: at for key, at in self._resent.items() if key[0] != tag}
        ended = self._logs.pop(tag, None)
        if ended is not None:
            try:
                ended.close()
            except StorageUnavailable as error:  # nobody is left to read its last records
                log.warning("Could not close an order log. tag=%s reason=%s", tag, error)

    def close(self) -> None:
        """Commit and close all logs, trying each; raises the first StorageUnavailable."""
        for tag in self._acks_since:
            self._acks_since[tag] = 0.0
        self._append_acks()
        failed: StorageUnavailable | None = None
        for log in self._logs.values():
            try:
                log.close()
            except StorageUnavailable as error:
                failed = failed or error
        self._logs.clear()
        if failed is not None:
            raise failed

    def _append_acks(self) -> None:
        now = self._clock.monotonic()
        for tag, since in list(self._acks_since.items()):
            if now - since < ACK_DELAY_S and not self._logs[tag].pending:
                continue
            del self._acks_since[tag]
            for (of, writer), seq in self._acked.items():
                if of == tag:
                    self._tell(tag, "ack", {"writer": writer, "to": seq})

    def _tell(self, tag: Tag, kind: str, fields: dict[str, Any]) -> None:
        log = self._logs.get(tag)
        if log is not None:
            log.append(kind, fields)
