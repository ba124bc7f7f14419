"""``harvester stop`` and ``harvester start``: the STOP file in a site's spool."""

from __future__ import annotations

import getpass
import os
import time
from pathlib import Path

import click

from harvester.cli.options import site_option
from harvester.cli.output import print_text
from harvester.errors import NotFound


@click.command()
@site_option
@click.option("--reason", default="", metavar="TEXT", help="Why; it is kept in the STOP file.")
def stop(site: str, reason: str) -> None:
    """Drain a site: running payloads checkpoint and end, nothing new is submitted or started.

    Works from any host that sees the spool, whether or not a daemon is alive.
    """
    path = _stop_file(site)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        print_text(f"{path} is there already: the site is draining or drained.")
        return
    with os.fdopen(descriptor, "w") as file:
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        file.write(f"{when} {getpass.getuser()}@{os.uname().nodename} {reason}\n")
    print_text(f"Made {path}: the site drains. `harvester start --site {site}` takes it back.")


@click.command()
@site_option
def start(site: str) -> None:
    """Take back `stop`: remove the STOP file from the site's spool."""
    path = _stop_file(site)
    try:
        path.unlink()
    except FileNotFoundError:
        print_text("There is no STOP file: nothing to take back.")
        return
    print_text(f"Removed {path}; a running daemon goes on at its next look.")


def _stop_file(name: str) -> Path:
    from harvester.config import load_site
    from payload_runner.protocol import SpoolPaths

    spool = SpoolPaths(load_site(name, os.environ).spool)
    if not spool.root.is_dir():
        raise NotFound(
            f"there is no spool {spool.root} yet; `harvester run --site {name}` makes it"
        )
    return spool.stop
