"""A user's own allocation that joins a spool as capacity: ``payload-runner join SPOOL``.

Whoever drives the spool leaves ``join.json``: all that a runner at this site is to know, but for
what only the allocation itself can tell. With that this module writes an allocation's directory
under a tag of its own, and last the marker ``joined`` by which the driver finds it. From then on it
is led like any other; only nobody but its user ever cancels its job.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Mapping, Optional

from payload_runner.files import Files
from payload_runner.incarnation import Job
from payload_runner.protocol import AllocationPlan, Joined, SpoolPaths, dump_json, load_json

# The driver looks for newcomers once a minute; until then there is nothing to do.
JOIN_IDLE_S = 240.0
_LIMIT = 1024 * 1024
_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"
_TAG_LETTERS = 6
_CLOCK = re.compile(r"(?:(\d+)-)?(\d+):(\d\d)(?::(\d\d))?")
_UNITS = {"m": 60.0, "s": 1.0, "h": 3600.0}
_COUNT_VARIABLES = ("SLURM_JOB_NUM_NODES", "NHOSTS")
_END_VARIABLE = "SLURM_JOB_END_TIME"  # seconds since the epoch


class CannotJoin(ValueError):
    """Something that the allocation has to tell is missing or makes no sense."""


@dataclass(frozen=True)
class Given:
    """What the user said; None: as the batch system's environment says."""

    nodes: Optional[int] = None
    walltime: Optional[str] = None


def enlist(
    files: Files,
    spool: SpoolPaths,
    job: Job,
    given: Given,
    environ: Mapping[str, str],
    now: float,
    host: str,
) -> str:
    """Write the directory of a new allocation, visible to the driver; its tag.

    Raises:
        CannotJoin: nobody says how long it lasts, or nobody has driven the spool.
        BadRecord: what the driver left is damaged.
        OSError: the spool cannot be read or written.
    """
    template = _template(files, spool)
    nodes = nodes_of(environ) if given.nodes is None else given.nodes
    walltime_s = _left_s(given, environ, now)
    tag = _new_tag(template.spool_id)
    paths = spool.allocation(tag)
    plan = replace(
        template,
        tag=tag,
        nodes=nodes,
        walltime_s=walltime_s,
        idle_exit_s=max(template.idle_exit_s, JOIN_IDLE_S),
    )
    files.make_dir(paths.root)
    files.replace(paths.plan, dump_json(plan))
    marker = Joined(job_id=job.job_id, nodes=nodes, walltime_s=walltime_s, host=host)
    files.replace(paths.joined, dump_json(marker))
    return tag


def nodes_of(environ: Mapping[str, str]) -> int:
    """How many nodes the job has; 1 where nothing says."""
    for name in _COUNT_VARIABLES:
        if environ.get(name, "").isdigit():
            return max(1, int(environ[name]))
    listed = environ.get("PBS_NODEFILE")
    return len(set(Path(listed).read_text().split())) if listed else 1


def parse_walltime_s(text: str) -> float:
    """Seconds of ``[D-]HH:MM[:SS]``, or of a number with ``s``, ``m`` or ``h``.

    Raises:
        CannotJoin: it is none of these, or not above zero.
    """
    clock, plain = _CLOCK.fullmatch(text), re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    seconds = 0.0
    if clock:
        days, hours, minutes, rest = (int(part or 0) for part in clock.groups())
        seconds = float(((days * 24 + hours) * 60 + minutes) * 60 + rest)
    elif plain:
        seconds = float(plain[1]) * _UNITS[plain[2]]
    if seconds <= 0:
        raise CannotJoin(
            f"--walltime: got {text!r:.40}; expected the time left, such as 01:30:00 or 90m"
        )
    return seconds


def _left_s(given: Given, environ: Mapping[str, str], now: float) -> float:
    if given.walltime is not None:
        return parse_walltime_s(given.walltime)
    end = environ.get(_END_VARIABLE, "")
    if end.isdigit() and int(end) > now:
        return int(end) - now
    raise CannotJoin(
        "nothing in the environment says how long this job lasts; give --walltime, the time left"
    )


def _template(files: Files, spool: SpoolPaths) -> AllocationPlan:
    try:
        return load_json(files.read(spool.join, 0, _LIMIT), AllocationPlan)
    except FileNotFoundError:
        raise CannotJoin(
            f"{spool.join} is not there: name the spool of a site, and run "
            "`harvester alloc wrap --site SITE` or the daemon once, which write it"
        ) from None


def _new_tag(spool_id: str) -> str:
    letters = "".join(secrets.choice(_BASE32) for _ in range(_TAG_LETTERS))
    return f"h{spool_id[:5]}-{letters}"
