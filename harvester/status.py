"""``status.json``: what the command line and the views know of the daemon."""

from __future__ import annotations

import math
import os
import socket
from dataclasses import asdict
from typing import Any

from harvester.clock import iso
from harvester.daemon.desk import Desk
from harvester.daemon.facts import HOUR_S, node_hours_left, remaining_s
from harvester.daemon.problems import Trouble
from harvester.model import AllocationState
from harvester.store.allocations import AllocationRow
from harvester.store.attempts import Running

VERSION = 1
POINTS_SHOWN = 200
ENDED_SHOWN = 100  # allocations; of the live ones all


def build_status(
    desk: Desk, *, mode: str, state: str, started: float, breaker_since: float | None
) -> dict[str, Any]:
    """The whole status as JSON values; instants are ISO 8601 in UTC."""
    now = desk.clock.now()
    counts = desk.store.attempts.counts_by_task()
    return {
        "version": VERSION,
        "site": desk.site.name,
        "harvester": desk.harvester,
        "mode": mode,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": iso(started),
        "updated": iso(now),
        "state": state,
        "lease": {"epoch": desk.lease.epoch, "holder": desk.lease.holder},
        "problems": [_trouble(trouble) for trouble in desk.problems.all()],
        "budgets": _budgets(desk, now, breaker_since),
        "tasks": [{"task": task, **numbers} for task, numbers in sorted(counts.items())],
        "attempts": desk.store.attempts.counts(),
        "allocations": [
            _allocation(desk, row)
            for row in (
                *desk.store.allocations.newest_ended(ENDED_SHOWN),
                *desk.store.allocations.not_ended(),
            )
        ],
        "delivery": _delivery(desk, now),
        "points": [_point(running) for running in desk.store.attempts.running(POINTS_SHOWN)],
        "space": None if desk.space is None else asdict(desk.space),
        "log_gaps": desk.store.counted("log_gaps"),
        "others": _others(desk),
        "windows": _windows(desk),
    }


def _others(desk: Desk) -> dict[str, Any]:
    """Jobs that are not ours and count against limits: queue -> [queued, running]."""
    return {
        "at": _instant(desk.looked_at),
        "user": {queue: list(jobs) for queue, jobs in desk.other_jobs.items()},
        "project": {queue: list(jobs) for queue, jobs in desk.project_jobs.items()},
    }


def _windows(desk: Desk) -> dict[str, Any]:
    """Nodes that stood idle when a submission asked; ``until`` null: no end is known."""
    found = [
        {
            "queue": window.queue,
            "nodes": window.nodes,
            "until": None if window.until == math.inf else iso(window.until),
        }
        for window in desk.windows.found
    ]
    return {"at": _instant(desk.windows.at or None), "found": found}


def _trouble(trouble: Trouble) -> dict[str, Any]:
    return {
        "what": trouble.what,
        "since": iso(trouble.since),
        "cure": trouble.cure,
        "count": trouble.count,
    }


def _budgets(desk: Desk, now: float, breaker_since: float | None) -> dict[str, Any]:
    budgets, spendings = desk.site.budgets, desk.store.spendings
    breaker = "closed" if breaker_since is None else f"open since {iso(breaker_since)}"
    hours = node_hours_left(desk)
    return {
        "queries_last_minute": spendings.within("query", 60.0, now),
        "queries_allowed": budgets.queries_per_minute,
        "submissions_last_hour": spendings.within("submission", HOUR_S, now),
        "submissions_allowed": budgets.submissions_per_hour,
        "node_hours_left": None if hours is None else round(hours, 3),
        "breaker": breaker,
    }


def _allocation(desk: Desk, row: AllocationRow) -> dict[str, Any]:
    left = remaining_s(desk, row) if row.ended_at is None else None
    return {
        "tag": row.tag,
        "job_id": row.job_id,
        "state": row.state.value,
        "queue": row.queue,
        "joined": row.joined,
        "nodes": row.nodes,
        "slots": row.slots,
        "slots_busy": row.slots_busy,
        "walltime_s": row.walltime_s,
        "remaining_s": None if left is None else round(left, 1),
        "submitted": _instant(row.submitted_at),
        "started": _instant(row.started_at),
        "ended": _instant(row.ended_at),
        "reason": desk.waiting_for.get(row.tag, row.reason),
        "submitted_held": desk.site.submission.held and row.state is AllocationState.HELD,
        "slot_seconds": row.slot_seconds,
        "busy_slot_seconds": row.busy_slot_seconds,
    }


def _delivery(desk: Desk, now: float) -> dict[str, Any]:
    pending, oldest = desk.store.attempts.undelivered()
    return {
        "pending": pending,
        "oldest_s": None if oldest is None else round(max(0.0, now - oldest), 1),
    }


def _point(running: Running) -> dict[str, Any]:
    return {
        "attempt": running.attempt,
        "task": running.task,
        "point": running.point,
        "tag": running.tag,
        "node": running.node,
        "since": _instant(running.since),
        "last_step": running.last_step,
        "last_loss": running.last_loss,
    }


def _instant(seconds: float | None) -> str | None:
    return None if seconds is None else iso(seconds)
