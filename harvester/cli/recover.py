"""``harvester recover``: rebuilds a site's index from its logs."""

from __future__ import annotations

import os

import click

from harvester.cli.options import refuse_second, site_option
from harvester.cli.output import json_option, print_json, print_text


@click.command()
@site_option
@json_option
@click.pass_context
def recover(context: click.Context, site: str, as_json: bool) -> None:
    """Rebuild the index of a site from state directory and spool.

    A daemon does this by itself when its index is missing, corrupt or behind. Refuses while one
    drives the site, naming it.
    """
    from harvester.cli.logs import set_up_logs
    from harvester.config import load_site
    from harvester.errors import NotFound
    from harvester.wiring import make_files, rebuild_index
    from payload_runner.protocol import SpoolPaths

    set_up_logs(context.obj.verbose, os.environ)
    loaded = load_site(site, os.environ)
    if not make_files(loaded).exists(SpoolPaths(loaded.spool).identity):
        raise NotFound(f"there is no spool {loaded.spool} to recover from")
    refuse_second(loaded)
    counts = rebuild_index(loaded)
    if as_json:
        print_json({"site": loaded.name, "index": str(loaded.index), "attempts": counts})
    else:
        found = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
        print_text(f"Rebuilt {loaded.index}: {found or 'no attempts'}.")
