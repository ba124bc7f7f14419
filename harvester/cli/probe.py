"""``harvester site probe``: measures on the nodes what a site file claims."""

from __future__ import annotations

import dataclasses
import os
import shlex
import time
from typing import TYPE_CHECKING

import click

from harvester.cli import exits
from harvester.cli.output import json_option, note, print_json, print_text

if TYPE_CHECKING:
    from harvester.probe.job import Probe
    from harvester.site import Site
    from payload_runner.files import Files

_RUNS_S = 60.0


@click.command()
@click.argument("name")
@click.option("--nodes", type=click.IntRange(min=1), help="[default: 2, or 1 where no queue has 2]")
@click.option("--queue", metavar="QUEUE", help="[default: the first that takes this shape]")
@click.option(
    "--wait",
    "wait_minutes",
    type=click.FloatRange(min=0.1),
    default=30.0,
    show_default=True,
    metavar="MINUTES",
    help="How long to wait for the job; then it is cancelled.",
)
@click.option("--dry-run", is_flag=True, help="Show the job, submit nothing.")
@json_option
def probe(
    name: str,
    nodes: int | None,
    queue: str | None,
    wait_minutes: float,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Measure what a site file claims with a job of one minute, and propose corrections.

    On each node the job looks at Python, cores, memory, GPUs and their order, disks, container
    runtimes and routes; it calls the launcher twice at a time, and measures how long login and
    compute nodes take to see each other's files. Exit code 1: something is to be corrected.
    """
    chosen = _chosen(name, nodes, queue)
    if dry_run:
        _show(chosen)
        return exits.OK
    return _run(chosen, wait_minutes * 60, as_json=as_json)


def _chosen(name: str, nodes: int | None, queue: str | None) -> Probe:
    from harvester.cli.options import wrong_argument
    from harvester.config import load_site
    from harvester.errors import InputError
    from harvester.jobs import choose_queue
    from harvester.probe.job import Probe, new_name

    site = load_site(name, os.environ)
    most = site.planning.nodes_max
    if most is not None and (nodes or 2) > most:
        if nodes is not None:
            raise wrong_argument(
                "--nodes", str(nodes), f"expected at most planning.nodes_max, {most}"
            )
        nodes = most
    try:
        found, _ = choose_queue(site, nodes or 2, _RUNS_S, queue)
    except InputError:
        if nodes is not None:
            raise
        nodes = 1
        found, _ = choose_queue(site, nodes, _RUNS_S, queue)
    return Probe(site=site, nodes=nodes or 2, walltime_s=_RUNS_S, queue=found, name=new_name())


def _show(chosen: Probe) -> None:
    from harvester.wiring import render_batch_job
    from payload_runner.protocol import SpoolPaths

    runner = SpoolPaths(chosen.site.spool).runner_dir / "payload_runner.pyz"
    script, command = render_batch_job(chosen.site, chosen.job(runner), chosen.paths.script)
    if command:
        note(f"would be submitted with: {shlex.join(command)}")
    print_text(script.rstrip("\n"))


def _check_budget(site: Site, files: Files, now: float) -> None:
    """Refuse what would exceed the hourly submissions, the daemon's and those by hand together."""
    from harvester.errors import StorageUnavailable
    from harvester.paths import site_states
    from harvester.probe.job import ProbeFailed
    from harvester.spool.by_hand import spent_within_hour, submissions
    from harvester.views.site_states import read_state
    from harvester.views.text import instant

    try:
        by_hand = submissions(files, site.state_dir)
    except OSError as error:
        raise StorageUnavailable(f"the state directory: {error}") from error
    status = read_state(site.name, site_states(os.environ) / site.name).status or {}
    published = int(status.get("budgets", {}).get("submissions_last_hour", 0))
    spent = spent_within_hour(by_hand, published, instant(status.get("updated")), now)
    allowed = site.budgets.submissions_per_hour
    if spent >= allowed:
        raise ProbeFailed(
            f"{spent} jobs were submitted at site {site.name} within the last hour, and "
            f"budgets.submissions_per_hour is {allowed}: probe later"
        )


def _run(chosen: Probe, wait_s: float, *, as_json: bool) -> int:
    from harvester.clock import SystemClock
    from harvester.probe.findings import are_good, judge, snippet
    from harvester.probe.job import Ports, run_probe
    from harvester.views.probe import findings_table
    from harvester.wiring import make_batch, make_discard, make_files, require_account

    require_account(chosen.site)
    clock, files = SystemClock(), make_files(chosen.site)
    _check_budget(chosen.site, files, clock.now())
    ports = Ports(
        make_batch(chosen.site), files, clock, time.sleep, note, make_discard(chosen.site)
    )
    measured = run_probe(chosen, ports, wait_s)
    findings = judge(chosen.site, measured)
    good, corrections = are_good(findings), snippet(findings)
    if as_json:
        print_json(
            {
                "site": chosen.site.name,
                "good": good,
                "findings": [dataclasses.asdict(item) for item in findings],
                "corrections": corrections,
                "nodes": [dataclasses.asdict(node) for node in measured.nodes],
            }
        )
    else:
        print_text(findings_table(findings))
        if corrections:
            print_text(f"\n# to be laid over {chosen.site.name}\n{corrections}")
    return exits.OK if good else exits.DIFFERENT
