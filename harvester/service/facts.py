"""What a unit file or crontab has to say of one site's daemon: command, user, environment, places.

A service manager starts programs with almost no environment. What the site file and the batch
system's commands read from it now is written down when the service is installed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harvester.errors import ConfigurationError, Problem
from harvester.site import Site

# Where each batch system's commands look for their cluster.
_OF_BATCH_SYSTEMS = re.compile(
    r"SLURM_CONF|PBS_(CONF_FILE|EXEC|SERVER)|LSF_(ENVDIR|SERVERDIR|BINDIR|LIBDIR)|FLUX_URI"
    r"|SGE_(ROOT|CELL|CLUSTER_NAME|QMASTER_PORT|EXECD_PORT|ARCH)"
)
_OF_OURS = re.compile(r"XDG_(STATE|CONFIG|CACHE)_HOME|HARVESTER_(CENTRAL|TOKEN_FILE)")
_OF_SYSTEM = re.compile(
    r"PATH|LD_LIBRARY_PATH|KRB5CCNAME|(?i:https?|no)_proxy|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One site's daemon as a service manager is to run it."""

    site: Site
    named: str  # the site as on the command line: a name, or an absolute path
    harvester: tuple[str, ...]  # the words that start the command line
    user: str
    environment: Mapping[str, str]

    @property
    def command(self) -> tuple[str, ...]:
        """The daemon's command line."""
        return (*self.harvester, "run", "--site", self.named)

    @property
    def runs_payloads(self) -> bool:
        """Whether payloads are descendants of the daemon, inside whatever holds it."""
        return self.site.batch_system == "local"


def environment_of(
    environ: Mapping[str, str], asked_for: Mapping[str, str | None]
) -> dict[str, str]:
    """The part of an environment that the daemon needs.

    ``asked_for`` are the variables that reading the site file looked at; HOME comes from the
    service manager.

    Raises:
        ConfigurationError: a value has a line break, which neither unit files nor crontabs carry,
            or a proxy's password, which everybody could read in them.
    """
    kept = {
        name: value
        for name, value in environ.items()
        if any(kind.fullmatch(name) for kind in (_OF_BATCH_SYSTEMS, _OF_OURS, _OF_SYSTEM))
    }
    kept |= {name: value for name, value in asked_for.items() if value and name != "HOME"}
    problems = [problem for item in kept.items() if (problem := _problem(*item))]
    if problems:
        raise ConfigurationError(problems)
    return dict(sorted(kept.items()))


def _problem(name: str, value: str) -> Problem | None:
    if re.search(r"[\x00-\x1f\x7f]", value):
        expected = "expected a value without line breaks; unset it, or install without it"
        return Problem("environment", name, repr(value)[:200], expected)
    if name.lower().endswith("_proxy") and "@" in value:
        expected = "expected no user and password: everybody can read what a unit says"
        return Problem("environment", name, "", expected)
    return None


def harvester_command() -> tuple[str, ...]:
    """The words that start this very installation."""
    script = Path(sys.executable).parent / "harvester"
    return (str(script),) if script.exists() else (sys.executable, "-m", "harvester")
