"""A site as plain values: what ``config`` makes of one YAML file, and all that others read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from payload_runner.protocol import NodeShape


@dataclass(frozen=True, slots=True, kw_only=True)
class WalltimeBin:
    """Jobs of nodes_min..nodes_max nodes may ask for up to walltime_max_s."""

    nodes_min: int
    nodes_max: int
    walltime_max_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A queue or partition with its limits; None means that the centre states none."""

    name: str
    bins: tuple[WalltimeBin, ...]
    kind: str = "queue"  # queue (Slurm: partition) | qos (of Slurm)
    queued_max: int | None = None  # jobs waiting, this user's (or project's) others included
    running_max: int | None = None
    total_max: int | None = None
    limits_per: str = "user"  # user | project
    preemptable: bool = False
    directives: tuple[str, ...] = ()
    whole_nodes: bool = True
    gpus_min: int = 0  # that a job must ask for
    planned: bool = True  # False: for tests and the like, used only where planning.queues names it
    routes_to: tuple[str, ...] = ()  # under whose names its jobs are listed


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionRules:
    """What a job of this site says of itself, and what it must leave unsaid."""

    gpu_request: str = "gres"  # gres | gpus-per-node | none
    cores: bool = True
    memory: bool = True
    held: bool = False  # nothing starts before a person has released it


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What nodes and login node can reach. None: nobody has said."""

    compute: str = "unknown"  # none | proxy | outbound | unknown
    unset_proxy: bool = False  # the proxy of the environment does not work on the login node
    inter_job: bool | None = None  # nodes of different jobs reach each other


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """A maintenance window: no job may run in it. Times are seconds since the epoch."""

    start: float
    end: float
    why: str = "maintenance"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgets:
    """Hard limits on what this harvester may cost the centre."""

    query_interval_s: float = 60.0
    queries_per_minute: float = 2.0
    submissions_per_hour: int = 30
    jobs_in_flight: int = 4
    node_hours_per_day: float | None = None  # of jobs planned within the last 24 hours
    node_hours_total: float | None = None  # of the site's project, by this harvester, ever
    command_timeout_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CentralChoice:
    """Which central service, and where its credentials lie."""

    kind: str = "native"
    url: str | None = None  # None: as $XDG_STATE_HOME/harvester/central.json says
    token_file: Path | None = None
    ca_file: Path | None = None
    timeout_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerChoice:
    """How the payload runner lives on this site's nodes."""

    python: str = "python3"
    launcher: tuple[str, ...] = ()
    mpi_launcher: tuple[str, ...] = ()  # of MPI payloads; (): none can run here
    transport: str = "auto"
    node_local_dir: str | None = None
    keep_workdirs: bool = False  # for looking around; somebody else has to clear them
    drain_margin_s: float = 60.0
    idle_exit_s: float = 120.0
    environment: Mapping[str, str] = field(default_factory=dict)
    prologue: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanningChoice:
    """Preferences inside the limits."""

    queues: tuple[str, ...] = ()  # that searches may use; (): those with ``planned``
    nodes_max: int | None = None  # of one allocation
    walltime_max_s: float | None = None
    walltime_min_s: float = 0.0
    boot_margin_s: float = 60.0
    default_expected_s: float = 1800.0  # of a payload nobody has seen run
    lookahead: float = 2.0  # points held per slot in flight


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalCluster:
    """The virtual cluster of the `local` batch system."""

    nodes: int = 2
    warn_s: float = 5.0  # SIGTERM before SIGKILL at the limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """The login node that a harvester on another host reaches over ssh."""

    host: str  # as ssh takes it: a name, user@name, or an alias of its configuration
    ssh_config: Path | None = None  # None: ssh's usual files
    python: str = "python3"  # on the login node, 3.9 or newer
    prologue: tuple[str, ...] = ()  # shell lines before each command there
    second_factor: bool = False  # only a person can open the connection
    session_s: float | None = None  # how long the centre lets a connection live
    warn_before_s: float = 3600.0  # its end
    timeout_s: float = 30.0  # of one file operation


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A computing centre as the harvester sees it."""

    name: str
    batch_system: str
    node: NodeShape
    queues: tuple[Queue, ...]
    spool: Path
    filesystem: str = "shared"  # shared | local
    retention_s: float = 30 * 86400.0  # of what has ended and is delivered, in spool and books
    state_dir: Path = Path()
    index: Path = Path()  # SQLite, on a disk local to the login node
    roll_bytes: int = 64 * 1024 * 1024  # after which a ledger goes on in another file
    description: str = ""
    account: str = ""
    requeue: bool = False  # by the batch system, after a preemption or the loss of a node
    account_required: bool = False
    directives: tuple[str, ...] = ()
    container_runtime: str = "none"
    image_dir: str | None = None
    container_images: Mapping[str, str] = field(default_factory=dict)
    container_options: tuple[str, ...] = ()
    containers_only: bool = False  # bare payloads are refused
    submission: SubmissionRules = field(default_factory=SubmissionRules)
    network: Network = field(default_factory=Network)
    reservations: tuple[Reservation, ...] = ()
    budgets: Budgets = field(default_factory=Budgets)
    central: CentralChoice = field(default_factory=CentralChoice)
    runner: RunnerChoice = field(default_factory=RunnerChoice)
    planning: PlanningChoice = field(default_factory=PlanningChoice)
    local: LocalCluster = field(default_factory=LocalCluster)
    remote: Remote | None = None  # None: the harvester runs where the spool is
    file: Path | None = None  # the one that was named; those that it extends are elsewhere

    @property
    def where(self) -> str:
        """The site file, for sentences that send people there."""
        return "the site file" if self.file is None else f"the site file {self.file}"

    @property
    def bundles(self) -> Path:
        """Where what is carried by hand comes in and goes out."""
        return self.state_dir / "bundles"

    @property
    def status_file(self) -> Path:
        """``status.json``: in the spool, or here where the spool is on another host."""
        return (self.spool if self.remote is None else self.state_dir) / "status.json"
