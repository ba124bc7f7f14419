"""An index that refuses for a moment must not lose what was just read from the runners."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from harvester.batch.local import LocalBatch
from harvester.clock import FakeClock
from harvester.daemon.desk import Desk
from harvester.daemon.events import TakeEvents
from harvester.daemon.opening import Ports, prepare, take_in_hand
from harvester.effects import InlineEffects
from harvester.errors import StorageUnavailable
from harvester.model import Tag
from harvester.simulation.central import SimulatedCentral
from harvester.site import Queue, Site
from payload_runner.files import RealFiles
from payload_runner.logfile import LogWriter
from payload_runner.protocol import Heartbeat, NodeShape, PayloadSpec, to_fields

TAGS = (Tag("haaaaa-aaaaaa"), Tag("haaaaa-bbbbbb"), Tag("haaaaa-cccccc"))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A spool in hand, with three allocations."""
    clock, files, node = FakeClock(), RealFiles(), NodeShape(gpus=1)
    site = Site(
        name="here",
        batch_system="local",
        node=node,
        queues=(Queue(name="q", bins=()),),
        spool=tmp_path / "spool",
        filesystem="local",
        state_dir=tmp_path / "state",
        index=tmp_path / "index.sqlite",
    )
    ports = Ports(
        site=site,
        batch=LocalBatch(tmp_path / "batch", nodes=1, node=node),
        central=SimulatedCentral(clock, PayloadSpec("p", "true"), ()),
        files=files,
        clock=clock,
        effects=InlineEffects(),
    )
    rng = random.Random(1)
    grounds = prepare(ports, rng)
    assert grounds.lease.acquire() == 0.0
    made = take_in_hand(ports, grounds, rng)
    for tag in TAGS:
        shape = {"queue": "q", "nodes": 1, "walltime_s": 60.0, "gpus_per_node": 1, "why": "x"}
        made.journal.record("planned", {"tag": tag, **shape})
        made.journal.record("submit_intent", {"tag": tag})
    made.journal.commit()
    yield made
    made.journal.close()
    made.events.close()
    made.store.close()


def say_something(desk: Desk, tag: Tag) -> None:
    """The runner of an allocation writes its first event."""
    incarnation = desk.spool.allocation(tag).incarnation("1", 0)
    desk.files.make_dir(incarnation.root)
    log = LogWriter(desk.files, incarnation.events("0-a"), desk.clock.now, desk.clock.monotonic)
    log.append(Heartbeat.KIND, to_fields(Heartbeat(1, 0, 0, 0, remaining_s=60.0)))
    log.close()


@pytest.mark.fault("index lost or damaged")
def test_every_log_is_read_again_after_the_index_refused(desk: Desk) -> None:
    for tag in TAGS:
        say_something(desk, tag)
    events = TakeEvents(desk)
    other = sqlite3.connect(desk.site.index, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageUnavailable):
        events.step()
    other.execute("ROLLBACK")
    other.close()

    assert isinstance(desk.clock, FakeClock)
    desk.clock.advance(events.rests_for())
    assert events.step()

    heard = [desk.store.allocations.get(tag).remaining_s for tag in TAGS]
    assert heard == [60.0, 60.0, 60.0]
