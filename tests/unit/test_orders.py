"""The runner's reader of orders: epochs, fencing, gaps (rules 13, 15, 20)."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from harvester.clock import FakeClock
from payload_runner.files import RealFiles
from payload_runner.logfile import LogWriter
from payload_runner.orders import EPOCH_JUMP, Incoming, OrderReader
from payload_runner.protocol import SpoolPaths

TAG = "haaaaa-bbbbbb"


class Desk:
    """A spool with one allocation, drivers that write, and the reader under test."""

    def __init__(self, root: Path) -> None:
        self.clock = FakeClock()
        self.files = RealFiles()
        self.spool = SpoolPaths(root)
        self.allocation = self.spool.allocation(TAG)
        self.files.make_dir(self.allocation.root)
        self.files.make_dir(self.spool.leases)
        self.writers: dict[int, LogWriter] = {}
        self.reader = OrderReader(self.files, self.spool, self.allocation, self.clock.monotonic)

    def claim(self, epoch: int) -> None:
        self.files.create_exclusive(self.spool.epoch_claim(epoch), b"x")

    def write(self, epoch: int, *kinds: str, first_seq: int = 1) -> None:
        if epoch not in self.writers:
            self.writers[epoch] = LogWriter(
                self.files,
                self.allocation.orders(epoch),
                time.time,
                self.clock.monotonic,
                first_seq=first_seq,
            )
        for kind in kinds:
            self.writers[epoch].append(kind, {})
        self.writers[epoch].commit()

    def kinds(self) -> list[str]:
        return [record.kind for record in self.reader.poll().records]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_orders_are_read_once_in_order(desk: Desk) -> None:
    assert desk.reader.poll() == Incoming()
    desk.write(1, "open", "order")
    assert desk.kinds() == ["open", "order"]
    desk.write(1, "close")
    assert desk.kinds() == ["close"]
    assert (desk.reader.epoch, desk.reader.last_seq) == (1, 3)


def test_a_newer_epoch_fences_the_older_log_within_ten_seconds(desk: Desk) -> None:
    desk.write(1, "open")
    desk.reader.poll()
    desk.claim(2)
    assert desk.reader.poll().fenced is None
    desk.clock.advance(10)
    assert desk.reader.poll().fenced == (2, 1)
    desk.write(1, "order")
    desk.write(2, "open", "snapshot_end")
    assert desk.kinds() == ["open", "snapshot_end"]


def test_a_hint_makes_it_look_for_a_newer_epoch_at_once(desk: Desk) -> None:
    desk.write(1, "open")
    desk.reader.poll()
    desk.write(2, "open")
    desk.reader.look_soon()
    incoming = desk.reader.poll()
    assert incoming.fenced == (2, 1)
    assert [record.kind for record in incoming.records] == ["open"]


def test_an_order_written_after_a_newer_claim_is_never_obeyed(desk: Desk) -> None:
    desk.write(1, "open")
    desk.reader.poll()
    desk.claim(2)
    desk.write(1, "order")
    assert desk.reader.poll() == Incoming(fenced=(2, 1))


def test_the_lease_file_alone_shows_a_newer_epoch(desk: Desk) -> None:
    desk.write(1, "open")
    desk.reader.poll()
    desk.spool.lease.write_text(json.dumps({"epoch": 3}))
    desk.clock.advance(10)
    assert desk.reader.poll().fenced == (3, 1)


@pytest.mark.fault("definition or order wrong")
def test_an_epoch_far_ahead_is_refused_and_told_once(desk: Desk) -> None:
    desk.write(1, "open")
    desk.reader.poll()
    desk.claim(2 + EPOCH_JUMP)
    desk.write(1, "order")
    incoming = desk.reader.poll()
    assert incoming.refused_epoch == 2 + EPOCH_JUMP
    assert [record.kind for record in incoming.records] == ["order"]
    desk.clock.advance(10)
    assert desk.reader.poll().refused_epoch is None


@pytest.mark.parametrize("rubbish", [b"", b"{", b"[1]", b'{"epoch": "9"}', b'{"epoch": true}'])
def test_a_lease_file_of_rubbish_changes_nothing(desk: Desk, rubbish: bytes) -> None:
    desk.write(1, "open")
    desk.spool.lease.write_bytes(rubbish)
    assert desk.kinds() == ["open"]
    assert desk.reader.epoch == 1


def test_numbers_that_are_missing_are_named(desk: Desk) -> None:
    desk.write(1, "order", first_seq=4)
    assert desk.reader.poll().missing == ((1, 3),)


def test_a_new_reader_never_reads_an_older_epoch(desk: Desk) -> None:
    desk.write(1, "open", "order")
    desk.write(2, "open")
    assert desk.kinds() == ["open"]
    assert desk.reader.epoch == 2


def test_records_written_by_anything_else_are_ignored(desk: Desk) -> None:
    desk.allocation.orders(1).write_text("order everything\n")
    fields: Any = desk.reader.poll()
    assert fields.records == ()
