"""One start of a batch script: which job it is, whether it may run, and what ran under it before.

Implements rule 16: a tag belongs to the job that claimed it first. A second job under the same tag
leaves at once; the same job started again waits until nothing of its earlier start moves any more,
and takes over what that start has not done.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

from payload_runner.files import Files
from payload_runner.logfile import LogReader, Record
from payload_runner.protocol import AllocationPaths, IncarnationPaths, dump_json
from payload_runner.transport import make_secret

# A torn claim may still be on its way; a second job has to be gone within 10 s.
CLAIM_WAIT_S = 5.0
# Agents of a dead leader notice within 10 s, or minutes where they speak through files; whoever
# still runs writes at least every 10 s.
QUIET_S = {"local": 15.0, "shared": 60.0}
_CLAIM_LIMIT = 64 * 1024

# (variable with the job id, variable with the number of restarts before this start)
_JOB_VARIABLES = (
    ("HARVESTER_LOCAL_JOB_ID", "HARVESTER_LOCAL_RESTART"),
    ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"),
    ("PBS_JOBID", ""),
    ("LSB_JOBID", ""),
    ("FLUX_JOB_ID", ""),
    ("JOB_ID", ""),  # Grid Engine; its RESTARTED says only that there was one
)
# Those whose missing counter means zero; the others have no counter.
_COUNTED = ("HARVESTER_LOCAL_RESTART", "SLURM_RESTART_COUNT")


class NotOurs(Exception):
    """This start must not run anything; it leaves with exit code 0."""


class NoJob(ValueError):
    """Nothing says which batch job this is."""


@dataclass(frozen=True)
class Job:
    """A batch job and how often it was started before; None: the batch system does not count."""

    job_id: str
    restart: Optional[int] = None


@dataclass
class History:
    """What earlier starts of the same job did; their attempts never run again."""

    started: Dict[str, None] = field(default_factory=dict)
    outcomes: Dict[str, Tuple[str, Dict[str, Any]]] = field(default_factory=dict)

    def unfinished(self) -> Tuple[str, ...]:
        """Attempts that were started and whose end nobody wrote down."""
        return tuple(attempt for attempt in self.started if attempt not in self.outcomes)

    def take(self, record: Record) -> None:
        """Learn from one event."""
        fields = record.fields
        if record.kind == "attempt_started":
            self.started[str(fields.get("attempt"))] = None
        elif record.kind == "attempt_ended":
            self.outcomes[str(fields.get("attempt"))] = (record.kind, fields)
        elif record.kind == "handed_back":
            for attempt in fields.get("attempts", ()):
                alone = {**fields, "attempts": [attempt]}
                self.outcomes.setdefault(str(attempt), (record.kind, alone))


def job_from(
    environ: Mapping[str, str], job_id: Optional[str] = None, restart: Optional[int] = None
) -> Job:
    """Which job this is: as told, else as the batch system's environment says.

    Raises:
        NoJob: neither says.
    """
    if job_id is not None:
        return Job(job_id, restart)
    for id_name, restart_name in _JOB_VARIABLES:
        if environ.get(id_name):
            counted = restart_name in _COUNTED
            count = environ.get(restart_name, "0" if counted else "")
            return Job(environ[id_name], int(count) if count.isdigit() else None)
    names = ", ".join(name for name, _ in _JOB_VARIABLES)
    raise NoJob(f"no batch job: none of {names} is set; start it from a job, or give --job-id")


def claim(
    files: Files,
    paths: AllocationPaths,
    job: Job,
    monotonic: Callable[[], float],
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Make the tag this job's, or find that it is already.

    Raises:
        NotOurs: another job has it.
        OSError: the allocation's directory cannot be written.
    """
    try:
        files.create_exclusive(paths.claim, dump_json({"job_id": job.job_id}))
        return
    except FileExistsError:
        pass
    until = monotonic() + CLAIM_WAIT_S
    owner = _owner(files, paths.claim)
    while owner is None and monotonic() < until:
        sleep(0.2)
        owner = _owner(files, paths.claim)
    if owner != job.job_id:
        known = f"job {owner}" if owner is not None else "a job whose claim cannot be read"
        raise NotOurs(f"tag {paths.root.name} belongs to {known}; job {job.job_id} leaves")


