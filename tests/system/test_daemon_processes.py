"""The daemon over real processes: local batch system, runner and payloads; only the central
service is a stand-in, so that its books can be looked at."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harvester.batch.local import LocalBatch
from harvester.batch.port import JobState
from harvester.central.port import LeaseRequest, Receipt, Result
from harvester.clock import SystemClock
from harvester.daemon import Daemon, aside
from harvester.effects import ThreadEffects
from harvester.errors import StorageUnavailable
from harvester.model import JobId
from harvester.simulation.central import SimulatedCentral
from harvester.site import Budgets, PlanningChoice, Queue, RunnerChoice, Site, WalltimeBin
from payload_runner.files import RealFiles
from payload_runner.protocol import NodeShape, PayloadSpec, Shape
from tests.support import wait_until

COMMAND = "printf '{\"loss\": 0.5}' > output.json"


@dataclass
class Place:
    """A site on this machine and the service that it works for."""

    site: Site
    batch: LocalBatch
    central: SimulatedCentral

    def daemon(self) -> Daemon:
        clock = SystemClock()
        return Daemon(
            self.site,
            batch=self.batch,
            central=self.central,
            files=RealFiles(),
            clock=clock,
            effects=ThreadEffects(clock),
            seed=1,
        )

    @contextmanager
    def running(self) -> Iterator[threading.Event]:
        """The daemon's loop in a thread."""
        daemon, stop = self.daemon(), threading.Event()
        thread = threading.Thread(target=daemon.run, args=(stop,))
        thread.start()
        try:
            yield stop
        finally:
            stop.set()
            daemon.wake()
            thread.join(timeout=60)
            assert not thread.is_alive()


def make_place(root: Path, points: int, command: str, **payload_options: Any) -> Place:
    state = root / "state"
    bins = (WalltimeBin(nodes_min=1, nodes_max=2, walltime_max_s=600.0),)
    site = Site(
        name="here",
        batch_system="local",
        node=NodeShape(gpus=2, cores=2),
        queues=(Queue(name="local", bins=bins),),
        spool=root / "spool",
        filesystem="local",
        state_dir=state,
        index=state / "index.sqlite",
        budgets=Budgets(query_interval_s=0.5, queries_per_minute=240, submissions_per_hour=100),
        runner=RunnerChoice(python=sys.executable, drain_margin_s=1.0, idle_exit_s=1.0),
        planning=PlanningChoice(boot_margin_s=1.0, default_expected_s=30.0),
    )
    payload = PayloadSpec("p1", command, Shape(gpus_per_node=1.0), **payload_options)
    central = SimulatedCentral(
        SystemClock(), payload, [{"x": n} for n in range(points)], files=RealFiles()
    )
    batch = LocalBatch(root / "batch", nodes=2, node=site.node, warn_s=1.0)
    return Place(site, batch, central)


@pytest.fixture
def root() -> Iterator[Path]:
    # Short: the local batch system listens on a socket below it.
    with tempfile.TemporaryDirectory(prefix="hd-") as name:
        yield Path(name)


def live_jobs(place: Place) -> list[JobId]:
    jobs = place.batch.observe().jobs
    return [job.job_id for job in jobs if job.state is not JobState.ENDED]


def end_jobs(place: Place) -> None:
    place.batch.cancel(live_jobs(place))
    wait_until(lambda: not live_jobs(place))


def test_a_search_runs_to_its_end_and_each_result_is_told_once(root: Path) -> None:
    place = make_place(root, 12, COMMAND)
    with place.running():
        wait_until(lambda: place.central.unsettled == 0, timeout=120)
        wait_until(lambda: not live_jobs(place))
    assert set(place.central.losses.values()) == {0.5}
    assert set(place.central.books.told.values()) == {1}


def test_a_loss_reaches_the_service_soon_after_it_was_written(root: Path) -> None:
    # A polling daemon would need a second; the benchmark has the figure. On a busy machine a later
    # search tells.
    assert any(median_delay_s(root / str(number)) < 1.0 for number in range(5))


