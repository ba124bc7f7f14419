"""Takes a spool into hand: directories, lease, index, ledger, order logs, in that order."""

from __future__ import annotations

import json
import random
import socket
from dataclasses import dataclass
from pathlib import Path

from harvester import ids, recover
from harvester.batch.port import BatchSystem
from harvester.central.port import CentralService
from harvester.clock import Clock
from harvester.daemon.desk import Desk
from harvester.daemon.journal import Journal
from harvester.daemon.plan_step import snapshot
from harvester.daemon.problems import Problems
from harvester.daemon.watch_link import Way
from harvester.effects import Effects
from harvester.errors import ConfigurationError, Problem, StorageUnavailable
from harvester.jobs import join_plan
from harvester.lease import Lease
from harvester.model import AllocationState
from harvester.site import Site
from harvester.spool.intake import EventLogs
from harvester.spool.ledger import Ledger
from harvester.spool.orderlog import OrderLogs, order_log_name
from harvester.spool.runner_archive import ensure_runner_archive
from harvester.spool.spooldir import prepare_spool
from harvester.store import Store
from payload_runner.files import Files
from payload_runner.protocol import SpoolPaths, dump_json

_READ_LIMIT = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """What the daemon was given."""

    site: Site
    batch: BatchSystem
    central: CentralService
    files: Files
    clock: Clock
    effects: Effects
    way: Way | None = None  # to a site on another host


@dataclass(frozen=True, slots=True, kw_only=True)
class Grounds:
    """What is there before the lease is held."""

    spool: SpoolPaths
    spool_id: str
    state_id: str
    lease: Lease


def prepare(ports: Ports, rng: random.Random) -> Grounds:
    """Make the directories and name them; nothing is driven yet.

    Raises:
        StorageUnavailable, ConfigurationError: the spool or state directory cannot be used.
    """
    site = ports.site
    spool_id = prepare_spool(ports.files, site.spool, rng)
    try:
        ports.files.make_dir(site.state_dir)
        state_id = _state_id(ports.files, site.state_dir / "state.json", rng)
    except OSError as error:
        raise StorageUnavailable(f"the state directory {site.state_dir}: {error}") from error
    spool = SpoolPaths(site.spool)
    lease = Lease(ports.files, spool, site.state_dir, ports.clock, state_id=state_id)
    return Grounds(spool=spool, spool_id=spool_id, state_id=state_id, lease=lease)


def take_in_hand(
    ports: Ports,
    grounds: Grounds,
    rng: random.Random,
    *,
    single_round: bool = False,
    rebuild: bool = False,
) -> Desk:
    """Open everything under a lease that is held; ``rebuild`` drops the index first.

    Raises:
        StorageUnavailable: state directory, spool or the index's disk refuses.
    """
    files, site, clock = ports.files, ports.site, ports.clock
    spool, epoch = grounds.spool, grounds.lease.epoch
    by = grounds.lease.holder
    sources = recover.Sources(files, spool, site.state_dir)
    open_store = recover.rebuild if rebuild else recover.open_store
    store = open_store(sources, site.index, grounds.spool_id)
    orders = OrderLogs(files, spool, clock, epoch=epoch, spool_id=grounds.spool_id, by=by)
    ledger = Ledger(
        files,
        site.state_dir,
        clock,
        epoch=epoch,
        spool_id=grounds.spool_id,
        by=by,
        position_of=store.positions.get,
        roll_bytes=site.roll_bytes,
    )
    desk = Desk(
        site=site,
        clock=clock,
        files=files,
        spool=spool,
        spool_id=grounds.spool_id,
        harvester=f"{site.name}-{grounds.spool_id}",
        runner=ensure_runner_archive(files, spool),
        rng=rng,
        batch=ports.batch,
        central=ports.central,
        effects=ports.effects,
        lease=grounds.lease,
        store=store,
        journal=Journal(ledger, orders, store, sources),
        orders=orders,
        events=_event_logs(ports, spool, store),
        problems=Problems(clock),
        way=ports.way,
        single_round=single_round,
    )
    desk.journal.commit()
    _open_order_logs(desk)
    _announce(desk)
    return desk


def _event_logs(ports: Ports, spool: SpoolPaths, store: Store) -> EventLogs:
    return EventLogs(
        ports.files,
        spool,
        ports.clock,
        filesystem=ports.site.filesystem,
        offsets=store.positions.offsets("allocations/"),
    )


def _open_order_logs(desk: Desk) -> None:
    """Every allocation in flight gets this epoch's log, which opens with what is ordered there."""
    for row in desk.store.allocations.not_ended():
        if row.state is not AllocationState.PLANNED:
            position = desk.store.positions.get(order_log_name(row.tag, desk.lease.epoch))
            desk.orders.open(row.tag, position, snapshot(desk, row.tag))
    desk.journal.commit_orders()


def _announce(desk: Desk) -> None:
    """``daemon.json``: how the command line finds the spool of a site."""
    text = json.dumps(
        {
            "spool": str(desk.spool.root),
            "site": desk.site.name,
            "pid": desk.lease.pid,
            "host": socket.gethostname(),
        }
    )
    path = desk.site.state_dir / "daemon.json"
    try:
        desk.files.replace(desk.spool.join, dump_json(join_plan(desk.site, desk.spool_id)))
        desk.files.replace(path, f"{text}\n".encode())
    except OSError as error:
        raise StorageUnavailable(f"{path}: {error}") from error


def _state_id(files: Files, path: Path, rng: random.Random) -> str:
    """Names the state directory, so that only its own next run continues an epoch."""
    if not files.exists(path):
        try:
            fresh = json.dumps({"state_id": ids.new_spool_id(rng)})
            files.create_exclusive(path, f"{fresh}\n".encode())
        except FileExistsError:
            pass  # a run that started at the same time was first
        except OSError:
            files.remove(path)  # half written it would stop every later run
            raise
    try:
        found = json.loads(files.read(path, 0, _READ_LIMIT))
    except ValueError:  # not UTF-8, not JSON
        found = None
    state_id = found.get("state_id") if isinstance(found, dict) else None
    if not isinstance(state_id, str) or not state_id:
        cure = "is damaged; remove it: the next run makes a new one and goes on in a new epoch"
        raise ConfigurationError(Problem(str(path), "state_id", "", cure))
    return state_id
