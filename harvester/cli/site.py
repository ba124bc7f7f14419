"""``harvester site``: site files."""

from __future__ import annotations

import os
from pathlib import Path

import click

from harvester.cli.output import json_option, note, print_json, print_text
from harvester.errors import ConfigurationError, Problem


@click.group()
def site() -> None:
    """List, show, check and render site files."""


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
    """Show what the harvester makes of a site file (a name, or a path)."""
    from harvester.config import load_site_file
    from harvester.views.sites import site_json, site_screen

    found = load_site_file(name, os.environ)
    if as_json:
        print_json(site_json(found.site, found.layers))
    else:
        print_text(site_screen(found.site, found.layers))


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
