"""Runs the demo's search end to end and shows it: see ``scripts/demo``."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from interrupts import Interrupts
from rich.console import Console
from rich.live import Live
from rich.table import Table
from stack import TOP, Stack, StackFailed

from harvester.errors import HarvesterError
from payload_runner.guardian import of_marked

LIMIT_S, LIMIT_PER_POINT_S = 120.0, 15.0  # of a machine that is busy with other things
ON_TERMINAL_S, IN_A_LOG_S = 0.5, 3.0
EX_USAGE = 64  # sysexits.h
EX_IOERR = 74
GUARDED = "DEMO_GUARDED_BY"
INTERRUPTED = 128 + signal.SIGINT
Json = Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; 0 when the search finished, else a sentence and another code."""
    interrupts = Interrupts()
    try:
        interrupts.watch()
        code = _demo(_parse(arguments), interrupts)
        interrupts.stop()
    except KeyboardInterrupt:
        print("demo: interrupted; everything it started was stopped", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"demo: {where}{error.strerror or error}", file=sys.stderr)
        return EX_IOERR
    return code


def _demo(options: argparse.Namespace, interrupts: Interrupts) -> int:
    console = Console()
    root = options.keep or Path(tempfile.mkdtemp(prefix="harvester-demo-"))
    finished = False
    try:
        site = (TOP / "scripts/demo_site.yaml").read_text()
        with _guarded() as mark, Stack(root, site, undisturbed=interrupts.held) as stack:
            stack.environment.update(mark)
            outcome = _run(stack, console, options.points)
            _write(stack, outcome, options.json)
        _show(outcome, console)
        finished = True
    except (StackFailed, HarvesterError) as failure:
        print(f"demo: {failure}", file=sys.stderr)
    except KeyboardInterrupt:
        if not options.keep:
            _remove(root)
        raise
    _say_where(root, console, kept=bool(options.keep) or not finished)
    return 0 if finished else 1


@contextlib.contextmanager
def _guarded() -> Iterator[dict[str, str]]:
    """A variable for what the demo starts, by which that is ended if the demo is killed."""
    nonce = uuid.uuid4().hex
    guardian = of_marked(f"{GUARDED}={nonce}")
    try:
        yield {GUARDED: nonce}
    finally:
        guardian.dismiss()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EX_USAGE, f"{self.prog}: {message}\n")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcome here as JSON")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="run in DIR and leave it there")
    parser.add_argument("--points", type=int, default=24, help="points to evaluate (default 24)")
    options = parser.parse_args(arguments)
    if options.points < 1:
        parser.error("--points: expected at least 1")
    if options.keep:
        options.keep = options.keep.resolve()
        _check_new(parser, options.keep)
    if options.json and not _can_write(options.json):
        parser.error(
            f"--json: {options.json} cannot be written; name a file in a directory of yours"
        )
    return options


