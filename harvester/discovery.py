"""Looks at a login node for what a first site file should say: scheduler, queues, nodes, scratch.

The reading of command outputs is pure and takes what it understands; what a command does not say
is left for a person, with a remark. Nothing is submitted, and each command runs once.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from harvester.batch.commands import Executor, run_command
from harvester.errors import BatchUnavailable

TIMEOUT_S = 20.0
#: What a partition without a time limit is asked for.
WEEK_S = 7 * 86_400.0
SCRATCH_VARIABLES = ("SCRATCH", "PSCRATCH", "CINECA_SCRATCH", "MEMBERWORK", "SCRATCHDIR", "WORK")

# Commands that give a batch system away, the surest first: Slurm's wrappers bring a qstat too.
_SIGNS: Mapping[str, tuple[str, ...]] = {
    "slurm": ("sbatch", "sinfo"),
    "flux": ("flux",),
    "lsf": ("bsub", "bqueues"),
    "gridengine": ("qsub", "qconf"),
    "pbs": ("qsub", "pbsnodes"),
}
_SINFO = ("sinfo", "--noheader", "--format=%P|%a|%D|%X|%Y|%m|%l|%G")
_GPU = re.compile(r"gpu:(?:([\w.-]+):)?(\d+)")
_LIMIT = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueFound:
    """A queue as the batch system describes it; None: it does not say."""

    name: str
    nodes: int | None = None
    walltime_s: float | None = None
    cores: int | None = None
    gpus: int | None = None
    memory_mb: int | None = None
    gpu_kind: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScratchFound:
    """A directory that looks like the shared scratch."""

    variable: str
    path: Path
    free_bytes: int
    free_files: int
    quota: bool = False  # whether that is within this user's quota, too


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What was found."""

    batch_system: str = "local"
    command: str = ""  # that told of the queues
    queues: tuple[QueueFound, ...] = ()
    scratch: ScratchFound | None = None
    remarks: tuple[str, ...] = ()


Which = Callable[[str], str | None]


def look_around(
    environ: Mapping[str, str],
    *,
    batch_system: str | None = None,
    which: Which = shutil.which,
    execute: Executor = run_command,
) -> Machine:
    """What this machine tells of its site; ``batch_system`` overrules what commands suggest."""
    system = batch_system or _batch_system(which)
    scratch = _within_quota(_scratch(environ), environ, which, execute)
    machine = Machine(batch_system=system, scratch=scratch)
    commands = _COMMANDS.get(system, ())
    for command, read in commands:
        try:
            done = execute(command, timeout_s=TIMEOUT_S, environment={**environ, "LC_ALL": "C"})
        except BatchUnavailable as error:
            return _remark(machine, f"{command[0]} cannot be asked: {error}")
        if done.returncode != 0:
            return _remark(machine, f"{command[0]} failed: {done.stderr.strip()[:200]}")
        machine = replace(
            machine, queues=read(done.stdout, machine.queues), command=" ".join(command[:1])
        )
    if commands and not machine.queues:
        return _remark(machine, f"{commands[0][0][0]} lists no queue that takes jobs")
    return machine


def _remark(machine: Machine, remark: str) -> Machine:
    return replace(machine, remarks=(*machine.remarks, remark))


def _batch_system(which: Which) -> str:
    for system, commands in _SIGNS.items():
        if all(which(command) for command in commands):
            return system
    return "local"


def _scratch(environ: Mapping[str, str]) -> ScratchFound | None:
    for variable in SCRATCH_VARIABLES:
        path = Path(environ.get(variable, ""))
        try:
            if path.is_absolute() and os.access(path, os.W_OK | os.X_OK):
                disk = os.statvfs(path)
                return ScratchFound(
                    variable=variable,
                    path=path,
                    free_bytes=disk.f_bavail * disk.f_frsize,
                    free_files=disk.f_favail,
                )
        except OSError:
            continue  # a file system that is away is no scratch today
    return None


def _within_quota(
    scratch: ScratchFound | None, environ: Mapping[str, str], which: Which, execute: Executor
) -> ScratchFound | None:
    """What Lustre still lets this user write; the scratch as it is where that is not told."""
    if scratch is None or not which("lfs"):
        return scratch
    command = ("lfs", "quota", "-q", "-u", str(os.getuid()), str(scratch.path))
    try:
        done = execute(command, timeout_s=TIMEOUT_S, environment={**environ, "LC_ALL": "C"})
    except BatchUnavailable:
        return scratch
    left = read_lustre_quota(done.stdout) if done.returncode == 0 else None
    if left is None:
        return scratch
    kilobytes, files = left
    return replace(
        scratch,
        free_bytes=int(min(scratch.free_bytes, kilobytes * 1024)),
        free_files=int(min(scratch.free_files, files)),
        quota=True,
    )


def read_lustre_quota(text: str) -> tuple[float, float] | None:
    """KiB and files that ``lfs quota -q`` leaves, infinite without a limit; None: unreadable.

    After the path come used, soft limit, hard limit and grace, of space and then of files.
    """
    words = [word.strip("*[]") for word in text.split() if not word.startswith("/")][:8]
    if len(words) < 8 or not all(words[at].isdigit() for at in (0, 1, 2, 4, 5, 6)):
        return None
    return _left(*map(int, words[:3])), _left(*map(int, words[4:7]))


