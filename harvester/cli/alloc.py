"""``harvester alloc``: allocations, as the daemons' published status shows them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from harvester.cli.alloc_ahead import plan, wrap
from harvester.cli.options import states_option
from harvester.cli.output import json_option, note, print_json, print_text
from harvester.errors import NotFound, Refused
from harvester.model import JobId
from harvester.views.site_states import SiteState, find_states, state_of

if TYPE_CHECKING:
    from harvester.batch.port import BatchSystem

Found = tuple[SiteState, Mapping[str, Any]]


@click.group()
def alloc() -> None:
    """List, show, release and cancel allocations; plan them, or bring your own."""


@alloc.command("list")
@click.option("--all", "everything", is_flag=True, help="Ended ones too.")
@states_option
@json_option
def list_allocations(everything: bool, site: str | None, as_json: bool) -> None:
    """List allocations, live ones only by default."""
    from harvester.views.status import allocation_rows

    found = [
        (state, item)
        for state, item in _allocations(site)
        if everything or item.get("state") != "ended"
    ]
    if as_json:
        print_json({"allocations": [{"site": state.site, **item} for state, item in found]})
        return
    for state in {state.site: state for state, _ in found}.values():
        print_text(f"{state.site}:")
        print_text(allocation_rows(tuple(item for owner, item in found if owner is state)))
    if not found:
        print_text("No allocations.")


@alloc.command()
@click.argument("tag")
@click.option("--timeline", is_flag=True, help="What ran when on which GPU, from the runner's log.")
@states_option
@json_option
def show(tag: str, timeline: bool, site: str | None, as_json: bool) -> None:
    """Show one allocation with what runs in it."""
    from harvester.views.text import clean

    if timeline:
        _show_timeline(tag, site, as_json)
        return
    state, item = _find(tag, site)
    points = [point for point in (state.status or {}).get("points", ()) if point.get("tag") == tag]
    if as_json:
        print_json({"site": state.site, **item, "points": points})
        return
    print_text(f"{clean(tag)} at {state.site}")
    for name, value in item.items():
        if name != "tag" and value is not None:
            print_text(f"  {clean(name):<20} {clean(value)}")
    for point in points:
        print_text(f"  runs {clean(point.get('attempt'))} on {clean(point.get('node'))}")


@alloc.command()
@click.argument("tags", metavar="TAG...", nargs=-1, required=True)
@click.option("--dry-run", is_flag=True, help="Only show what would be cancelled.")
@states_option
def cancel(tags: tuple[str, ...], dry_run: bool, site: str | None) -> None:
    """Cancel allocations at the batch system; their points run again elsewhere, uncharged."""
    chosen = [_find_job(tag, site) for tag in tags]
    for state, item in chosen:
        if dry_run:
            note(f"would cancel {item['tag']}, job {item['job_id']} at {state.site}")
        else:
            _batch(state).cancel([JobId(str(item["job_id"]))])
            note(f"asked for the end of {item['tag']}, job {item['job_id']} at {state.site}")


@alloc.command()
@click.argument("tags", metavar="TAG...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that are held.")
@click.option("--dry-run", is_flag=True, help="Only show what would be released.")
@states_option
def release(tags: tuple[str, ...], everything: bool, dry_run: bool, site: str | None) -> None:
    """Let allocations start that were submitted held, as `submission.held` of a site file says."""
    if bool(tags) is everything:
        raise Refused("name the allocations to release, or give --all for all that are held")
    chosen = _all_held(site) if everything else [_find_job(tag, site) for tag in tags]
    for state, item in chosen:
        if item.get("state") in ("running", "draining"):
            raise Refused(f"{item['tag']} at {state.site} runs already: nothing holds it")
    for state, item in chosen:
        if dry_run:
            note(f"would release {item['tag']}, job {item['job_id']} at {state.site}")
        else:
            _batch(state).release([JobId(str(item["job_id"]))])
            note(f"released {item['tag']}, job {item['job_id']} at {state.site}")
    if not chosen:
        note("no allocation is held, as far as the published status says")


alloc.add_command(plan)
alloc.add_command(wrap)


def _show_timeline(tag: str, site: str | None, as_json: bool) -> None:
    from harvester.config import load_site
    from harvester.spool.runner_events import read_runner_events
    from harvester.views.timeline import Happened, timeline

    state, _ = _find(tag, site)
    spool = load_site(state.site_file, os.environ).spool
    try:
        records = read_runner_events(spool, tag)
    except OSError as error:
        raise NotFound(f"the events of {tag} in {spool} cannot be read: {error}") from None
    if as_json:
        events = [{"kind": item.kind, "at": item.at, **item.fields} for item in records]
        print_json({"site": state.site, "tag": tag, "events": events})
    else:
        print_text(timeline(Happened(item.kind, item.at, item.fields) for item in records))


def _batch(state: SiteState) -> BatchSystem:
    from harvester.config import load_site
    from harvester.wiring import make_batch

    return make_batch(load_site(state.site_file, os.environ))


def _find_job(tag: str, site: str | None) -> Found:
    """An allocation that has a job of ours to be told something."""
    state, item = _find(tag, site)
    if item.get("state") == "ended":
        raise Refused(f"{item['tag']} at {state.site} has ended already; there is no job left")
    if item.get("joined"):
        raise Refused(
            f"{item['tag']} at {state.site} is a job that its user started; "
            f"who wants its end cancels job {item.get('job_id')} at the batch system"
        )
    if not item.get("job_id"):
        raise Refused(
            f"{item['tag']} at {state.site} is {item.get('state')} and has no job id yet; "
            "try again when the batch system has it"
        )
    return state, item


def _all_held(site: str | None) -> list[Found]:
    return [
        (state, item)
        for state, item in _allocations(site)
        if item.get("state") == "held" and item.get("job_id") and not item.get("joined")
    ]


def _allocations(site: str | None) -> Iterator[Found]:
    states = find_states(os.environ) if site is None else (state_of(site, os.environ),)
    for state in states:
        for item in state.allocations:
            yield state, item


def _find(tag: str, site: str | None) -> Found:
    known = []
    for state, item in _allocations(site):
        if item.get("tag") == tag:
            return state, item
        known.append(str(item.get("tag")))
    raise NotFound(
        f"no allocation {tag!r} in the published status; known: {', '.join(known[-5:]) or 'none'}"
    )
