"""``harvester status``: the one screen that says what is wrong."""

from __future__ import annotations

import os

import click

from harvester import paths
from harvester.cli.output import json_option, print_json, print_text
from harvester.views.site_states import find_states, state_of
from harvester.views.status import state_json, status_screen


@click.command()
@click.option("--site", metavar="NAME", help="Only this site.  [default: all with state]")
@json_option
def status(site: str | None, as_json: bool) -> None:
    """Show what runs, what is wrong since when, and what to do.

    Reads the status that each daemon publishes in its spool; says so when that is old.
    """
    states = find_states(os.environ) if site is None else (state_of(site, os.environ),)
    if as_json:
        print_json({"sites": [state_json(state) for state in states]})
    elif states:
        print_text("\n\n".join(status_screen(state) for state in states))
    else:
        _say_nothing_runs()


def _say_nothing_runs() -> None:
    print_text(
        f"No site has state under {paths.site_states(os.environ)} yet.\n"
        "Start the central service with `harvester central serve`, submit a search with\n"
        "`harvester task submit --loadJson FILE`, and drive a site with `harvester run`."
    )
