"""``harvester task``: searches at the central service."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from harvester.cli.lazy import Lazy, LazyGroup
from harvester.cli.options import central_options, task_client
from harvester.cli.output import json_option, note, print_json, print_text

_SUBMIT = {
    "submit": Lazy("harvester.cli.submit:submit", "Check and submit a search."),
}


@click.group(cls=LazyGroup, lazy=_SUBMIT)
def task() -> None:
    """Submit, watch and steer searches at the central service."""


@task.command("list")
@click.option("--state", metavar="STATE", help="Only tasks in this state, e.g. running.")
@click.option("--owner", metavar="USER", help="Only this user's tasks.")
@central_options
@json_option
def list_tasks(
    state: str | None,
    owner: str | None,
    central: str | None,
    token_file: Path | None,
    as_json: bool,
) -> None:
    """List tasks."""
    from harvester.views.tasks import task_table

    tasks = list(task_client(central, token_file).list(state=state, owner=owner))
    if as_json:
        print_json({"tasks": tasks})
    else:
        print_text(task_table(tasks))


@task.command()
@click.argument("task_id", metavar="TASK")
@central_options
@json_option
def show(task_id: str, central: str | None, token_file: Path | None, as_json: bool) -> None:
    """Show one task with every attempt of every point."""
    from harvester.views.tasks import task_json, task_screen

    client = task_client(central, token_file)
    found, points = client.show(task_id), list(client.points(task_id))
    if as_json:
        print_json(task_json(found, points))
    else:
        print_text(task_screen(found, points))


@task.command()
@click.argument("task_id", metavar="TASK")
@click.option("--limit", type=click.IntRange(min=1), help="At most this many.  [default: all]")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, a column for each parameter.")
@central_options
@json_option
def results(
    task_id: str,
    limit: int | None,
    as_csv: bool,
    central: str | None,
    token_file: Path | None,
    as_json: bool,
) -> None:
    """Print the points that have a loss, the best first."""
    from harvester.views.tasks import point_json, point_table, results_csv

    if as_csv and as_json:
        raise click.UsageError("--csv and --json: give one of them")
    rated = [
        point
        for point in task_client(central, token_file).points(task_id)
        if point["loss"] is not None
    ]
    points = sorted(rated, key=lambda point: float(point["loss"]))[:limit]
    if as_json:
        print_json({"task": task_id, "results": [point_json(point) for point in points]})
    elif as_csv:
        click.echo(results_csv(points), nl=False)
    else:
        print_text(point_table(points))


@task.command()
@click.argument("task_id", metavar="TASK")
@click.option("--state", metavar="STATE", help="Only points in this state, e.g. waiting.")
@central_options
@json_option
def points(
    task_id: str,
    state: str | None,
    central: str | None,
    token_file: Path | None,
    as_json: bool,
) -> None:
    """List a task's points in the order in which they were asked."""
    from harvester.views.tasks import point_json, point_table

    found = [
        point
        for point in task_client(central, token_file).points(task_id)
        if state is None or point["state"] == state
    ]
    if as_json:
        print_json({"task": task_id, "points": [point_json(point) for point in found]})
    else:
        print_text(point_table(found))


@task.command("log")
@click.argument("task_id", metavar="TASK")
@central_options
@json_option
def show_log(task_id: str, central: str | None, token_file: Path | None, as_json: bool) -> None:
    """Print what happened to a task and why, the newest lines."""
    from harvester.views.text import clean

    lines = task_client(central, token_file).show(task_id)["log"]
    if as_json:
        print_json({"task": task_id, "log": lines})
        return
    for line in lines:
        print_text(clean(line) if isinstance(line, str) else _log_line(line))


def _log_line(line: dict[str, Any]) -> str:
    from harvester.views.text import clean, local_time

    rest = " ".join(clean(value) for key, value in line.items() if key != "at")
    return f"{local_time(line.get('at'))}  {rest}"


def _action(name: str, help_text: str) -> None:
    @task.command(name, help=help_text)
    @click.argument("task_ids", metavar="TASK...", nargs=-1, required=True)
    @central_options
    @json_option
    def act(
        task_ids: tuple[str, ...], central: str | None, token_file: Path | None, as_json: bool
    ) -> None:
        client = task_client(central, token_file)
        _for_each(task_ids, lambda task_id: client.act(task_id, name), as_json)


def _for_each(
    task_ids: tuple[str, ...], function: Callable[[str], dict[str, Any]], as_json: bool
) -> None:
    done = []
    for task_id in task_ids:
        done.append(function(task_id))
        if not as_json:
            note(f"task {task_id} is {done[-1]['state']}")
    if as_json:
        print_json({"tasks": done})


_action("pause", "Hand out no more points; what is leased goes on.")
_action("resume", "Go on after a pause.")
_action("finish", "Ask for no more points and end when what is leased is told.")
_action("kill", "End at once; what runs is stopped and its results are dropped.")
_action("retry", "Give failed points their tries back.")


@task.command()
@click.argument("task_ids", metavar="TASK...", nargs=-1, required=True)
@click.option("--dry-run", is_flag=True, help="Only show what would be deleted.")
@central_options
def delete(
    task_ids: tuple[str, ...], dry_run: bool, central: str | None, token_file: Path | None
) -> None:
    """Delete ended tasks with all their results."""
    client = task_client(central, token_file)
    for task_id in task_ids:
        if dry_run:
            found = client.show(task_id)
            counts = found["points"]
            told = sum(counts.get(state, 0) for state in ("done", "failed", "pruned"))
            note(f"task {task_id} ({found['name']}, {found['state']}): would delete {told} results")
        else:
            client.delete(task_id)
            note(f"task {task_id} is deleted")
