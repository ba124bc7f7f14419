"""What the steps of the tick share: the site, the ports, the logs and the index."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from harvester.batch.port import BatchSystem
from harvester.central.port import CentralService
from harvester.clock import Clock
from harvester.daemon.journal import Journal
from harvester.daemon.problems import Problems
from harvester.daemon.watch_link import Way
from harvester.effects import Effects, Finished
from harvester.lease import Lease
from harvester.model import BackfillWindow, Tag
from harvester.site import Site
from harvester.spool.intake import EventLogs
from harvester.spool.orderlog import OrderLogs
from harvester.store import Store
from payload_runner.files import Files
from payload_runner.protocol import SpoolPaths


@dataclass(slots=True)
class Heard:
    """The newest word of a runner about its remaining time, on our own clock."""

    monotonic: float
    remaining_s: float


@dataclass(frozen=True, slots=True)
class Windows:
    """What the batch system said of idle nodes, and when (wall clock)."""

    at: float = 0.0
    found: tuple[BackfillWindow, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What spool and books take, in bytes; None: not known here."""

    index_bytes: int | None
    ledger_bytes: int  # of the ledgers in the state directory
    log_bytes: int  # of orders and events
    allocations: int  # ended, with a directory in the spool
    spool_free_bytes: int | None
    state_free_bytes: int | None


@dataclass(slots=True, kw_only=True)
class Desk:
    """Everything a step works with. Steps read and write it in the tick's thread only."""

    site: Site
    clock: Clock
    files: Files
    spool: SpoolPaths
    spool_id: str
    harvester: str  # by which name the central service knows us
    runner: Path
    rng: random.Random
    batch: BatchSystem
    central: CentralService
    effects: Effects
    lease: Lease
    store: Store
    journal: Journal
    orders: OrderLogs
    events: EventLogs
    problems: Problems
    way: Way | None = None  # to a site on another host
    single_round: bool = False  # the next one comes minutes later, from cron
    stopping: bool = False  # the STOP file lies in the spool
    inputs_wanted: bool = True  # payloads may name files that are not here yet
    plan_wanted: bool = True  # something changed that a plan may depend on
    heard: dict[Tag, Heard] = field(default_factory=dict)
    submitting: set[Tag] = field(default_factory=set)  # submissions that have not come back
    cancelling: set[Tag] = field(default_factory=set)
    waiting_for: Mapping[str, str] = field(default_factory=dict)  # tag -> why its job waits
    space: Space | None = None  # as it was last looked at
    orphans: int = 0  # jobs with a tag of this spool that the ledger does not know
    # Queue -> queued and running jobs, not ours: of this user, and of all members of the project.
    other_jobs: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    project_jobs: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    looked_at: float | None = None  # when these were counted, wall clock
    windows: Windows = field(default_factory=Windows)  # the newest
    windows_wanted: bool = False  # a submission waits for them

    @property
    def is_local(self) -> bool:
        """Whether spool and jobs are on this machine, so that haste costs nobody anything."""
        return self.site.filesystem == "local"


class Step(Protocol):
    """One part of the tick."""

    @property
    def effects(self) -> tuple[str, ...]:
        """The kinds of effects (their names before the colon) that are this step's own."""

    def take(self, finished: Finished) -> None:
        """Turn an effect's end into ledger records (not yet committed) or memory."""

    def step(self) -> bool:
        """Do what is due; True if something moved. Raises StorageUnavailable and Fenced."""

    def due_in(self) -> float | None:
        """Seconds until there may be something to do again; None: only others can tell."""
