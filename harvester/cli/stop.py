"""``harvester stop`` and ``harvester start``: the STOP file in a site's spool."""

from __future__ import annotations

import getpass
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harvester.cli.options import site_option
from harvester.cli.output import print_text
from harvester.errors import NotFound

if TYPE_CHECKING:
    from payload_runner.files import Files


@click.command()
@site_option
@click.option("--reason", default="", metavar="TEXT", help="Why; it is kept in the STOP file.")
def stop(site: str, reason: str) -> None:
    """Drain a site: running payloads checkpoint and end, nothing new is submitted or started.

    Works from any host that sees the spool, whether or not a daemon is alive.
    """
    files, path = _stop_file(site)
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    text = f"{when} {getpass.getuser()}@{os.uname().nodename} {reason}\n"
    try:
        files.create_exclusive(path, text.encode(errors="backslashreplace"))
    except FileExistsError:
        print_text(f"{path} is there already: the site is draining or drained.")
        return
    print_text(f"Made {path}: the site drains. `harvester start --site {site}` takes it back.")


@click.command()
@site_option
def start(site: str) -> None:
    """Take back `stop`: remove the STOP file from the site's spool."""
    files, path = _stop_file(site)
    if not files.exists(path):
        print_text("There is no STOP file: nothing to take back.")
        return
    files.remove(path)
    print_text(f"Removed {path}; a running daemon goes on at its next look.")


def _stop_file(name: str) -> tuple[Files, Path]:
    from harvester.config import load_site
    from harvester.wiring import make_files
    from payload_runner.protocol import SpoolPaths

    site = load_site(name, os.environ)
    files, spool = make_files(site), SpoolPaths(site.spool)
    if not files.exists(spool.root):
        raise NotFound(
            f"there is no spool {spool.root} yet; `harvester run --site {name}` makes it"
        )
    return files, spool.stop
