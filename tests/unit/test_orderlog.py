"""Order logs: definitions before orders, snapshots first, acknowledgements in company."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from harvester.clock import FakeClock
from harvester.model import AttemptId, Tag
from harvester.simulation.memory_files import SharedDisk
from harvester.spool.orderlog import ACK_DELAY_S, OrderLogs, order_log_epochs
from harvester.store.positions import Position
from payload_runner.files import RealFiles
from payload_runner.logfile import LogReader, Record
from payload_runner.protocol import Order, PayloadSpec, SpoolPaths

TAG = Tag("habcde-abcdef")
PAYLOAD = PayloadSpec("p", "true")


class Bench:
    """One allocation's directory and its order logs."""

    def __init__(self, root: Path) -> None:
        self.clock = FakeClock()
        self.spool = SpoolPaths(root)
        RealFiles().make_dir(self.spool.allocation(TAG).root)
        self.logs = self.open(1)

    def open(self, epoch: int) -> OrderLogs:
        return OrderLogs(
            RealFiles(), self.spool, self.clock, epoch=epoch, spool_id="abcde", by="me"
        )

    def written(self, epoch: int = 1) -> tuple[Record, ...]:
        path = self.spool.allocation(TAG).orders(epoch)
        return LogReader(RealFiles(), path, self.clock.monotonic).poll().records

    def kinds(self, epoch: int = 1) -> list[str]:
        return [record.kind for record in self.written(epoch)]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def order(n: int) -> Order:
    return Order(f"1.{n}.1.1", "1", str(n), "p", {"x": n})


def test_a_new_log_opens_with_the_version_and_a_snapshot(bench: Bench) -> None:
    bench.logs.open(TAG, Position(), [(order(1), PAYLOAD), (order(2), PAYLOAD)])
    list(bench.logs.commit())
    assert bench.kinds() == ["open", "define", "order", "order", "snapshot_end"]
    assert bench.written()[0].fields["version"] == 1


def test_nothing_is_told_before_it_is_committed(bench: Bench) -> None:
    bench.logs.open(TAG, Position())
    bench.logs.order(TAG, order(1), PAYLOAD)
    assert bench.written() == ()
    ((tag, records, size),) = bench.logs.commit()
    assert (tag, [record.kind for record in records]) == (
        TAG,
        ["open", "snapshot_end", "define", "order"],
    )
    assert size == bench.spool.allocation(TAG).orders(1).stat().st_size


def test_a_payload_is_defined_once_per_log(bench: Bench) -> None:
    bench.logs.open(TAG, Position())
    for n in (1, 2, 3):
        bench.logs.order(TAG, order(n), PAYLOAD)
    list(bench.logs.commit())
    assert bench.kinds().count("define") == 1


def test_a_released_log_is_continued_with_its_numbers(bench: Bench) -> None:
    bench.logs.open(TAG, Position())
    ((_, records, size),) = bench.logs.commit()
    bench.logs.close()
    again = bench.open(1)
    again.open(TAG, Position(offset=size, max_seq=len(records)))
    again.order(TAG, order(1), PAYLOAD)
    list(again.commit())
    assert [record.seq for record in bench.written()] == [1, 2, 3, 4]


def test_acknowledgements_wait_for_company_but_not_long(bench: Bench) -> None:
    bench.logs.open(TAG, Position())
    list(bench.logs.commit())
    bench.logs.ack(TAG, "0-a", 5)
    bench.logs.ack(TAG, "0-a", 7)
    assert list(bench.logs.commit()) == []
    assert bench.logs.ack_due_in() == ACK_DELAY_S
    bench.clock.advance(ACK_DELAY_S)
    list(bench.logs.commit())
    assert bench.written()[-1].fields == {"writer": "0-a", "to": 7}
    assert bench.logs.ack_due_in() is None


def test_an_order_takes_the_acknowledgement_along(bench: Bench) -> None:
    bench.logs.open(TAG, Position())
    list(bench.logs.commit())
    bench.logs.ack(TAG, "0-a", 5)
    bench.logs.order(TAG, order(1), PAYLOAD)
    list(bench.logs.commit())
    assert bench.kinds()[-1] == "ack"


def test_missing_events_are_asked_for_again_only_after_a_while(bench: Bench) -> None:
    bench.logs.open(TAG, Position())
    for _ in range(3):
        bench.logs.resend(TAG, "0-a", (3, 4), again_after_s=30.0)
        bench.clock.advance(20)
    list(bench.logs.commit())
    asked = [record.fields for record in bench.written() if record.kind == "resend"]
    assert asked == [{"writer": "0-a", "from": 3, "to": 4}] * 2


def test_what_an_ended_allocation_is_told_goes_nowhere(bench: Bench) -> None:
    bench.logs.open(TAG, Position())
    list(bench.logs.commit())
    bench.logs.ack(TAG, "0-a", 5)
    bench.logs.forget(TAG)
    bench.logs.stop(TAG, AttemptId("1.1.1.1"), "cancelled", "late")
    bench.logs.resend(TAG, "0-a", (1, 2), again_after_s=30.0)
    assert list(bench.logs.commit()) == []
    assert bench.kinds() == ["open", "snapshot_end"]


def test_the_epochs_of_an_allocation_are_listed_in_order(bench: Bench) -> None:
    for epoch in (10, 9):
        logs = bench.open(epoch)
        logs.open(TAG, Position())
        logs.close()
    assert order_log_epochs(RealFiles(), bench.spool, TAG) == (9, 10)
    assert order_log_epochs(RealFiles(), bench.spool, Tag("haaaaa-aaaaaa")) == ()


def test_the_log_of_an_ended_allocation_may_refuse_its_last_records() -> None:
    clock = FakeClock()
    disk = SharedDisk(clock.monotonic)
    spool = SpoolPaths(Path("/spool"))
    disk.host("login").make_dir(spool.allocation(TAG).root)
    logs = OrderLogs(disk.host("login"), spool, clock, epoch=1, spool_id="abcde", by="me")
    logs.open(TAG, Position())
    logs.ack(TAG, "0-a", 3)

    def full(operation: str, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    disk.fault = full
    logs.forget(TAG)

    clock.advance(ACK_DELAY_S + 1)
    assert list(logs.commit()) == []
    assert not logs.is_open(TAG)
