"""``harvester alloc plan`` and ``alloc wrap``: allocations that do not exist yet."""

from __future__ import annotations

import math
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from harvester.cli.options import central_options, seconds_of, site_option, task_client
from harvester.cli.output import json_option, note, print_json, print_text
from harvester.errors import InputError, Problem

# The status tells what stood idle at the last submission; older than this it says nothing.
_WINDOWS_KEEP_S = 600.0

if TYPE_CHECKING:
    from harvester.model import BackfillWindow
    from harvester.planning.facts import AllocationFacts, NewAllocation, Plan
    from harvester.planning.preview import Standing, Work
    from harvester.site import Site


@click.command()
@click.option("--dry-run", is_flag=True, help="Always so: this command never submits anything.")
@site_option
@central_options
@json_option
def plan(site: str, central: str | None, token_file: Any, as_json: bool, *, dry_run: bool) -> None:
    """Show what would be submitted now and why, with the rendered script.

    Asks the central service for its running tasks and reads the daemon's published status: its
    allocations, the jobs that count besides, node-hours left, idle nodes. The batch system is left
    alone. The daemon itself knows more of what ran before, and may differ.
    """
    from harvester.config import load_site
    from harvester.planning.preview import preview

    del dry_run
    loaded = load_site(site, os.environ)
    status = _status(loaded)
    work = tuple(_work(task_client(central, token_file), status))
    standing = _standing(loaded, status)
    found = preview(loaded, work, standing)
    why_not = (*_restraints(status), *_waiting(standing))
    if as_json:
        print_json(_as_json(loaded, found, why_not))
    else:
        _show(loaded, found, why_not, sum(kind.points for kind in work))