def _check_new(parser: argparse.ArgumentParser, directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        is_empty = not any(directory.iterdir())
    except OSError as error:
        parser.error(f"--keep: {directory}: {error.strerror}; name a new directory")
    if not is_empty:
        parser.error(f"--keep: {directory} is not empty; name a new directory")
    if not os.access(directory, os.W_OK | os.X_OK):
        parser.error(f"--keep: {directory} cannot be written; name a new directory")


def _can_write(file: Path) -> bool:
    return not file.is_dir() and os.access(file if file.exists() else file.parent, os.W_OK)


def _run(stack: Stack, console: Console, points: int) -> dict[str, Any]:
    began = time.monotonic()
    stack.start_central()
    search = stack.root / "search"
    shutil.copytree(
        TOP / "scripts/demo_search", search, ignore=shutil.ignore_patterns("__pycache__")
    )
    config = json.loads((search / "config.json").read_text())
    (search / "config.json").write_text(json.dumps({**config, "maxPoints": points}, indent=1))
    task = stack.submit(search / "config.json")
    stack.start_daemon()
    _follow(stack, task, console, began, LIMIT_S + points * LIMIT_PER_POINT_S)
    stack.stop_daemon()
    outcome = _outcome(stack, task)
    outcome["seconds"] = round(time.monotonic() - began, 1)
    return outcome


def _follow(stack: Stack, task: str, console: Console, began: float, limit_s: float) -> None:
    client = stack.client()
    every = ON_TERMINAL_S if console.is_terminal else IN_A_LOG_S
    with Live(console=console, auto_refresh=False, transient=True) as live:
        last = 0.0

        def finished() -> bool:
            nonlocal last
            if time.monotonic() - last < every:
                return False
            last = time.monotonic()
            summary, status = client.show(task), stack.status()
            if console.is_terminal:
                live.update(_screen(summary, status, last - began), refresh=True)
            else:
                console.print(_line(summary, status, last - began), highlight=False)
            return summary["state"] != "running" and _nothing_left(status)

        stack.wait(finished, limit_s, f"the search did not finish in {limit_s:.0f} s")


def _nothing_left(status: Json) -> bool:
    live = [item for item in status.get("allocations", ()) if item["state"] != "ended"]
    return not live and not status.get("delivery", {}).get("pending")


def _line(summary: Json, status: Json, elapsed: float) -> str:
    points, attempts = summary["points"], status.get("attempts", {})
    live = [item for item in status.get("allocations", ()) if item["state"] != "ended"]
    best = summary["best"]
    return (
        f"{elapsed:5.0f} s  points: {points['leased']} leased, "
        f"{attempts.get('running', 0)} running, "
        f"{points['done'] + points['failed']} of {points['max']} done  "
        f"best loss {format(best['loss'], '.4f') if best else 'none yet'}  "
        f"allocations: {', '.join(_allocation(item) for item in live) or 'none'}"
    )


def _allocation(item: Json) -> str:
    if item["state"] != "running" or item.get("remaining_s") is None:
        return f"{item['tag']} {item['state']}"
    return f"{item['tag']} running, {item['remaining_s']:.0f} s left"


def _screen(summary: Json, status: Json, elapsed: float) -> Table:
    points, attempts = summary["points"], status.get("attempts", {})
    table = Table.grid(padding=(0, 2))
    table.add_row("elapsed", f"{elapsed:.0f} s")
    settled = points["done"] + points["failed"]
    table.add_row("points", _bar(settled, points["max"]))
    table.add_row("", f"{points['leased']} leased, {attempts.get('running', 0)} running")
    best = summary["best"]
    table.add_row(
        "best loss", f"{best['loss']:.4f} (point {best['point']})" if best else "none yet"
    )
    for item in status.get("allocations", ()):
        table.add_row("allocation", _allocation(item))
    return table


def _bar(done: int, of: int, width: int = 40) -> str:
    filled = round(width * done / of) if of else 0
    return f"{'#' * filled}{'.' * (width - filled)} {done} of {of} done"


def _outcome(stack: Stack, task: str) -> dict[str, Any]:
    client = stack.client()
    points = [_point(item) for item in client.points(task)]
    rated = [item for item in points if item["loss"] is not None]
    return {
        "points": points,
        "allocations": [_use(item) for item in stack.status()["allocations"]],
        "best": min(rated, key=lambda item: float(item["loss"]), default=None),
    }


def _point(item: Json) -> dict[str, Any]:
    return {
        "id": item["point"],
        "parameters": item["parameters"],
        "loss": item["loss"],
        "attempts": [dict(attempt) for attempt in item["attempts"]],
    }


def _use(item: Json) -> dict[str, Any]:
    total = item.get("slot_seconds") or 0.0
    busy = item.get("busy_slot_seconds") or 0.0
    kept = ("tag", "job_id", "nodes", "slots", "state", "started", "ended", "reason")
    return {
        **{name: item.get(name) for name in kept},
        "slots_used_fraction": round(busy / total, 3) if total else 0.0,
    }


def _write(stack: Stack, outcome: Json, also: Path | None) -> None:
    results = stack.root / "results"
    results.mkdir()
    text = json.dumps(outcome, indent=1) + "\n"
    (results / "outcome.json").write_text(text)
    (results / "points.csv").write_text(stack.harvester("task", "results", "1", "--csv"))
    if also:
        also.write_text(text)


def _show(outcome: Json, console: Console) -> None:
    rated = [item for item in outcome["points"] if item["loss"] is not None]
    best = Table(
        "point", "loss", "attempts", "parameters", title="Best points", title_justify="left"
    )
    for item in sorted(rated, key=lambda item: float(item["loss"]))[:5]:
        attempts = item["attempts"]
        tries = "1" if len(attempts) == 1 else f"{len(attempts)} (resumed)"
        parameters = ", ".join(
            f"{name}={_short(value)}" for name, value in item["parameters"].items()
        )
        best.add_row(item["id"], f"{item['loss']:.4f}", tries, parameters)
    console.print(best)
    use = Table(
        "allocation", "nodes", "slots", "slots in use", title="Allocations", title_justify="left"
    )
    for item in outcome["allocations"]:
        fraction = f"{100 * item['slots_used_fraction']:.0f} % of its time"
        use.add_row(item["tag"], str(item["nodes"]), str(item["slots"]), fraction)
    console.print(use)
    resumed = sum(any(a["resumed_from"] for a in item["attempts"]) for item in outcome["points"])
    console.print(
        f"{len(rated)} points evaluated in {outcome['seconds']} s; "
        f"{resumed} were cut off by a walltime and finished from their checkpoint.",
        highlight=False,
    )


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _say_where(root: Path, console: Console, *, kept: bool) -> None:
    state = root / "state"
    if not kept:
        for part in (state, root / "search", root / "cache", root / "site.yaml"):
            _remove(part)
    if (root / "results").exists():
        console.print(f"Results: {root / 'results'}", highlight=False, soft_wrap=True)
    console.print(f"Logs: {root / 'logs'}", highlight=False, soft_wrap=True)
    if kept:
        spool = state / "harvester" / "sites" / "demo" / "spool"
        console.print(f"State: {state}\nSpool: {spool}", highlight=False, soft_wrap=True)
        look = f"XDG_STATE_HOME={shlex.quote(str(state))} harvester status"
        console.print(f"Look around: {look}", highlight=False, soft_wrap=True)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
