"""``harvester bundle``: a site that only files carried by hand reach."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harvester.cli.options import FILE, central_options
from harvester.cli.output import json_option, print_json, print_text
from harvester.errors import ConfigurationError, Problem

if TYPE_CHECKING:
    from harvester.site import Site
    from harvester.wiring import CentralOverrides


@click.group()
def bundle() -> None:
    """Carry points to a site that nothing else reaches, and results back.

    On the site itself its file says `central: {kind: bundles}`, and `harvester run` drives it as
    ever. On the other side, which reaches the central service, it does not.
    """


@bundle.command("export")
@click.argument("name")
@click.option("--to", "target", type=FILE, required=True, metavar="FILE", help="What to write.")
@click.option(
    "--points",
    type=click.IntRange(min=0, max=10_000),
    default=100,
    show_default=True,
    help="Points to lease besides those that are on the site; nothing on the site itself.",
)
@central_options
@json_option
def export_bundle(
    name: str,
    target: Path,
    points: int,
    central: str | None,
    token_file: Path | None,
    as_json: bool,
) -> None:
    """Write what is to be carried to the other side: points to the site, or results from it.

    Points without a final result and results that the other side is not known to have are in
    every bundle again: a file that was lost on its way costs nothing but time.
    """
    site = _site(name)
    if _is_offline(site):
        from harvester.bundles.archive import new_id
        from harvester.bundles.offline import export_results

        attempts = export_results(site.bundles, site.name, new_id(), target, time.time())
        told = {"kind": "results", "attempts": attempts}
        text = f"Wrote the results of {attempts} attempts to {target}."
    else:
        from harvester.wiring import connected_side

        with connected_side(site, _overrides(central, token_file)) as side:
            done = side.export(points, target, time.time())
        told = {"kind": "points", "fresh": done.fresh, "outstanding": done.outstanding}
        text = f"Wrote {done.outstanding} points to {target}, {done.fresh} of them leased now."
    if as_json:
        print_json({"file": str(target), "site": site.name, **told})
    else:
        print_text(f"{text}\nOn the other side: harvester bundle import {site.name} FILE")


@bundle.command("import")
@click.argument("name")
@click.argument("file", type=FILE)
@central_options
@json_option
def import_bundle(
    name: str, file: Path, central: str | None, token_file: Path | None, as_json: bool
) -> None:
    """Take in what was carried here: points on the site, results on the other side.

    Checked whole before anything of it counts. Twice, or out of order, it does no harm.
    """
    from harvester.bundles.archive import Bundle

    site = _site(name)
    with Bundle(file) as opened:
        if _is_offline(site):
            from harvester.bundles.offline import import_points

            points = import_points(opened, site.bundles, site.name)
            told = {"kind": "points", "points": points}
            text = f"Took in {points} points; a running daemon evaluates those that are new."
        else:
            from harvester.wiring import connected_side

            with connected_side(site, _overrides(central, token_file)) as side:
                done = side.take(opened)
            told = {"kind": "results", "told": done.told, "known": done.known}
            told |= {"refused": done.refused, "outstanding": done.outstanding}
            text = (
                f"Told the service of {done.told} attempts ({done.known} were known already, "
                f"{done.refused} refused); {done.outstanding} points are outstanding."
            )
    if as_json:
        print_json({"file": str(file), "site": site.name, **told})
    else:
        print_text(text)


@bundle.command()
@click.argument("name")
@central_options
@json_option
def renew(name: str, central: str | None, token_file: Path | None, as_json: bool) -> None:
    """Prolong the leases of the points on the site; for cron, every half hour.

    Without it a point may be given to another harvester an hour after the last bundle; whichever
    result comes first counts.
    """
    from harvester.wiring import connected_side

    site = _site(name)
    if _is_offline(site):
        expected = "expected the side that reaches the service; this one holds no leases of its own"
        raise ConfigurationError(Problem(f"site {site.name}", "central.kind", "bundles", expected))
    with connected_side(site, _overrides(central, token_file)) as side:
        outstanding = side.renew()
    if as_json:
        print_json({"site": site.name, "outstanding": outstanding})
    else:
        print_text(f"Prolonged the leases of {outstanding} points.")


def _site(name: str) -> Site:
    from harvester.config import load_site

    return load_site(name, os.environ)


def _is_offline(site: Site) -> bool:
    return site.central.kind == "bundles"


def _overrides(central: str | None, token_file: Path | None) -> CentralOverrides:
    from harvester.wiring import CentralOverrides

    return CentralOverrides(url=central, token_file=token_file)
