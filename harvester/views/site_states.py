"""Finds what the daemons of this user have published, and judges how far it can be believed.

Reads ``daemon.json`` of each site's state directory and ``status.json`` of the spool that it names.
Opens no index, asks no scheduler and no service.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from harvester import paths
from harvester.errors import NotFound
from harvester.processes import is_running
from harvester.views.text import instant

POINTER = "site.json"  # in the usual place, whatever state directory the site file names
STALE_AFTER_S = 60.0  # a healthy daemon publishes every 10 s at most, when anything changed
ROUND_EVERY_S = 900.0  # cron runs every 5 minutes; three missed ones are worth a word

Json = Mapping[str, Any]


class Health(Enum):
    """What is known of a site's driver."""

    ALIVE = "alive"
    SILENT = "silent"  #: its process is there, its word is old
    DIED = "died"  #: its process is gone, and it did not say good-bye
    STOPPED = "stopped"  #: it left in order
    UNKNOWN = "unknown"  #: it runs on another host and its word is old
    NEVER = "never"  #: it has published nothing yet
    DAMAGED = "damaged"  #: what it has published is no status

    @property
    def needs_attention(self) -> bool:
        """Whether somebody should look."""
        return self in (Health.SILENT, Health.DIED, Health.UNKNOWN)


class SiteState(NamedTuple):
    """One site's published status and its standing.

    No dataclass: `harvester status` is to start quickly (see ``harvester.errors.Problem``).
    """

    site: str
    state_dir: Path
    spool: Path | None
    status: Json | None
    health: Health
    age_s: float | None = None
    stopping: bool = False  # a STOP file lies in the spool
    damaged: Path | None = None  # what should be its status and is none
    site_file: str = ""  # what `load_site` takes to find this site again

    @property
    def allocations(self) -> tuple[Json, ...]:
        """The allocations that the status lists."""
        return tuple(self.status.get("allocations", ())) if self.status else ()


def find_states(environ: Mapping[str, str]) -> tuple[SiteState, ...]:
    """Every site that has state in the usual place, by name."""
    base = paths.site_states(environ)
    if not base.is_dir():
        return ()
    found = sorted(path for path in base.iterdir() if path.is_dir())
    return tuple(read_state(path.name, path) for path in found if any(path.iterdir()))


def state_of(name: str, environ: Mapping[str, str]) -> SiteState:
    """The state of a site by its name.

    Raises:
        NotFound: nothing was ever run for it.
    """
    for state in find_states(environ):
        if state.site == name:
            return state
    raise NotFound(
        f"no state of a site {name!r} under {paths.site_states(environ)}; "
        f"`harvester run --site {name}` makes it"
    )


def read_state(name: str, state_dir: Path) -> SiteState:
    """The state of the site whose usual state directory is ``state_dir``."""
    # ``harvester run`` leaves the first, the daemon the second, which knows no site file.
    pointer = _json(state_dir / POINTER) or _json(state_dir / "daemon.json") or {}
    home = Path(pointer.get("state_dir", state_dir))
    spool = Path(pointer["spool"]) if isinstance(pointer.get("spool"), str) else None
    beside = None if spool is None else spool / "status.json"
    # Where the spool is on another host, its daemon publishes here, and alone sees STOP there.
    here = home / "status.json"
    file = here if beside is None or not beside.exists() else beside
    status = _status(file)
    draining = file == here and status is not None and status.get("state") == "draining"
    damaged = file if status is None and file.exists() else None
    age_s = None if status is None else _age_s(status)
    return SiteState(
        site=name,
        state_dir=home,
        spool=spool,
        status=status,
        health=Health.DAMAGED if damaged else judge(status, age_s, os.uname().nodename, is_running),
        age_s=age_s,
        damaged=damaged,
        stopping=draining or (spool is not None and (spool / "STOP").exists()),
        site_file=str(pointer.get("site_file", name)),
    )


def leave_pointer(site: str, site_file: str, state_dir: Path, spool: Path, usual: Path) -> None:
    """Note in a site's usual state directory where it lives, for the commands that look."""
    from payload_runner.files import RealFiles

    RealFiles().make_dir(usual)
    known = {
        "site": site,
        "site_file": site_file,
        "state_dir": str(state_dir),
        "spool": str(spool),
    }
    if _json(usual / POINTER) == known:
        return
    temporary = usual / f"{POINTER}.{os.getpid()}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(known, file)
    temporary.replace(usual / POINTER)


def judge(
    status: Json | None, age_s: float | None, host: str, lives: Callable[[int], bool]
) -> Health:
    """What a status of this age says of its writer."""
    if status is None or age_s is None:
        return Health.NEVER
    if status.get("state") == "stopped":
        late = status.get("mode") == "once" and age_s > ROUND_EVERY_S
        return Health.UNKNOWN if late else Health.STOPPED
    fresh = age_s < STALE_AFTER_S
    if status.get("host") != host:
        return Health.ALIVE if fresh else Health.UNKNOWN
    pid = status.get("pid")
    if not isinstance(pid, int) or not lives(pid):
        return Health.DIED
    return Health.ALIVE if fresh else Health.SILENT


def _status(path: Path) -> Json | None:
    """A published status whose shape the views can rely on; None for anything else."""
    found = _json(path)
    if found is None or instant(found.get("updated")) is None:
        return None
    tables = (found.get(name, []) for name in ("problems", "allocations", "tasks", "points"))
    sound = all(isinstance(rows, list) and _all_objects(rows) for rows in tables)
    parts = [found.get(name, {}) for name in ("attempts", "delivery", "budgets")]
    return found if sound and _all_objects(parts) else None


def _all_objects(values: list[Any]) -> bool:
    return all(isinstance(value, dict) for value in values)


def _age_s(status: Json) -> float:
    return max(0.0, time.time() - (instant(status.get("updated")) or 0.0))


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return found if isinstance(found, dict) else None
