"""``harvester image``: container images at a site."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import click

from harvester.cli.options import site_option, wrong_argument
from harvester.cli.output import json_option, note, print_json, print_text

_FORCE = click.option("--force", is_flag=True, help="Replace an image of that name.")


@click.group()
def image() -> None:
    """Bring container images to a site, and list them."""


@image.command()
@click.argument("name", metavar="IMAGE")
@_FORCE
@site_option
def pull(name: str, force: bool, site: str) -> None:
    """Fetch an image such as docker://org/torch:2.1, for the runtime that the site file names.

    Runs on this machine, which needs a way to the registry. Where there is none: `image import`.
    """
    _told(name, _shelf(site).pull(_checked(name), replace=force))


@image.command("import")
@click.argument("source", metavar="FILE", type=click.Path(exists=True, path_type=Path))
@click.option("--name", metavar="IMAGE", required=True, help="As tasks call it: docker://...")
@_FORCE
@site_option
def import_image(source: Path, name: str, force: bool, site: str) -> None:
    """Bring an image from a file: a docker or OCI archive, a SIF, or a root file system.

    FILE may be what `docker save`, `podman save` or `skopeo copy` wrote, a tar file of a root file
    system, or a directory with one.
    """
    _told(name, _shelf(site).import_file(source.absolute(), _checked(name), replace=force))


@image.command("list")
@site_option
@json_option
def list_images(site: str, as_json: bool) -> None:
    """List the images that a site has."""
    from harvester.views.text import clean_lines, columns, local_time

    shelf = _shelf(site)
    found = shelf.listed()
    if as_json:
        images = [dataclasses.asdict(item) for item in found]
        print_json({"images": images, "runtime_says": shelf.native_listing()})
        return
    rows = [
        (item.image, f"{item.place}{' (MISSING)' * item.missing}", local_time(item.brought))
        for item in found
    ]
    if rows:
        print_text(columns(("image", "place", "brought"), rows))
    own = shelf.native_listing()
    if own:
        print_text(clean_lines(own.rstrip("\n")))
    elif not rows:
        print_text("No images.")


def _shelf(site: str) -> Any:
    # Any: the class comes with a late import.
    from harvester.config import load_site
    from harvester.images.shelf import Shelf, run_visibly

    return Shelf(load_site(site, os.environ), os.uname().machine, run_visibly, os.environ)


def _checked(name: str) -> str:
    from payload_runner.images import plain_name

    if not plain_name(name) or name.startswith(("-", "/")) or any(map(str.isspace, name)):
        raise wrong_argument("IMAGE", name, "expected an image such as docker://org/torch:2.1")
    return name


def _told(name: str, place: str) -> None:
    note(f"{name} is at this site now")
    print_text(place)
