"""Follows the order log of the newest epoch (rules 13, 15, 20)."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional, Tuple

from payload_runner.files import Files
from payload_runner.logfile import LogReader, Record
from payload_runner.protocol import AllocationPaths, SpoolPaths

LEASE_LOOK_S = 10.0
# A payload that runs bare could forge an epoch; no honest one is that far ahead.
EPOCH_JUMP = 1000
_LEASE_LIMIT = 64 * 1024
_ORDERS = re.compile(r"orders\.(\d+)\.log")


@dataclass(frozen=True)
class Incoming:
    """What one poll found, to be applied in this order."""

    fenced: Optional[Tuple[int, int]] = None  # newer epoch, last number read of the older log
    refused_epoch: Optional[int] = None  # too far ahead; told once
    missing: Tuple[Tuple[int, int], ...] = ()  # numbers that are unreadable
    records: Tuple[Record, ...] = ()


class OrderReader:
    """Reads orders of one epoch at a time; never one of an older epoch than it has seen."""

    def __init__(
        self,
        files: Files,
        spool: SpoolPaths,
        allocation: AllocationPaths,
        monotonic: Callable[[], float],
    ) -> None:
        self.epoch = 0  # 0: no order log yet
        self.last_seq = 0
        self._files = files
        self._spool = spool
        self._allocation = allocation
        self._monotonic = monotonic
        self._reader: Optional[LogReader] = None
        self._look_at = monotonic()
        self._refused = 0

    def poll(self) -> Incoming:
        """New orders. An unreadable spool is "nothing new"; the next poll tells.

        The lease is looked at every 10 s, and before orders count: what a fenced driver wrote
        after its time is never obeyed.
        """
        fenced: Optional[Tuple[int, int]] = None
        refused: Optional[int] = None
        if self._reader is None or self._monotonic() >= self._look_at:
            fenced, refused = self._look()
        records = self._read()
        if records and fenced is None:
            fenced, again = self._look()
            refused = refused if again is None else again
            if fenced is not None:
                records = self._read()
        missing = self._follow(records)
        return Incoming(fenced, refused, missing, records)

    def look_soon(self) -> None:
        """Something hints at a newer epoch: look with the next poll."""
        self._look_at = self._monotonic()

    def _read(self) -> Tuple[Record, ...]:
        if self._reader is None:
            return ()
        try:
            found = self._reader.poll().records
        except OSError:  # stale or stalled; the next poll tells
            return ()
        return tuple(record for record in found if record.seq > self.last_seq)

    def _follow(self, records: Tuple[Record, ...]) -> Tuple[Tuple[int, int], ...]:
        missing = []
        for record in records:
            if record.seq > self.last_seq + 1:
                missing.append((self.last_seq + 1, record.seq - 1))
            self.last_seq = record.seq
        return tuple(missing)

    def _look(self) -> Tuple[Optional[Tuple[int, int]], Optional[int]]:
        """Whether there is a newer epoch; turns to it if it can be believed."""
        self._look_at = self._monotonic() + LEASE_LOOK_S
        newest = self._newest()
        if newest <= self.epoch:
            return None, None
        if self.epoch and newest > self.epoch + EPOCH_JUMP:
            told, self._refused = self._refused, newest
            return None, (newest if told != newest else None)
        fenced = (newest, self.last_seq) if self.epoch else None
        self.epoch, self.last_seq = newest, 0
        self._reader = LogReader(self._files, self._allocation.orders(newest), self._monotonic)
        return fenced, None

    def _newest(self) -> int:
        epochs = [self._leased()]
        epochs += [int(name) for name in self._names(self._spool.leases) if name.isdigit()]
        found = (_ORDERS.fullmatch(name) for name in self._names(self._allocation.root))
        epochs += [int(match.group(1)) for match in found if match]
        return max(epochs)

    def _leased(self) -> int:
        try:
            value = json.loads(self._files.read(self._spool.lease, 0, _LEASE_LIMIT))
        except (OSError, ValueError):
            return 0
        epoch = value.get("epoch") if isinstance(value, dict) else None
        return epoch if isinstance(epoch, int) and not isinstance(epoch, bool) else 0

    def _names(self, path: Path) -> Tuple[str, ...]:
        try:
            return self._files.listdir(path)
        except OSError:
            return ()
