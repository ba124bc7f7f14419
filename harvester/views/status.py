"""The status screen: one site's published status as text of 80 columns. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from harvester.quantities import format_duration
from harvester.views.site_states import Health, SiteState
from harvester.views.text import WIDTH, clean, columns, local_time, number, shorten

ALLOCATIONS_SHOWN = 12
TASKS_SHOWN = 8
ALLOCATIONS_KEPT = 100  # ended, in the status

Json = Mapping[str, Any]


def status_screen(state: SiteState) -> str:
    """What runs at a site, the problems first."""
    lines = [_headline(state)]
    if state.status is not None:
        for section in (_problems, _allocations, _tasks, _figures):
            lines.extend(section(state, state.status))
    elif state.damaged is not None:
        lines += [
            f"  ! {clean(state.damaged)} is damaged.",
            "      A daemon that runs writes it anew within a minute; start one that does not:",
            f"      `harvester run --site {state.site}`.",
        ]
    else:
        lines += ["  Nothing is published yet; look again in a moment, or at the daemon's log."]
    return "\n".join(line.rstrip() for line in lines)


def state_json(state: SiteState) -> dict[str, Any]:
    """The same for programs."""
    return {
        "site": state.site,
        "health": state.health.value,
        "age_s": state.age_s,
        "stopping": state.stopping,
        "state_dir": str(state.state_dir),
        "spool": None if state.spool is None else str(state.spool),
        "status": state.status,
    }


def allocation_rows(allocations: tuple[Json, ...]) -> str:
    """Allocations as a table."""
    rows = [
        (
            item.get("tag"),
            item.get("job_id"),
            item.get("state"),
            item.get("queue"),
            item.get("nodes"),
            _slots(item),
            _time_left(item),
            local_time(item.get("submitted")),
        )
        for item in allocations
    ]
    headers = ("allocation", "job", "state", "queue", "nodes", "slots busy", "left", "submitted")
    return columns(headers, rows, indent="  ")


def _headline(state: SiteState) -> str:
    if state.status is None or state.age_s is None:
        return f"{state.site}: no status"
    status, ago = state.status, format_duration(state.age_s)
    who = f"process {status.get('pid')} on {clean(status.get('host'))}"
    match state.health:
        case Health.ALIVE:
            doing = "draining" if state.stopping else clean(status.get("state"))
            text = f"{doing}, {who}, last word {ago} ago"
        case Health.STOPPED:
            how = "last round ended" if status.get("mode") == "once" else "stopped"
            text = f"{how} {ago} ago; batch jobs go on without it"
        case Health.DIED:
            text = f"DIED: {who} is gone, last word {ago} ago"
        case Health.SILENT:
            text = f"SILENT: {who} is there but has said nothing for {ago}"
        case _:
            text = f"UNKNOWN: last word {ago} ago from {who}"
    return f"{state.site}: {text}"


def _problems(state: SiteState, status: Json) -> Iterator[str]:
    if state.health.needs_attention:
        yield f"  ! What follows is {format_duration(state.age_s or 0)} old."
        cure = _CURES[state.health].format(site=state.site, host=clean(status.get("host")))
        yield f"      {cure}"
    if state.stopping:
        yield "  ! A STOP file lies in the spool: nothing new is submitted or started."
        yield f"      `harvester start --site {state.site}` takes it away."
    for problem in status.get("problems", ()):
        count = problem.get("count", 1)
        times = f", {count} times" if isinstance(count, int) and count > 1 else ""
        yield f"  ! {clean(problem.get('what'))} (since {local_time(problem.get('since'))}{times})"
        if problem.get("cure"):
            yield f"      {clean(problem['cure'])}"


_CURES = {
    Health.DIED: "Start it again: `harvester run --site {site}`; it takes over by looking.",
    Health.SILENT: "Its file system or a command may hang; see its log, then end it and restart.",
    Health.UNKNOWN: "Look on {host}, or run `harvester run --site {site}` here: it takes over.",
}


def _allocations(state: SiteState, status: Json) -> Iterator[str]:
    every = tuple(status.get("allocations", ()))
    live = tuple(item for item in every if item.get("state") != "ended")
    ended = len(every) - len(live)
    lately = " lately" if ended >= ALLOCATIONS_KEPT else ""  # older ones are not in the status
    yield f"  Allocations: {len(live)} live, {ended} ended{lately}"
    if live:
        yield allocation_rows(live[:ALLOCATIONS_SHOWN])
    for item in live[:ALLOCATIONS_SHOWN]:
        if item.get("state") == "queued" and item.get("reason"):
            words = f"  {clean(item.get('tag'))} waits: {clean(item['reason'])}"
            yield shorten(words, WIDTH)
        elif item.get("state") == "held":
            tag, why = clean(item.get("tag")), clean(item.get("reason") or "no reason is given")
            yield shorten(f"  {tag} is held: {why}", WIDTH)
            if item.get("submitted_held"):
                yield f"      `harvester alloc release {tag}` lets it start."
    if len(live) > ALLOCATIONS_SHOWN:
        yield f"  ... {len(live) - ALLOCATIONS_SHOWN} more: `harvester alloc list`"


def _tasks(state: SiteState, status: Json) -> Iterator[str]:
    tasks = sorted(status.get("tasks", ()), key=_in_order)
    working = sum(map(_has_work, tasks))
    over = f", {len(tasks) - working} without" if len(tasks) > working else ""
    yield f"  Tasks: {working} with work here{over}"
    if tasks:
        names = ("task", "leased", "ordered", "running", "ended", "delivered")
        rows = [[item.get(name) for name in names] for item in tasks[:TASKS_SHOWN]]
        yield columns(names, rows, indent="  ")
    if len(tasks) > TASKS_SHOWN:
        yield f"  ... {len(tasks) - TASKS_SHOWN} more: `harvester status --json`"
    running = status.get("points", ())
    if running:
        counted = status.get("attempts", {}).get("running", len(running))
        longest = sorted(running, key=lambda item: str(item.get("since")))[:3]
        shown = ", ".join(_point(item) for item in longest)
        yield shorten(f"  Running: {counted} points, longest {shown}", WIDTH)


def _has_work(task: Json) -> bool:
    return any(task.get(name) for name in ("leased", "ordered", "running"))


def _in_order(task: Json) -> tuple[bool, int, str]:
    """Tasks with work first, the newest of them first."""
    name = str(task.get("task"))
    return not _has_work(task), -int(name) if name.isdecimal() else 0, name


def _point(item: Json) -> str:
    loss = item.get("last_loss")
    report = f" loss {number(loss)}" if isinstance(loss, (int, float)) else ""
    return f"{clean(item.get('task'))}.{clean(item.get('point'))}{report}"


def _figures(state: SiteState, status: Json) -> Iterator[str]:
    delivery, budgets = status.get("delivery", {}), status.get("budgets", {})
    pending, oldest = delivery.get("pending", 0), delivery.get("oldest_s")
    age = f", the oldest for {format_duration(oldest)}" if pending and oldest else ""
    yield f"  Delivery: {pending} results wait{age}"
    yield (
        f"  Budgets: queries {budgets.get('queries_last_minute', 0)}/"
        f"{number(budgets.get('queries_allowed'))} a minute, "
        f"submissions {budgets.get('submissions_last_hour', 0)}/"
        f"{number(budgets.get('submissions_allowed'))} an hour, "
        f"breaker {clean(budgets.get('breaker', 'unknown'))}"
    )
    if space := status.get("space"):
        free = ", ".join(
            f"{name} {_bytes(space.get(f'{name}_free_bytes'))}" for name in ("spool", "state")
        )
        yield (
            f"  Space: books {_bytes(space.get('ledger_bytes'))}, index "
            f"{_bytes(space.get('index_bytes'))}, logs {_bytes(space.get('log_bytes'))} of "
            f"{number(space.get('allocations'))} ended; free: {free}"
        )
    if status.get("log_gaps"):
        yield f"  Logs: {status['log_gaps']} unreadable stretches were asked for again"


def _bytes(value: object) -> str:
    """A size for people."""
    if not isinstance(value, (int, float)):
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{number(value, 3)} {unit}"
        value /= 1000
    return f"{number(value, 3)} TB"


def _slots(item: Json) -> str:
    slots = item.get("slots")
    return "-" if not slots else f"{number(item.get('slots_busy') or 0)}/{number(slots)}"


def _time_left(item: Json) -> str:
    left = item.get("remaining_s")
    return "-" if left is None else format_duration(left)
