"""Where things lie on the login node: the XDG directories and the names below them.

Knows no site and opens no file. Paths under a spool belong to ``payload_runner.protocol``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

APPLICATION = "harvester"
SYSTEM_CONFIGURATION = Path("/etc") / APPLICATION
POLICY = SYSTEM_CONFIGURATION / "policy.yaml"
SHIPPED_SITES = Path(__file__).resolve().parent.parent / "site_configs"

Environment = Mapping[str, str]


def home(environ: Environment) -> Path:
    """The user's home directory: ``$HOME``, else what the password database says."""
    return Path(environ.get("HOME") or os.path.expanduser("~"))


def state_home(environ: Environment) -> Path:
    """``$XDG_STATE_HOME/harvester``: what must outlive scratch."""
    return _xdg(environ, "XDG_STATE_HOME", ".local/state")


def config_home(environ: Environment) -> Path:
    """``$XDG_CONFIG_HOME/harvester``: the user's own site files."""
    return _xdg(environ, "XDG_CONFIG_HOME", ".config")


def cache_home(environ: Environment) -> Path:
    """``$XDG_CACHE_HOME/harvester``: compiled site files, safe to delete."""
    return _xdg(environ, "XDG_CACHE_HOME", ".cache")


def site_directories(environ: Environment) -> tuple[Path, ...]:
    """Where site files are looked for, the first hit counts."""
    return (
        Path.cwd(),
        config_home(environ) / "sites",
        SYSTEM_CONFIGURATION / "sites",
        SHIPPED_SITES,
    )


def site_states(environ: Environment) -> Path:
    """The directory that holds one state directory (or its pointer) per site."""
    return state_home(environ) / "sites"


def default_index(state_dir: Path, name: str, *, local: bool, uid: int) -> Path:
    """Where a site's index lies unless its file says so: never on a shared file system."""
    if local:
        return state_dir / "index.sqlite"
    import hashlib

    digest = hashlib.sha256(str(state_dir).encode()).hexdigest()[:8]
    # 0700, and refused where somebody else was there first.
    return Path(f"/var/tmp/{APPLICATION}-{uid}") / f"{name}-{digest}.sqlite"  # nosec B108


def _xdg(environ: Environment, variable: str, fallback: str) -> Path:
    # The XDG specification has relative values ignored.
    value = environ.get(variable, "")
    base = Path(value) if value.startswith("/") else home(environ) / fallback
    return base / APPLICATION
