"""``harvester service``: has a service manager or cron keep a site's daemon running."""

from __future__ import annotations

import getpass
import os
import pwd
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harvester.cli.options import site_option, wrong_argument
from harvester.cli.output import note, print_text

if TYPE_CHECKING:
    from harvester.service.facts import Service

KINDS = {
    "user": "A unit for your own systemd.",
    "system": "A unit for the machine's systemd; needs root.",
    "cron": "An entry in your crontab: one round every 5 minutes.",
    "scrontab": "An entry in Slurm's scrontab, where login nodes allow no daemons.",
}


@click.group()
def service() -> None:
    """Keep a site's daemon running."""


def _kinds(function: click.decorators.FC) -> click.decorators.FC:
    for kind, text in reversed(KINDS.items()):
        function = click.option(f"--{kind}", is_flag=True, help=text)(function)
    return function


@service.command()
@site_option
@_kinds
@click.option("--run-as", metavar="USER", help="With --system: whose daemon it is.")
@click.option("--print", "only_print", is_flag=True, help="Write nothing, show what would be.")
def install(site: str, run_as: str | None, only_print: bool, **kinds: bool) -> None:
    """Write the unit file or crontab entry for a site, or print it.

    Nothing is started: the last lines say how. The environment that the site and the batch system's
    commands need now is written into it; install again when that changes.
    """
    from harvester.service.crontab import Table
    from harvester.service.install import crontab_installation, unit_installation
    from harvester.service.systemd import Manager

    kind = _only_kind([name for name, is_given in kinds.items() if is_given])
    if run_as is not None and kind != "system":
        raise wrong_argument("--run-as", run_as, "expected only together with --system")
    facts = _service(site, _user(kind, run_as, only_print), own=kind != "system")
    if kind in ("user", "system"):
        installation = unit_installation(facts, Manager(kind), os.environ)
    else:
        installation = crontab_installation(facts, Table("crontab" if kind == "cron" else kind))
    if only_print:
        print_text(installation.shown().rstrip("\n"))
    else:
        for line in installation.write():
            print_text(line)
    for line in installation.hints():
        note(line)


def _only_kind(given: list[str]) -> str:
    if len(given) == 1:
        return given[0]
    options = ", ".join(f"--{name}" for name in KINDS)
    found = " ".join(f"--{name}" for name in given) or "nothing"
    raise wrong_argument("--user", found, f"expected one of {options}")


def _user(kind: str, run_as: str | None, only_print: bool) -> str:
    if kind != "system":
        return getpass.getuser()
    user = run_as or os.environ.get("SUDO_USER") or getpass.getuser()
    if user == "root" and not only_print:
        raise wrong_argument("--run-as", user, "expected the ordinary user whose daemon it is")
    try:
        pwd.getpwnam(user)
    except KeyError:
        raise wrong_argument("--run-as", user, "expected a user of this machine") from None
    return user


def _service(name: str, user: str, *, own: bool) -> Service:
    from harvester.config import load_site_file
    from harvester.service.facts import Service, environment_of, harvester_command

    environ = os.environ if own or user == getpass.getuser() else _environ_of(user)
    first = load_site_file(name, environ).layers[0]
    named = str(first) if _is_found_from_here(name, first) else name
    # A service begins in another directory: what is found from this one alone, it will miss.
    os.chdir("/")
    found = load_site_file(named, environ)
    return Service(
        site=found.site,
        named=named,
        harvester=harvester_command(),
        user=user,
        environment=environment_of(environ, found.environment),
    )


def _is_found_from_here(name: str, file: Path) -> bool:
    return "/" in name or name.endswith((".yaml", ".yml")) or file.parent == Path.cwd()


def _environ_of(user: str) -> Mapping[str, str]:
    """Our environment as another user would have it: their home, and no directories of ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    return {**kept, "HOME": pwd.getpwnam(user).pw_dir}
