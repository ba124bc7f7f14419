"""The on-disk contract between the harvester and the payload runner: names, paths and records.

Owns every file name under the spool and the shape of every record in its logs. The only place
that joins a spool path. How logs are written: ``logfile``; the rules: ``docs/protocol.md``.

Layout::

    SPOOL/                                      0700
      spool.json                                {"version", "spool_id"}
      lease.json  leases/<epoch>                who drives (rule 13)
      STOP                                      drain everything (rule 21)
      join.json                                 AllocationPlan without tag: for who wants to join
      status.json                               what the CLI and views read
      runner/payload_runner-<hash>.pyz          the runner, one zipapp
      inputs/<sha256>                           input files of tasks, content-addressed
      work/                                     working directories without node-local disk
      allocations/<tag>/
        allocation.json                         AllocationPlan: what the runner is to know
        batch.sh  batch.out                     the rendered script and its output
        joined                                  Joined: a user's own job, not ours to cancel
        orders.<epoch>.log                      down; writer: the driver of that epoch
        claim                                   first incarnation to start (rule 16)
        <job id>.<restart count>/               one start of the batch script
          secret                                0600; leader and agents
          events.<writer>.log                   up; writer: a leader
          inbox.<node>.<nonce>.log  outbox.<node>.<nonce>.log   file transport only
          files/                                committed large files
"""

from __future__ import annotations

import re
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Mapping, Optional, Tuple, Type, Union

# Records and their codec are one contract; users of it import them from here.
from payload_runner.codec import BadRecord as BadRecord
from payload_runner.codec import dump_json as dump_json
from payload_runner.codec import from_fields as from_fields
from payload_runner.codec import load_json as load_json
from payload_runner.codec import to_fields as to_fields

CHECKPOINT_LIMIT_BYTES = 100_000_000
METADATA_LIMIT_BYTES = 1_000_000
INLINE_LIMIT_BYTES = 16 * 1024
CONTAINER_WORKDIR = "/srv/workDir"
PENALTY_LOSS = 1e5  # what PanDA writes for a point whose tries are used up
METRICS_LINES_NAME = "metrics.jsonl"

_TAG = re.compile(r"h[a-z2-7]{5}-[a-z2-7]{6}")
_ATTEMPT = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+){3}")


# --- values ---
# The runner must load under Python 3.9: no slots, and Optional where annotations are evaluated.


@dataclass(frozen=True)
class FileRef:
    """A committed file: path relative to the spool, size in bytes, SHA-256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class InputFile:
    """A user's file for the working directory; its content lies at ``inputs/<sha256>``."""

    name: str  # relative to the working directory, no "..", may hold directories
    sha256: str
    size: int
    executable: bool = False


@dataclass(frozen=True)
class Shape:
    """What a payload occupies while it runs.

    ``nodes_max > nodes_min`` makes it elastic. ``gpus_per_node`` below 1 is a share of one GPU.
    ``start``: ``single`` runs the command once on the first node; ``processes`` runs it once per
    rank on every node with rendezvous variables; ``mpi`` hands it to the site's launcher;
    ``elastic`` runs it once on every node that the payload has for a while.
    """

    nodes_min: int = 1
    nodes_max: int = 1
    gpus_per_node: float = 1.0
    ranks_per_node: int = 1
    cores_per_node: int = 0  # 0: the share that goes with its GPUs
    memory_mb_per_node: int = 0  # 0: the share that goes with its GPUs
    start: str = "single"


@dataclass(frozen=True)
class CheckpointRule:
    """Which files of the working directory are its checkpoint, and how they come back."""

    paths: Tuple[str, ...]  # files and directories relative to the working directory
    load_as: Optional[str] = None  # None: unpacked in place; else the archive under this name
    interval_s: float = 300.0


@dataclass(frozen=True)
class Container:
    """The image that a payload runs in; the site's plan says with which runtime."""

    image: str
    options: Tuple[str, ...] = ()


