"""``harvester point``: one point and its attempts."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harvester.cli.options import central_options, states_option, task_client, wrong_argument
from harvester.cli.output import json_option, note, print_json, print_text
from harvester.errors import NotFound, Refused

if TYPE_CHECKING:
    from harvester.views.payload_output import PayloadOutput
    from harvester.views.site_states import SiteState


@click.group()
def point() -> None:
    """Look at one point, its attempts and its files."""


@point.command()
@click.argument("point_id", metavar="TASK.POINT")
@central_options
@json_option
def show(point_id: str, central: str | None, token_file: Path | None, as_json: bool) -> None:
    """Show a point's parameters, loss and attempts, from the central service."""
    from harvester.views.tasks import point_json, point_screen

    task, serial = _split(point_id)
    found = task_client(central, token_file).point(task, serial)
    if as_json:
        print_json({"task": task, **point_json(found)})
    else:
        print_text(point_screen(found))


@point.command()
@click.argument("point_id", metavar="TASK.POINT")
@click.option(
    "--to",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Bring the files to DIR.  [default: only list them]",
)
@central_options
@json_option
def files(
    point_id: str,
    directory: Path | None,
    central: str | None,
    token_file: Path | None,
    as_json: bool,
) -> None:
    """List the files of a point's results (metrics archives, metadata), or bring them home.

    A file that lies in DIR already is checked and left; one of another content is never
    overwritten. A transfer that broke off goes on where it stopped.
    """
    from harvester.central.result_files import fetch, files_of, places
    from harvester.views.tasks import file_table, files_json

    task, serial = _split(point_id)
    client = task_client(central, token_file)
    found = files_of(client.point(task, serial))
    placed = {} if directory is None else places(found, directory)
    fetched = fetch(client, placed)
    if as_json:
        print_json({"task": task, "point": serial, "files": files_json(found, placed)})
    else:
        print_text(file_table(found, placed))
    if placed:
        note(f"files brought: {len(fetched)}, there already: {len(placed) - len(fetched)}")


@point.command()
@click.argument("point_id", metavar="TASK.POINT")
@states_option
@json_option
def logs(point_id: str, site: str | None, as_json: bool) -> None:
    """Print what a point's payloads wrote to stdout and stderr (kept head and tail).

    Reads the spools on this machine. Attempts that succeed send output up only where the task says
    so: "payload": {"keep_output": "always"}.
    """
    from harvester.views.site_states import find_states, state_of

    task, serial = _split(point_id)
    states = find_states(os.environ) if site is None else (state_of(site, os.environ),)
    found = [output for state in states for output in _outputs(state, task, serial)]
    if not found:
        raise NotFound(
            f"no attempt at point {point_id} has ended in a spool of this machine's sites"
        )
    if as_json:
        ends = [{"allocation": item.allocation, **dataclasses.asdict(item.ended)} for item in found]
        print_json({"task": task, "point": serial, "attempts": ends})
    else:
        print_text("\n".join(_text(item) for item in found))


@point.command()
@click.argument("point_id", metavar="TASK.POINT")
@click.option("--attempt", metavar="ID", help="A whole attempt id.  [default: the newest]")
@click.option(
    "--directory", type=click.Path(path_type=Path), help="A new one.  [default: ./replay-ATTEMPT]"
)
@click.option("--fresh", is_flag=True, help="Without the checkpoint that the attempt started from.")
@click.option("--dry-run", is_flag=True, help="Only say what would be run, and how in a job.")
@states_option
def replay(
    point_id: str,
    attempt: str | None,
    directory: Path | None,
    fresh: bool,
    dry_run: bool,
    site: str | None,
) -> int:
    """Run by hand what a point's payload ran: same inputs, environment, container, checkpoint.

    Runs here, on the login node. --dry-run shows the command that does the same in an interactive
    job on a compute node. Exit code 0: the payload succeeded; 1: it did not.
    """
    from harvester.views.site_states import find_states, state_of
    from payload_runner.commits import Broken
    from payload_runner.files import RealFiles
    from payload_runner.images import BadContainer
    from payload_runner.protocol import SpoolPaths
    from payload_runner.replay import NothingToReplay, find_attempt, replay_visibly

    _split(point_id)
    wanted = attempt or point_id
    if attempt is not None and not attempt.startswith(f"{point_id}."):
        raise wrong_argument("--attempt", attempt, f"expected an attempt at point {point_id}")
    states = find_states(os.environ) if site is None else (state_of(site, os.environ),)
    for spool in [state.spool for state in states if state.spool is not None]:
        paths = SpoolPaths(spool)
        try:
            found = find_attempt(RealFiles(), paths, wanted)
        except NothingToReplay:
            continue
        if dry_run:
            note(f"in a job     {_command_in_a_job(paths, found.order.attempt, fresh)}")
        try:
            return replay_visibly(paths, found, os.environ, directory, fresh=fresh, dry_run=dry_run)
        except (BadContainer, Broken) as error:
            raise Refused(str(error)) from error
    raise NotFound(f"no order for {wanted} lies in a spool on this machine")


def _command_in_a_job(spool: Any, attempt: str, fresh: bool) -> str:
    # Any: the class comes with a late import.
    import shlex

    runners = sorted(spool.runner_dir.glob("*.pyz"), key=lambda path: path.stat().st_mtime)
    runner = str(runners[-1]) if runners else "payload_runner.pyz"
    words = ["python3", runner, "replay", str(spool.root), attempt, *["--fresh"] * fresh]
    return shlex.join(words)


def _outputs(state: SiteState, task: str, serial: str) -> list[PayloadOutput]:
    from harvester.config import load_site
    from harvester.errors import ConfigurationError
    from harvester.views.payload_output import payload_outputs
    from harvester.wiring import make_files
    from payload_runner.files import Files, RealFiles

    if state.spool is None:
        return []
    files: Files = RealFiles()
    with contextlib.suppress(ConfigurationError):  # a site whose file is gone has its spool here
        files = make_files(load_site(state.site_file, os.environ))
    try:
        return payload_outputs(files, state.spool, task, serial)
    except OSError as error:
        note(f"{state.site}: its spool cannot be read: {error.strerror}")
        return []


def _text(output: Any) -> str:
    # Any: the class comes with a late import.
    from harvester.views.text import clean, clean_lines, indented

    ended = output.ended
    lines = [f"=== attempt {clean(ended.attempt)} in {output.allocation}: {clean(ended.state)} ==="]
    if ended.reason:
        lines += indented(ended.reason, "")
    for name in ("stdout", "stderr"):
        text = getattr(ended, name)
        lines.append(f"--- {name} ---")
        lines.append(clean_lines(text.rstrip("\n")) if text else "(nothing was sent up)")
    return "\n".join(lines)


def _split(point_id: str) -> tuple[str, str]:
    task, dot, serial = point_id.partition(".")
    if not (task and dot and serial) or "." in serial:
        raise wrong_argument("TASK.POINT", point_id, "expected a task and a point such as 1.7")
    return task, serial