def enter(files: Files, paths: AllocationPaths, job: Job) -> IncarnationPaths:
    """Make this start's own directory with its secret.

    Raises:
        NotOurs: this very start has a directory already: a second leader of one start.
        OSError: the directory cannot be written.
    """
    restart = job.restart if job.restart is not None else _free_number(files, paths, job)
    mine = paths.incarnation(job.job_id, restart)
    files.make_dir(mine.root)
    try:
        files.create_exclusive(mine.secret, make_secret())
    except FileExistsError:
        raise NotOurs(f"{mine.root} is taken: another leader runs for this job") from None
    files.make_dir(mine.files)
    return mine


def await_quiet(
    files: Files,
    earlier: Tuple[IncarnationPaths, ...],
    filesystem: str,
    monotonic: Callable[[], float],
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait until no earlier start moves: it said its last word, or its files stopped growing."""
    open_ones = [paths for paths in earlier if not _has_ended(files, paths, monotonic)]
    quiet_s = QUIET_S.get(filesystem, QUIET_S["shared"])
    seen: List[Tuple[str, int]] = []
    since = monotonic()
    while open_ones and monotonic() - since < quiet_s:
        found = [size for paths in open_ones for size in _sizes(paths)]
        if found != seen:
            seen, since = found, monotonic()
        sleep(min(1.0, quiet_s / 10))


def read_history(
    files: Files, earlier: Tuple[IncarnationPaths, ...], monotonic: Callable[[], float]
) -> History:
    """Everything that earlier starts of this job wrote down."""
    history = History()
    for paths in earlier:
        for path in paths.event_logs(_names(files, paths.root)):
            for record in _records(files, path, monotonic):
                history.take(record)
    return history


def earlier_starts(
    files: Files, paths: AllocationPaths, mine: IncarnationPaths
) -> Tuple[IncarnationPaths, ...]:
    """The incarnations of this tag besides our own, oldest first."""
    found = paths.incarnations(_names(files, paths.root))
    return tuple(other for other in found if other.root != mine.root)


def _owner(files: Files, path: Path) -> Optional[str]:
    try:
        value = json.loads(files.read(path, 0, _CLAIM_LIMIT))
    except (OSError, ValueError):
        return None
    owner = value.get("job_id") if isinstance(value, dict) else None
    return owner if isinstance(owner, str) else None


def _free_number(files: Files, paths: AllocationPaths, job: Job) -> int:
    number = 0
    while files.exists(paths.incarnation(job.job_id, number).root):
        number += 1
    return number


def _has_ended(files: Files, paths: IncarnationPaths, monotonic: Callable[[], float]) -> bool:
    logs = paths.event_logs(_names(files, paths.root))
    return any(
        record.kind == "allocation_ended"
        for path in logs
        for record in _records(files, path, monotonic)
    )


def _records(files: Files, path: Path, monotonic: Callable[[], float]) -> List[Record]:
    reader = LogReader(files, path, monotonic)
    found: List[Record] = []
    while True:
        batch = reader.poll()
        if not batch.records:
            return found
        found += batch.records


def _sizes(paths: IncarnationPaths) -> List[Tuple[str, int]]:
    boxes = re.compile(r"(events|inbox|outbox)\..*\.log")
    found = []
    for path in sorted(paths.root.iterdir()):
        if boxes.fullmatch(path.name):
            found.append((str(path), path.stat().st_size))
    return found


def _names(files: Files, path: Path) -> Tuple[str, ...]:
    try:
        return files.listdir(path)
    except FileNotFoundError:
        return ()