@dataclass(frozen=True)
class PayloadSpec:
    """What every attempt of a task runs; defined once per log, named by ``payload_id``."""

    payload_id: str
    command: str  # a line for /bin/sh, the user's own; %SEGMENT_NAME is replaced
    shape: Shape = field(default_factory=Shape)
    files: Tuple[InputFile, ...] = ()
    input_name: str = "input.json"
    training_name: str = "input_ds.json"
    training_files: Tuple[str, ...] = ()
    output_name: str = "output.json"
    meta_name: Optional[str] = None
    metrics_name: Optional[str] = None
    checkpoint: Optional[CheckpointRule] = None
    container: Optional[Container] = None
    environment: Mapping[str, str] = field(default_factory=dict)
    time_limit_s: Optional[float] = None  # of one attempt; beyond it the point is to blame
    expected_s: Optional[float] = None  # typical duration as the user declared it
    node_hours: Optional[float] = None  # that all attempts of the task may take together
    warn_signal: str = "SIGUSR2"
    warn_s: float = 30.0  # warning before SIGTERM, at the drain point
    kill_s: float = 10.0  # SIGTERM before SIGKILL
    keep_output_bytes: int = 64 * 1024  # of stdout and of stderr, half head, half tail
    relay_output: bool = False  # also of attempts that succeed
    contract: str = "idds"  # idds | runhpo: by which files the payload is talked to


@dataclass(frozen=True)
class Order:
    """One attempt to run. ``parameters`` is the bare JSON value for ``input.json``."""

    KIND: ClassVar[str] = "order"
    attempt: str
    task: str
    point: str
    payload_id: str
    parameters: Any  # JSON from the central service
    segment: Optional[str] = None
    priority: int = 0
    expected_s: Optional[float] = None
    checkpoint: Optional[FileRef] = None
    checkpoint_of: Optional[str] = None  # the attempt that saved it
    number: int = 1  # 1 for the point's first attempt, and so on


@dataclass(frozen=True)
class NodeShape:
    """One node as the plan promises it and as the runner found it."""

    gpus: int = 0
    cores: int = 1
    memory_mb: int = 0
    gpu_variable: str = "CUDA_VISIBLE_DEVICES"
    gpu_names: Tuple[str, ...] = ()  # in the order of the cores near them; (): 0, 1, 2, ...


@dataclass(frozen=True)
class AllocationPlan:
    """``allocation.json``: all that a runner needs to know besides its orders."""

    tag: str
    spool_id: str
    nodes: int
    node: NodeShape
    walltime_s: float
    batch_system: str
    launcher: Tuple[str, ...] = ()  # argv that starts one agent per node; () : spawn here
    mpi_launcher: Tuple[str, ...] = ()  # argv in front of an MPI payload; (): none can run
    transport: str = "auto"  # auto (tcp, else files) | tcp | files | mpi
    filesystem: str = "shared"  # shared (poll) | local (inotify)
    node_local_dir: Optional[str] = None  # working directories; None: under the spool
    keep_workdirs: bool = False  # leave them where they are when their payloads have ended
    drain_margin_s: float = 60.0  # nothing runs later than this before the end
    idle_exit_s: float = 120.0  # leave when there has been nothing to do for this long
    orders_poll_s: float = 1.0
    heartbeat_s: float = 30.0
    container_runtime: str = "none"
    image_dir: Optional[str] = None
    container_images: Mapping[str, str] = field(default_factory=dict)  # name: what it is here
    container_options: Tuple[str, ...] = ()  # of the site, before a payload's own
    environment: Mapping[str, str] = field(default_factory=dict)
    version: int = 1


@dataclass(frozen=True)
class Joined:
    """``joined``: the marker of an allocation that a user started, by which the driver finds it."""

    job_id: str
    nodes: int
    walltime_s: float
    host: str


# --- records going down: orders.<epoch>.log ---
# open {version, epoch, spool_id, by}          first record; then, for a new epoch, a snapshot:
# define PayloadSpec                           before the first order that names it
# order Order
# snapshot_end {}                              everything ordered and unfinished is above
# stop {attempt, outcome: pruned|cancelled, reason}
# ack {writer, to}                             the runner may forget its records up to seq `to`
# resend {writer, from, to}
# drain {reason, now: bool}                    start nothing more; now: checkpoint and leave
# close {}                                     no more orders will come: leave when done
# send_output {attempt}                        relay its kept stdout and stderr


# --- records going up: events.<writer>.log ---


@dataclass(frozen=True)
class Opened:
    """First record of every event log."""

    KIND: ClassVar[str] = "open"
    version: int
    tag: str
    incarnation: str
    writer: str
    host: str
    runner_version: str
    python: str


@dataclass(frozen=True)
class AllocationStarted:
    """The leader is up and knows its nodes and its end."""

    KIND: ClassVar[str] = "allocation_started"
    nodes: Tuple[str, ...]
    node: NodeShape
    remaining_s: float


@dataclass(frozen=True)
class NodeLost:
    """An agent or its node is gone; its attempts end with their own records."""

    KIND: ClassVar[str] = "node_lost"
    node: str
    reason: str


