"""``harvester site``: site files."""

from __future__ import annotations

import os
from pathlib import Path

import click

from harvester.cli.connect import connect
from harvester.cli.options import seconds_of
from harvester.cli.output import json_option, note, print_json, print_text
from harvester.cli.probe import probe
from harvester.cli.site_init import init
from harvester.errors import ConfigurationError, Problem


@click.group()
def site() -> None:
    """List, show, check and render site files."""


site.add_command(connect)


site.add_command(probe)


site.add_command(init)


@site.command("list")
@json_option
def list_sites(as_json: bool) -> None:
    """List the sites that can be found, and the file that wins for each."""
    from harvester.config import list_sites as find_sites
    from harvester.views.text import columns

    found = find_sites(os.environ)
    if as_json:
        print_json({"sites": [{"name": name, "file": str(path)} for name, path in found]})
    else:
        print_text(columns(("site", "file"), found))


@site.command()
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show what the harvester makes of a site file (a name, or a path), and the values' sources."""
    from harvester.config import load_site_file
    from harvester.views.sites import site_json, site_screen

    found = load_site_file(name, os.environ)
    if as_json:
        print_json(site_json(found))
    else:
        print_text(site_screen(found))


@site.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@json_option
def validate(names: tuple[str, ...], as_json: bool) -> None:
    """Check site files; report every problem with file, line, key and what was expected."""
    from harvester.config import load_site

    problems: list[Problem] = []
    for name in names:
        try:
            load_site(name, os.environ)
            note(f"{name}: good")
        except ConfigurationError as error:
            problems += error.problems
    if as_json:
        keys = ("file", "line", "key", "value", "expected")
        found = [{key: getattr(item, key) for key in keys} for item in problems]
        print_json({"valid": not problems, "problems": found})
    if problems:
        raise ConfigurationError(problems)


@site.command()
def schema() -> None:
    """Print the JSON Schema of site files, for editors."""
    path = Path(__file__).parent.parent / "schemas" / "site.schema.json"
    print_text(path.read_text().rstrip("\n"))


@site.command()
@click.argument("name")
@click.option("--nodes", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--walltime", metavar="TIME", help='Such as "02:00:00" or 90m.  [default: the most]')
@click.option("--queue", metavar="QUEUE", help="[default: the first that takes this shape]")
@json_option
def render(name: str, nodes: int, walltime: str | None, queue: str | None, as_json: bool) -> None:
    """Show the exact batch script and submit command for an allocation of a shape."""
    import shlex

    from harvester.config import load_site
    from harvester.jobs import choose_queue
    from harvester.wiring import render_job

    loaded = load_site(name, os.environ)
    chosen, walltime_s = choose_queue(loaded, nodes, seconds_of(walltime), queue)
    script, command = render_job(loaded, nodes, walltime_s, chosen)
    if as_json:
        shown = {"queue": chosen, "walltime_s": walltime_s, "submit": command, "script": script}
        print_json(shown)
        return
    if command:
        note(f"submitted with: {shlex.join(command)}")
    print_text(script.rstrip("\n"))
