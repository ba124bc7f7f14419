"""Puts units and crontab entries where they belong, and says what a person has to do then."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from harvester import paths
from harvester.errors import NotFound, StorageUnavailable, Unavailable
from harvester.service.crontab import Table, merge, render_entry, render_script
from harvester.service.facts import Service
from harvester.service.systemd import Manager, render_unit, unit_name

SYSTEM_UNITS = Path("/etc/systemd/system")
LINGER = Path("/var/lib/systemd/linger")
_BOOTED = Path("/run/systemd/system")  # sd_booted(3)
_COMMAND_LIMIT_S = 30.0


class Installation(Protocol):
    """What is to be written."""

    def shown(self) -> str:
        """The text, for people."""

    def write(self) -> list[str]:
        """Write it; sentences that say what was done. Repeating is safe."""

    def hints(self) -> list[str]:
        """What remains to be done by a person."""


@dataclass(frozen=True, slots=True)
class _Unit:
    service: Service
    manager: Manager
    path: Path

    def shown(self) -> str:
        return f"# {self.path}\n{render_unit(self.service, self.manager)}"

    def write(self) -> list[str]:
        _write(self.path, render_unit(self.service, self.manager), 0o644)
        return [f"Wrote {self.path}."]

    def hints(self) -> list[str]:
        control = "systemctl --user" if self.manager is Manager.USER else "systemctl"
        name = self.path.name
        return [
            *self._cautions(),
            f"start it:  {control} daemon-reload && {control} enable --now {name}",
            f"reload:    {control} reload {name}",
            f"remove it: {control} disable --now {name} && rm {self.path}",
        ]

    def _cautions(self) -> list[str]:
        found = []
        if not _BOOTED.is_dir():
            found.append("this machine does not run systemd: use --cron here")
        if self.manager is Manager.USER and not (LINGER / self.service.user).exists():
            found.append(
                "your services end when you log out; have them stay with: "
                "loginctl enable-linger (where the centre refuses that, use --cron)"
            )
        return found


@dataclass(frozen=True, slots=True)
class _Entry:
    service: Service
    table: Table
    script: Path
    log: Path

    def shown(self) -> str:
        script = render_script(self.service)
        return f"# {self.script}\n{script}\n# {self.table.value}\n{self._merged('')}"

    def write(self) -> list[str]:
        command = shutil.which(self.table.value)
        if command is None:
            raise NotFound(
                f"there is no {self.table.value} command here; see the entry with --print"
            )
        _write(self.script, render_script(self.service), 0o700)
        _call((command, "-"), self._merged(_listed(command)))
        return [f"Wrote {self.script}.", f"Entered it into your {self.table.value}."]

    def hints(self) -> list[str]:
        remove = f"{self.table.value} -e, and take out the lines of harvester {self._name}"
        where = ["it runs on this login node only; so put it into the table of one node alone"]
        return [
            *(where if self.table is Table.CRON else []),
            f"the last round's words: {self.log}",
            f"remove it: {remove}",
        ]

    @property
    def _name(self) -> str:
        return self.service.site.name

    def _merged(self, table: str) -> str:
        entry = render_entry(self.service, str(self.script), str(self.log), self.table)
        return merge(table, self._name, entry)


def unit_installation(
    service: Service, manager: Manager, environ: Mapping[str, str]
) -> Installation:
    """The unit of a site's daemon."""
    if manager is Manager.SYSTEM:
        return _Unit(service, manager, SYSTEM_UNITS / unit_name(service.site.name))
    # Not our own directory of configuration, but systemd's.
    units = paths.config_home(environ).parent / "systemd" / "user"
    return _Unit(service, manager, units / unit_name(service.site.name))


def crontab_installation(service: Service, table: Table) -> Installation:
    """The crontab entry of a site's daemon, and the script that it calls."""
    state = service.site.state_dir
    return _Entry(service, table, state / f"{table.value}.sh", state / f"{table.value}.log")


def _write(path: Path, text: str, mode: int) -> None:
    try:
        path.parent.mkdir(mode=0o700 if mode == 0o700 else 0o755, parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}.part")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
        with os.fdopen(descriptor, "w") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text)
        beside.replace(path)
    except OSError as error:
        raise StorageUnavailable(f"cannot write {path}: {error.strerror}") from error


def _listed(command: str) -> str:
    done = _run((command, "-l"), None)
    # "no crontab for user" is how an empty table is told; a table that cannot be read is kept.
    if done.returncode != 0 and "no crontab" not in done.stderr.lower():
        raise Unavailable(_sentence((command, "-l"), done))
    return done.stdout if done.returncode == 0 else ""


def _call(words: tuple[str, ...], text: str) -> None:
    done = _run(words, text)
    if done.returncode != 0:
        raise Unavailable(_sentence(words, done))


def _run(words: tuple[str, ...], text: str | None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            words,
            input=text or "",
            capture_output=True,
            text=True,
            timeout=_COMMAND_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{shlex.join(words)}: {error}") from error


def _sentence(words: tuple[str, ...], done: subprocess.CompletedProcess[str]) -> str:
    said = done.stderr.strip() or "no message"
    return f"{shlex.join(words)} ended with exit code {done.returncode}: {said}"