@click.command()
@site_option
@click.option("--nodes", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--walltime", metavar="TIME", help='Such as "02:00:00" or 90m.  [default: the most]')
@click.option("--queue", metavar="QUEUE", help="[default: the first that takes this shape]")
@json_option
def wrap(site: str, nodes: int, walltime: str | None, queue: str | None, as_json: bool) -> None:
    """Print a batch script for you to submit yourself, which joins the site as capacity.

    Prepares the spool for that. Inside an interactive allocation of your own run the command that
    is shown instead. The harvester never cancels such a job.
    """
    from harvester.config import load_site
    from harvester.jobs import choose_queue
    from harvester.wiring import render_join

    loaded = load_site(site, os.environ)
    chosen, walltime_s = choose_queue(loaded, nodes, seconds_of(walltime), queue)
    script, command = render_join(loaded, nodes, walltime_s, chosen)
    if as_json:
        print_json({"queue": chosen, "walltime_s": walltime_s, "join": command, "script": script})
        return
    note(f"inside an allocation of your own: {shlex.join(command)} --walltime TIME_LEFT")
    print_text(script.rstrip("\n"))


# --- what is known ---


def _status(site: Site) -> Mapping[str, Any]:
    from harvester.paths import site_states
    from harvester.views.site_states import read_state

    found = read_state(site.name, site_states(os.environ) / site.name)
    return found.status or {}


def _work(client: Any, status: Mapping[str, Any]) -> Iterator[Work]:
    """What each running task could have evaluated now, besides what runs."""
    running = [str(point.get("task")) for point in status.get("points", ())]
    for task in client.list(state="running"):
        points = task["points"]
        settled = sum(points[state] for state in ("done", "failed", "pruned", "cancelled"))
        at_once = min(points["max"] - settled, task["parallel"] * task["segments"])
        left = at_once - running.count(task["task"])
        if left > 0:
            yield _work_of(client.show(task["task"]), left)


def _work_of(task: Mapping[str, Any], points: int) -> Work:
    from harvester.model import TaskId
    from harvester.planning.preview import Work
    from harvester.steering.payload_section import read_payload
    from harvester.steering.problems import Problems

    payload = read_payload(Problems("task"), task.get("payload"))
    return Work(
        task=TaskId(task["task"]),
        points=points,
        shape=payload.shape,
        expected_s=payload.expected_s,
        limit_s=payload.time_limit_s,
        checkpointable=bool((task.get("config") or {}).get("checkPointToSave")),
        priority=payload.priority,
        grace_s=payload.warn_s + payload.kill_s,
    )


def _standing(site: Site, status: Mapping[str, Any]) -> Standing:
    """As the site stands.

    Raises:
        InputError: the published status is not what this version of the harvester writes.
    """
    from dataclasses import replace

    from harvester.wiring import make_batch, make_files

    try:
        told = _told(site, status, time.time())
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        expected = f"is not what this version publishes ({error!r}); run its daemon anew"
        raise InputError(Problem(f"the status of {site.name}", "", "", expected)) from error
    return replace(
        told,
        walltime_step_s=make_batch(site).capabilities.walltime_step_s,
        stopping=make_files(site).exists(site.spool / "STOP"),
    )


def _told(site: Site, status: Mapping[str, Any], now: float) -> Standing:
    from harvester.planning.preview import Standing

    live = [item for item in status.get("allocations", ()) if item.get("state") != "ended"]
    return Standing(
        live=tuple(_facts(item) for item in live),
        submissions=int(status.get("budgets", {}).get("submissions_last_hour", 0)),
        now=now,
        other_jobs=_jobs(status, "user"),
        project_jobs=_jobs(status, "project"),
        node_hours_left=_node_hours_left(site, status),
        windows=_windows(status, now),
    )


def _jobs(status: Mapping[str, Any], whose: str) -> dict[str, tuple[int, int]]:
    found = status.get("others", {}).get(whose, {})
    return {str(queue): (int(queued), int(running)) for queue, (queued, running) in found.items()}


def _node_hours_left(site: Site, status: Mapping[str, Any]) -> float | None:
    """As the daemon says; what a budget has at all where none has run yet."""
    budgets = site.budgets
    whole = [
        hours
        for hours in (budgets.node_hours_per_day, budgets.node_hours_total)
        if hours is not None
    ]
    known = status.get("budgets", {}).get("node_hours_left")
    return float(known) if known is not None else min(whole, default=None)


def _windows(status: Mapping[str, Any], now: float) -> tuple[BackfillWindow, ...]:
    """What the daemon saw idle, as long as it may still be."""
    from harvester.model import BackfillWindow
    from harvester.views.text import instant

    told = status.get("windows", {})
    seen_at = instant(told.get("at"))
    if seen_at is None or now - seen_at > _WINDOWS_KEEP_S:
        return ()
    found = []
    for item in told.get("found", ()):
        end = instant(item.get("until"))
        until = math.inf if end is None else end
        found.append(BackfillWindow(str(item["queue"]), int(item["nodes"]), until))
    return tuple(found)


def _facts(item: Mapping[str, Any]) -> AllocationFacts:
    from harvester.model import AllocationState, Tag
    from harvester.planning.facts import AllocationFacts

    return AllocationFacts(
        tag=Tag(item["tag"]),
        state=AllocationState(item["state"]),
        queue=item["queue"],
        nodes=item["nodes"],
        walltime_s=item["walltime_s"],
        remaining_s=item.get("remaining_s"),
        accepting=item["state"] == "running",
        joined=bool(item.get("joined")),
    )


def _waiting(standing: Standing) -> tuple[str, ...]:
    """What is on its way already: the plan counts on it."""
    states = [found.state.value for found in standing.live if found.remaining_s is None]
    if not states:
        return ()
    held = states.count("held")
    told = f", {held} of them held: `harvester alloc release` lets those start" if held else ""
    return (f"{len(states)} allocations have yet to start{told}",)


_UNKNOWN = (
    "jobs besides the harvester's and node-hours spent are not known here: its daemon has not yet "
    "looked at the batch system"
)


def _restraints(status: Mapping[str, Any]) -> tuple[str, ...]:
    """What keeps the daemon from submitting whatever the plan says."""
    breaker = str(status.get("budgets", {}).get("breaker", "closed"))
    problems = [str(problem.get("what")) for problem in status.get("problems", ())]
    unknown = () if status.get("others", {}).get("at") else (_UNKNOWN,)
    return (*(() if breaker == "closed" else (f"the breaker is {breaker}",)), *problems, *unknown)


# --- showing it ---


def _as_json(site: Site, found: Plan, why_not: tuple[str, ...]) -> dict[str, Any]:
    return {
        "site": site.name,
        "submit": [_rendered(site, chosen) for chosen in found.submit],
        "ordered_to_live_allocations": len(found.orders),
        "blocked": sorted(set(found.blocked.values())),
        "restraints": why_not,
    }


def _rendered(site: Site, chosen: NewAllocation) -> dict[str, Any]:
    from harvester.wiring import render_job

    script, command = render_job(site, chosen.nodes, chosen.walltime_s, chosen.queue)
    return {
        "queue": chosen.queue,
        "nodes": chosen.nodes,
        "walltime_s": chosen.walltime_s,
        "why": chosen.why,
        "submit": command,
        "script": script,
    }


def _show(site: Site, found: Plan, why_not: tuple[str, ...], points: int) -> None:
    from harvester.quantities import format_duration
    from harvester.views.text import clean

    print_text(f"{site.name}: {points} points could be evaluated now")
    if found.orders:
        print_text(f"  {len(found.orders)} of them fit allocations that run already")
    for chosen in found.submit:
        size = f"{chosen.nodes} nodes for {format_duration(chosen.walltime_s)} in {chosen.queue}"
        print_text(f"  would submit {size}: {chosen.why}")
    if not found.submit:
        print_text("  would submit nothing")
    for sentence in sorted(set(found.blocked.values())):
        print_text(f"  blocked: {sentence}")
    for sentence in why_not:
        print_text(f"  ! {clean(sentence)}")
    if found.submit:
        rendered = _rendered(site, found.submit[0])
        if rendered["submit"]:
            note(f"submitted with: {shlex.join(rendered['submit'])}")
        print_text(rendered["script"].rstrip("\n"))