@dataclass(frozen=True)
class NodeQuarantined:
    """Payloads die at once on this node; it gets no more of them in this allocation."""

    KIND: ClassVar[str] = "node_quarantined"
    node: str
    reason: str


@dataclass(frozen=True)
class AttemptStarted:
    """A payload was spawned."""

    KIND: ClassVar[str] = "attempt_started"
    attempt: str
    nodes: Tuple[str, ...]
    gpus: Tuple[str, ...] = ()  # "node:index" or "node:index/share"
    resumed_from: Optional[str] = None


@dataclass(frozen=True)
class AttemptResized:
    """An elastic payload has other nodes now: lent, taken back, or lost."""

    KIND: ClassVar[str] = "attempt_resized"
    attempt: str
    nodes: Tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Reports:
    """Intermediate metrics, newest per step, as the payload wrote them."""

    KIND: ClassVar[str] = "reports"
    attempt: str
    values: Tuple[Mapping[str, Any], ...]  # {"step": n, "loss": x, ...}, finite numbers only


@dataclass(frozen=True)
class CheckpointSaved:
    """The commit record of a checkpoint archive."""

    KIND: ClassVar[str] = "checkpoint"
    attempt: str
    file: FileRef


@dataclass(frozen=True)
class CheckpointRefused:
    """A checkpoint could not be taken; the payload goes on. Names the largest files."""

    KIND: ClassVar[str] = "checkpoint_refused"
    attempt: str
    reason: str


@dataclass(frozen=True)
class AttemptEnded:
    """An attempt's outcome, in words of its life (``lifecycle``)."""

    KIND: ClassVar[str] = "attempt_ended"
    attempt: str
    state: str  # succeeded failed timed_out preempted pruned cancelled
    blame: Optional[str] = None  # point node site walltime
    reason: Optional[str] = None
    loss: Optional[float] = None
    message: Optional[str] = None
    metadata: Optional[Mapping[str, Any]] = None  # inline up to 16 KiB
    metadata_file: Optional[FileRef] = None
    metrics_file: Optional[FileRef] = None
    exit_code: Optional[int] = None
    signal: Optional[int] = None
    duration_s: float = 0.0
    progress: bool = False  # a checkpoint newer than the one it started from was committed
    stdout: Optional[str] = None  # kept head and tail; on failure or on request
    stderr: Optional[str] = None


@dataclass(frozen=True)
class HandedBack:
    """Orders that this allocation will not start."""

    KIND: ClassVar[str] = "handed_back"
    attempts: Tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Heartbeat:
    """Sent every ``heartbeat_s`` and on change of the last order read."""

    KIND: ClassVar[str] = "heartbeat"
    epoch: int
    orders_read: int
    waiting: int
    running: int
    remaining_s: float
    slots: float = 0.0
    slots_busy: float = 0.0


@dataclass(frozen=True)
class Fenced:
    """The runner saw a newer epoch and stopped reading the older log after ``last_seq``."""

    KIND: ClassVar[str] = "fenced"
    epoch: int
    last_seq: int


@dataclass(frozen=True)
class Draining:
    """Nothing new is started any more."""

    KIND: ClassVar[str] = "draining"
    reason: str


@dataclass(frozen=True)
class AllocationEnded:
    """The leader's last word: everything is committed and it leaves."""

    KIND: ClassVar[str] = "allocation_ended"
    reason: str
    slot_seconds: float
    busy_slot_seconds: float


Event = Union[
    Opened,
    AllocationStarted,
    NodeLost,
    NodeQuarantined,
    AttemptStarted,
    AttemptResized,
    Reports,
    CheckpointSaved,
    CheckpointRefused,
    AttemptEnded,
    HandedBack,
    Heartbeat,
    Fenced,
    Draining,
    AllocationEnded,
]
EVENT_TYPES: Mapping[str, Type[Any]] = {kind.KIND: kind for kind in typing.get_args(Event)}


def parse_event(kind: str, fields: Mapping[str, Any]) -> Optional[Event]:
    """The event of a record, or None for a kind that this release does not know.

    Raises:
        BadRecord: a known kind with a missing or wrong field.
    """
    found = EVENT_TYPES.get(kind)
    return None if found is None else from_fields(found, fields)


# --- paths ---


def check_tag(tag: str) -> str:
    """The tag itself if it is one of ours (``h``, 5 of the spool's id, ``-``, 6 base32).

    Raises:
        BadRecord: it is not, so it must not become a path or a job name.
    """
    if not _TAG.fullmatch(tag):
        raise BadRecord(f"{tag!r:.80} is not an allocation tag")
    return tag


