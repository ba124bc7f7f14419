"""Renders cron and scrontab entries for a site's daemon, and merges them into a table. Pure.

The entry calls a small script that sets the environment, for a crontab has room neither for long
lines nor for most of what a batch system's commands need.
"""

from __future__ import annotations

import re
import shlex
import zlib
from enum import Enum

from harvester.service.facts import Service

EVERY_MINUTES = 5


class Table(Enum):
    """Whose table of times it is."""

    CRON = "crontab"  #: of this login node
    SCRON = "scrontab"  #: of Slurm, which runs the entry as a small job


def render_script(service: Service) -> str:
    """The script that an entry calls: one round under the environment of the installation."""
    exports = [f"export {name}={shlex.quote(value)}" for name, value in service.environment.items()]
    return "\n".join(
        [
            "#!/bin/sh",
            f"# One round of the harvester for {service.site.name}.",
            "# To be installed again when modules, paths or the central service change.",
            *exports,
            "umask 077",
            f"exec nice {shlex.join(service.command)} --once",
            "",
        ]
    )


def render_entry(service: Service, script: str, log: str, table: Table) -> str:
    """The entry's lines, without those that mark it."""
    minute = zlib.crc32(f"{service.user}@{service.site.name}".encode()) % EVERY_MINUTES
    # Not everybody's at the same minute: login nodes know that peak well.
    when = f"{minute}-59/{EVERY_MINUTES} * * * *"
    call = f"{_cron_word(script)} >{_cron_word(log)} 2>&1"
    if table is Table.CRON:
        return f"{when} {call}\n"
    options = [
        *([f"--account={service.site.account}"] if service.site.account else []),
        "--time=00:10:00",
        f"--job-name=harvester-{service.site.name}",
        # Slurm would otherwise write a file in the home directory each time.
        f"--output={log.replace('%', '%%')}",  # %j and the like are patterns there
        "--open-mode=truncate",
    ]
    # Which partition or QOS may run such jobs is the centre's word: NERSC has `-q cron`.
    lines = [f"#SCRON {shlex.quote(option)}\n" for option in options]
    return "".join(lines) + f"{when} {_cron_word(script)}\n"


def merge(table: str, site: str, entry: str) -> str:
    """The table with this site's entry in place of the one that an earlier installation wrote."""
    begin, end = f"# begin harvester {site}", f"# end harvester {site}"
    # A beginning whose end somebody removed swallows nothing: what follows may be theirs.
    ours = rf"^{re.escape(begin)}\n(?:(?!{re.escape(begin)}$).*\n)*?{re.escape(end)}(?:\n|\Z)"
    kept = re.sub(ours, "", table, flags=re.MULTILINE).splitlines()
    return "\n".join([*kept, begin, *entry.splitlines(), end]) + "\n"


def _cron_word(word: str) -> str:
    # cron ends a command at the first bare percent sign, quoted or not.
    return shlex.quote(word).replace("%", r"\%")
