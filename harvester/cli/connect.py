"""``harvester site connect``: the connection to a site that is driven from another host."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import click

from harvester.cli.output import json_option, print_json, print_text
from harvester.errors import ConfigurationError, Problem

if TYPE_CHECKING:
    from harvester.remote.link import Link
    from harvester.site import Site


@click.command()
@click.argument("name")
@click.option("--check", is_flag=True, help="Only say whether it is open, and until when.")
@click.option("--renew", is_flag=True, help="Open it anew although it is open.")
@click.option("--close", "closes", is_flag=True, help="Close it, and all that goes over it.")
@json_option
def connect(name: str, check: bool, renew: bool, closes: bool, as_json: bool) -> None:
    """Open the ssh connection over which a site on another host is driven.

    ssh asks on this terminal for what it needs: password, code, host key. The connection stays
    open when the command has come back; the daemon and every other command use it and never ask.
    Exit code 75: it is not open.
    """
    from harvester.config import load_site
    from harvester.wiring import make_link

    if check + renew + closes > 1:
        raise click.UsageError("--check, --renew and --close exclude each other")
    site = load_site(name, os.environ)
    link = make_link(site)
    if link is None:
        expected = "expected the login node to connect to; this site's spool is on this host"
        raise ConfigurationError(Problem(f"site {site.name}", "remote.host", "", expected))
    if closes:
        was_open = link.close()
        _say(site, "closed" if was_open else "was not open", None, as_json=as_json)
        return
    if not check and (renew or not link.is_open()):
        link.open(by_person=True)
    _require_open(link, name)
    if not check:
        _try(site)
    _say(site, "open", link, as_json=as_json)


def _require_open(link: Link, name: str) -> None:
    from harvester.remote.link import NoConnection

    if not link.is_open():
        raise NoConnection(
            f"the connection to {link.remote.host} is not open; run: harvester site connect {name}"
        )


def _try(site: Site) -> None:
    """Have the login node answer once, so that what is wrong there is said now."""
    from harvester.errors import StorageUnavailable
    from harvester.wiring import make_files

    try:
        make_files(site).exists(site.spool)
    except OSError as error:
        reason = f"{site.remote and site.remote.host} cannot serve the spool: {error.strerror}"
        raise StorageUnavailable(reason) from error


def _say(site: Site, state: str, link: Link | None, *, as_json: bool) -> None:
    from harvester.quantities import format_instant

    assert site.remote is not None
    opened = None if link is None else link.opened()
    since = None if opened is None else format_instant(opened.at)
    until = None if opened is None or opened.until is None else format_instant(opened.until)
    if as_json:
        found = {"site": site.name, "host": site.remote.host, "state": state}
        print_json({**found, "since": since, "until": until})
        return
    warning = opened and opened.warning(time.time(), site.remote.warn_before_s)
    times = f" since {since}" if since else ""
    times += f"; it {warning}" if warning else f", until {until}" if until else ""
    print_text(f"The connection to {site.remote.host} {_verb(state)}{times}.")


def _verb(state: str) -> str:
    return state if state.startswith("was") else f"is {state}"