def median_delay_s(root: Path) -> float:
    """Of a search of eight points, from the loss's being written to its being told."""
    place = make_place(root, 8, f"{COMMAND}; date +%s.%N > {root}/at.$HARVESTER_POINT")
    told: dict[str, float] = {}
    deliver = place.central.deliver

    def watch(results: Sequence[Result]) -> tuple[Receipt, ...]:
        told.update({result.lease.split(".")[1]: time.time() for result in results})
        return deliver(results)

    place.central.deliver = watch  # type: ignore[method-assign]
    with place.running():
        wait_until(lambda: place.central.unsettled == 0, timeout=120)
    late = sorted(told[p] - float((root / f"at.{p}").read_text()) for p in told)
    assert len(late) == 8
    end_jobs(place)
    return late[4]


def test_files_that_cannot_be_read_hold_up_no_others_and_no_loss_for_ever(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_place(root, 3, f"echo $HARVESTER_POINT > m.txt; {COMMAND}", metrics_name="m.txt")
    unreadable: list[Path] = []

    def upload(path: Path, sha256: str, size: int) -> None:
        if path in unreadable or not unreadable:
            unreadable[:] = [path]
            raise StorageUnavailable(f"cannot read {path}: Input/output error")

    place.central.upload = upload  # type: ignore[method-assign]
    with place.running():
        wait_until(lambda: place.central.unsettled == 1)
        monkeypatch.setattr(aside, "ASIDE_AT_MOST_S", 0.0)
        monkeypatch.setattr(aside, "ASIDE_S", 0.0)
        assert place.central.unsettled == 1
    with place.running():
        wait_until(lambda: place.central.unsettled == 0)
    files = sorted(len(result.files) for result in place.central.books.results.values())
    assert files == [0, 1, 1]
    end_jobs(place)


def test_rounds_from_cron_come_to_the_same_end(root: Path) -> None:
    place = make_place(root, 6, COMMAND)

    def one_round() -> bool:
        place.daemon().run_once(30.0)
        return place.central.unsettled == 0

    wait_until(one_round, timeout=90)
    assert set(place.central.books.told.values()) == {1}
    assert [path.name for path in (place.site.spool / "leases").iterdir()] == ["1"]
    end_jobs(place)


_DRIVE = """
import sys, threading
sys.path.insert(0, {top!r})
from pathlib import Path
from tests.system.test_daemon_processes import make_place
make_place(Path({root!r}), 6, {command!r}).daemon().run(threading.Event())
"""


@pytest.mark.fault("daemon killed")
def test_a_daemon_killed_while_payloads_run_is_followed_without_loss(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first process leases, orders and dies by SIGKILL; the second finds everything."""
    command = f"sleep 3; {COMMAND}"
    top = str(Path(__file__).resolve().parents[2])
    program = _DRIVE.format(top=top, root=str(root), command=command)
    place = make_place(root, 6, command)
    first = subprocess.Popen([sys.executable, "-c", program])
    try:
        wait_until(lambda: any((place.site.spool / "allocations").glob("*/*/events.*")))
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    # The points that the first process held are leased to nobody in this process's service: it
    # knows them as leased, as a real one would.
    place.central.lease(LeaseRequest(key="as before", harvester="x", site="here", points=6))
    with caplog.at_level(logging.INFO, "harvester.lease"), place.running():
        wait_until(lambda: place.central.unsettled == 0, timeout=120)
    assert "Take over from a dead process" in caplog.text  # and do not wait for its lease's end
    assert sorted(path.name for path in (place.site.spool / "leases").iterdir()) == ["1", "2"]
    assert set(place.central.books.told.values()) == {1}
    assert all(attempt.endswith(".1.1") for attempt in place.central.books.told), "run twice"
    end_jobs(place)