def check_attempt(attempt: str) -> str:
    """The attempt id itself if it is well formed: ``<task>.<point>.<grant>.<try>``."""
    if not _ATTEMPT.fullmatch(attempt):
        raise BadRecord(f"{attempt!r:.80} is not an attempt id")
    return attempt


@dataclass(frozen=True)
class SpoolPaths:
    """Every path under a spool."""

    root: Path

    @property
    def identity(self) -> Path:
        return self.root / "spool.json"

    @property
    def lease(self) -> Path:
        return self.root / "lease.json"

    @property
    def leases(self) -> Path:
        return self.root / "leases"

    @property
    def stop(self) -> Path:
        return self.root / "STOP"

    @property
    def join(self) -> Path:
        return self.root / "join.json"

    @property
    def status(self) -> Path:
        return self.root / "status.json"

    @property
    def runner_dir(self) -> Path:
        return self.root / "runner"

    @property
    def inputs(self) -> Path:
        return self.root / "inputs"

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def allocations(self) -> Path:
        return self.root / "allocations"

    @property
    def probes(self) -> Path:
        return self.root / "probes"

    def epoch_claim(self, epoch: int) -> Path:
        return self.leases / str(epoch)

    def input(self, sha256: str) -> Path:
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise BadRecord(f"{sha256!r:.80} is not a SHA-256")
        return self.inputs / sha256

    def committed(self, ref: FileRef) -> Path:
        """Where a committed file lies.

        Raises:
            BadRecord: the path leaves the spool.
        """
        parts = Path(ref.path).parts
        if not parts or ".." in parts or Path(ref.path).is_absolute():
            raise BadRecord(f"{ref.path!r:.200} leaves the spool")
        return self.root.joinpath(*parts)

    def reference(self, path: Path) -> str:
        """How a :class:`FileRef` names a file under this spool."""
        return str(path.relative_to(self.root))

    def allocation(self, tag: str) -> AllocationPaths:
        return AllocationPaths(self.allocations / check_tag(tag))


@dataclass(frozen=True)
class AllocationPaths:
    """Every path of one allocation."""

    root: Path

    @property
    def plan(self) -> Path:
        return self.root / "allocation.json"

    @property
    def script(self) -> Path:
        return self.root / "batch.sh"

    @property
    def output(self) -> Path:
        return self.root / "batch.out"

    @property
    def joined(self) -> Path:
        return self.root / "joined"

    @property
    def claim(self) -> Path:
        return self.root / "claim"

    def orders(self, epoch: int) -> Path:
        return self.root / f"orders.{epoch}.log"

    def incarnation(self, job_id: str, restart: int) -> IncarnationPaths:
        # Job ids come from batch systems ("12345.pbs01", "12[3]"): keep them from naming a path.
        safe = re.sub(r"[^A-Za-z0-9_-]", "_", job_id)
        return IncarnationPaths(self.root / f"{safe}.{restart}")

    def incarnations(self, names: Tuple[str, ...]) -> Tuple[IncarnationPaths, ...]:
        """The incarnations among the names of a listing, in the order of their restarts."""
        found = [name for name in names if re.fullmatch(r"[A-Za-z0-9_-]+\.\d+", name)]
        found.sort(key=lambda name: (int(name.rsplit(".", 1)[1]), name))
        return tuple(IncarnationPaths(self.root / name) for name in found)


@dataclass(frozen=True)
class IncarnationPaths:
    """Every path of one start of a batch script."""

    root: Path

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def secret(self) -> Path:
        return self.root / "secret"

    @property
    def files(self) -> Path:
        return self.root / "files"

    def events(self, writer: str) -> Path:
        return self.root / f"events.{writer}.log"

    def event_logs(self, names: Tuple[str, ...]) -> Tuple[Path, ...]:
        """The event logs among the names of a listing."""
        return tuple(
            self.root / name for name in names if re.fullmatch(r"events\.[A-Za-z0-9-]+\.log", name)
        )

    def checkpoint(self, attempt: str, number: int) -> Path:
        return self.files / f"{check_attempt(attempt)}.checkpoint.{number}.tar.gz"

    def metadata(self, attempt: str) -> Path:
        return self.files / f"{check_attempt(attempt)}.metadata.json"

    def metrics(self, attempt: str) -> Path:
        return self.files / f"{check_attempt(attempt)}.metrics.tgz"

    def inbox(self, node: int, nonce: str) -> Path:
        return self.root / f"inbox.{node}.{nonce}.log"

    def outbox(self, node: int, nonce: str) -> Path:
        return self.root / f"outbox.{node}.{nonce}.log"