def _left(used: int, soft: int, hard: int) -> float:
    return max(0.0, min((limit for limit in (soft, hard) if limit), default=math.inf) - used)


# --- Slurm ---


def read_sinfo(text: str, _known: Iterable[QueueFound] = ()) -> tuple[QueueFound, ...]:
    """Partitions that are up, the default one first; of mixed ones the kind with most GPUs."""
    found: dict[str, list[QueueFound]] = {}
    default = ""
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("|")]
        if len(fields) != 8 or fields[1] != "up":
            continue
        name = fields[0].rstrip("*")
        default = name if name != fields[0] else default
        found.setdefault(name, []).append(_sinfo_row(name, fields))
    queues = [_merged(rows) for rows in found.values()]
    return tuple(sorted(queues, key=lambda queue: queue.name != default))


def _sinfo_row(name: str, fields: list[str]) -> QueueFound:
    _, _, nodes, sockets, cores, memory, limit, gres = fields
    gpu = _GPU.search(gres)
    each = (_number(sockets), _number(cores))
    return QueueFound(
        name=name,
        nodes=_number(nodes),
        walltime_s=read_limit(limit),
        cores=each[0] * each[1] if each[0] and each[1] else None,
        memory_mb=_number(memory),
        gpus=int(gpu[2]) if gpu else 0,
        gpu_kind=(gpu[1] or "") if gpu else "",
    )


def _merged(rows: list[QueueFound]) -> QueueFound:
    most = max(row.gpus or 0 for row in rows)
    alike = [row for row in rows if row.gpus == most]
    return replace(
        alike[0],
        nodes=sum(row.nodes or 0 for row in alike) or None,
        cores=min((row.cores for row in alike if row.cores), default=None),
        memory_mb=min((row.memory_mb for row in alike if row.memory_mb), default=None),
    )


def read_limit(text: str) -> float | None:
    """Seconds of ``[D-][HH:]MM:SS``; a week where there is no limit; None: unreadable."""
    if text.lower() in ("infinite", "unlimited"):
        return WEEK_S
    match = _LIMIT.fullmatch(text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


# --- PBS ---


def read_qstat_queues(text: str, _known: Iterable[QueueFound] = ()) -> tuple[QueueFound, ...]:
    """Queues of ``qstat -Q -f`` that are enabled."""
    queues = []
    for block in re.split(r"(?m)^Queue: ", text)[1:]:
        name, _, rest = block.partition("\n")
        values = dict(re.findall(r"(?m)^\s+([\w.]+) = (.*)$", rest))
        if values.get("enabled") == "True":
            queue = QueueFound(
                name=name.strip(),
                nodes=_number(values.get("resources_max.nodect", "")),
                walltime_s=read_limit(values.get("resources_max.walltime", "")),
            )
            queues.append(queue)
    return tuple(queues)


def read_pbsnodes(text: str, queues: Iterable[QueueFound]) -> tuple[QueueFound, ...]:
    """The queues with the commonest shape of the nodes of ``pbsnodes -a``, GPU nodes first."""
    shapes: Counter[tuple[int, int, int]] = Counter()
    for block in re.split(r"\n\s*\n", text):
        values = dict(re.findall(r"(?m)^\s+resources_available\.(\w+) = (.*)$", block))
        if cores := _number(values.get("ncpus", "")):
            memory = _memory_mb(values.get("mem", ""))
            shapes[_number(values.get("ngpus", "")) or 0, cores, memory] += 1
    if not shapes:
        return tuple(queues)
    with_gpus = {shape: count for shape, count in shapes.items() if shape[0]} or shapes
    gpus, cores, memory_mb = max(with_gpus, key=lambda shape: with_gpus[shape])
    return tuple(
        replace(queue, cores=cores, gpus=gpus, memory_mb=memory_mb or None) for queue in queues
    )


def _memory_mb(text: str) -> int:
    match = re.fullmatch(r"(\d+)([kmgt]?)b", text.strip().lower())
    if match is None:
        return 0
    scale = {"": 1 / 2**20, "k": 1 / 2**10, "m": 1, "g": 2**10, "t": 2**20}[match[2]]
    return int(int(match[1]) * scale)


# --- the others tell names ---


def read_names(text: str, _known: Iterable[QueueFound] = ()) -> tuple[QueueFound, ...]:
    """One queue's name a line."""
    words = (line.split() for line in text.splitlines() if line.strip())
    return tuple(QueueFound(name=first) for first, *_rest in words)


def _number(text: str) -> int | None:
    match = re.match(r"\d+", text)  # sinfo writes "64+" for nodes that differ
    return int(match[0]) if match else None


_Reader = Callable[[str, Iterable[QueueFound]], tuple[QueueFound, ...]]
_COMMANDS: Mapping[str, tuple[tuple[tuple[str, ...], _Reader], ...]] = {
    "slurm": ((_SINFO, read_sinfo),),
    "pbs": ((("qstat", "-Q", "-f"), read_qstat_queues), (("pbsnodes", "-a"), read_pbsnodes)),
    "gridengine": ((("qconf", "-sql"), read_names),),
    "lsf": ((("bqueues", "-o", "queue_name", "-noheader"), read_names),),
}
