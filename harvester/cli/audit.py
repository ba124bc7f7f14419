"""``harvester audit``: proves what was delivered of a task back to what runners wrote."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import click

from harvester.cli import exits
from harvester.cli.options import central_options, site_option, task_client
from harvester.cli.output import json_option, print_json, print_text


@click.command()
@click.argument("task_id", metavar="TASK")
@site_option
@click.option("--offline", is_flag=True, help="Do not compare with the central service.")
@central_options
@json_option
def audit(
    task_id: str,
    site: str,
    offline: bool,
    central: str | None,
    token_file: Path | None,
    as_json: bool,
) -> int:
    """Prove each delivered outcome of TASK back to the record it came from.

    Follows every receipt in the ledger to its judgement and from there to the runner's event (file,
    offset, SHA-256), and compares the losses of all of them with the central service's. Reads only,
    also beside a running daemon. Exit code 0: all is proven; 1: something is not.
    """
    import tempfile

    from harvester.audit import audit as audit_task
    from harvester.audit import compare
    from harvester.config import load_site
    from harvester.errors import NotFound
    from harvester.views.audit import audit_json, audit_screen
    from harvester.wiring import make_files

    loaded = load_site(site, os.environ)
    with tempfile.TemporaryDirectory(prefix="harvester-audit-") as scratch:
        report = audit_task(
            make_files(loaded), loaded.spool, loaded.state_dir, task_id, Path(scratch)
        )
    if report is None:
        raise NotFound(
            f"the ledger of site {loaded.name} ({loaded.state_dir}) has no task {task_id}"
        )
    if not offline:
        report = compare(report, task_client(central, token_file).points(task_id))
    shown = dataclasses.asdict(report)
    if as_json:
        print_json(audit_json(shown))
    else:
        print_text(audit_screen(shown))
    return exits.OK if report.is_proven else exits.DIFFERENT
