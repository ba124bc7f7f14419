"""Keeps every task supplied with points: one thread asks, the sampler runs in a child process.

The history of a search is read from the database at each ask, and new points are committed
before anybody can lease them: there is nothing to lose when the service or a sampler dies.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from harvester.clock import Clock
from harvester.steering import books, feed
from harvester.steering.database import Database
from harvester.steering.leases import expire_leases
from harvester.steering.progress import PointState, TaskState, points_to_ask
from harvester.steering.samplers import Trial
from harvester.steering.samplers.child import Suggestion
from harvester.steering.tables import ASKS, POINTS, REQUESTS, SEGMENTS, TASKS

ASK_DEADLINE_S = 20.0  # skopt takes 10 s at 400 points
HOUSEKEEPING_S = 30.0  # whoever asks for points takes back what has run out as well
REQUESTS_KEPT_S = 7 * 86_400.0
RETRY_S = 5.0
# Results wake the asker many times a second: without anybody waiting, it rests this many times as
# long as its last round took, so that looking costs a fiftieth of the time.
_REST_SHARE = 50.0
_REST_AT_MOST_S = 0.5
_SEEDS = 2**63

_log = logging.getLogger(__name__)

_TRIAL_STATES: Mapping[str, str] = {
    PointState.WAITING.value: "pending",
    PointState.LEASED.value: "pending",
    PointState.DONE.value: "done",
    PointState.FAILED.value: "failed",
    PointState.PRUNED.value: "pruned",
}
_LEARNT = frozenset({PointState.DONE.value, PointState.PRUNED.value})


class Suggests(Protocol):
    """Where new points come from (``samplers.child.Suggester``); never raises, never stalls."""

    def ask(
        self,
        name: str,
        space_json: Mapping[str, Any],
        history: Sequence[Trial],
        n: int,
        seed: int,
        n_asks: int,
        options: Mapping[str, Any] | None = None,
        deadline_s: float = ASK_DEADLINE_S,
    ) -> Suggestion:
        """``n`` new points, or fewer where the space has no more."""

    def close(self) -> None:
        """End the child process."""


@dataclass(frozen=True, slots=True)
class _Need:
    """A segment that needs points."""

    task: Row[Any]
    segment: Row[Any]
    points: int


class Asker:
    """Asks for points wherever a task needs some."""

    def __init__(self, database: Database, suggester: Suggests, clock: Clock) -> None:
        self._database = database
        self._suggester = suggester
        self._clock = clock
        self._woken = threading.Event()
        self._awaited = threading.Event()  # somebody waits for the next round
        self._stopping = threading.Event()
        self._rounds = threading.Condition()
        self._started_rounds = 0
        self._finished_rounds = 0
        self._house_kept_at = float("-inf")
        self._thread = threading.Thread(target=self._run, name="asker", daemon=True)

    def start(self) -> None:
        """Begin to ask in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Stop asking, within a second."""
        self._stopping.set()
        self._woken.set()
        self._awaited.set()
        if self._thread.is_alive():
            self._thread.join(timeout=1.0)
        # A sampler at work cannot be interrupted from here; its child ends when this process does.
        if not self._thread.is_alive():
            self._suggester.close()

    def wake(self) -> None:
        """Look for tasks in need soon. Never blocks."""
        self._woken.set()

    def wait_for_points(self, timeout_s: float) -> None:
        """Wake the asker and wait until it has been through all tasks, or for the time-out."""
        with self._rounds:
            # A round under way may have looked too early: only the next one is sure.
            target = self._started_rounds + 1
            self._woken.set()
            self._awaited.set()
            self._rounds.wait_for(lambda: self._finished_rounds >= target, timeout_s)

    def ask_all(self) -> int:
        """Ask once for every segment in need; how many points came."""
        with self._database.read() as connection:
            needs = _needs(connection)
        return sum(self._try(need) for need in needs if not self._stopping.is_set())

    def keep_house(self) -> None:
        """Take back leases that have run out and forget old requests."""
        now = self._clock.now()
        with self._database.write() as connection:
            expire_leases(connection, now)
            old = REQUESTS.c.at < now - REQUESTS_KEPT_S
            connection.execute(delete(REQUESTS).where(old))

    def _run(self) -> None:
        pause_s = rest_s = 0.0
        while not self._stopping.is_set():
            self._woken.wait(pause_s)
            self._awaited.wait(rest_s)
            with self._rounds:
                self._woken.clear()
                self._awaited.clear()
                self._started_rounds += 1
            began = self._clock.monotonic()
            pause_s = self._round()
            rest_s = min(_REST_AT_MOST_S, _REST_SHARE * (self._clock.monotonic() - began))
            with self._rounds:
                self._finished_rounds = self._started_rounds
                self._rounds.notify_all()

    def _round(self) -> float:
        """One round; how long to rest unless woken."""
        try:
            if self._clock.monotonic() - self._house_kept_at >= HOUSEKEEPING_S:
                self.keep_house()
                self._house_kept_at = self._clock.monotonic()
            while self.ask_all() and not self._stopping.is_set():
                pass
        except Exception:  # noqa: BLE001 - the edge of the thread: a bad round must not end asking
            _log.exception("Asking failed; trying again retry_s=%s", RETRY_S)
            return RETRY_S
        return HOUSEKEEPING_S

    def _try(self, need: _Need) -> int:
        try:
            return self._ask(need)
        except Exception:  # noqa: BLE001 - one task's trouble must not keep the others waiting
            _log.exception("Ask failed task=%s segment=%s", need.task.id, need.segment.number)
            return 0

    def _ask(self, need: _Need) -> int:
        with self._database.read() as connection:
            history = _history(connection, need.task.id, need.segment.number)
        began = self._clock.monotonic()
        suggestion = self._suggester.ask(
            need.task.sampler,
            json.loads(need.segment.search_space),
            history,
            need.points,
            # Segments are independent searches, each with a stream of its own.
            (need.task.seed + need.segment.number) % _SEEDS,
            need.segment.n_asks,
            options=json.loads(need.task.sampler_options),
            deadline_s=ASK_DEADLINE_S,
        )
        took_s = self._clock.monotonic() - began
        with self._database.write() as connection:
            return _keep(connection, need, suggestion, took_s, self._clock.now())


def _needs(connection: Connection) -> list[_Need]:
    running = select(TASKS).where(TASKS.c.state == TaskState.RUNNING.value)
    tasks = {row.id: row for row in connection.execute(running.order_by(TASKS.c.id))}
    query = (
        select(SEGMENTS)
        .where(SEGMENTS.c.task_id.in_(tuple(tasks)), SEGMENTS.c.exhausted.is_(False))
        .order_by(SEGMENTS.c.task_id, SEGMENTS.c.number)
    )
    found = []
    for segment in connection.execute(query):
        task = tasks[segment.task_id]
        wanted = points_to_ask(books.rules_of(task), books.counts_of(segment))
        if wanted:
            found.append(_Need(task, segment, wanted))
    return found


def _history(connection: Connection, task: int, segment: int) -> list[Trial]:
    query = (
        select(POINTS.c.parameters, POINTS.c.state, POINTS.c.loss)
        .where(POINTS.c.task_id == task, POINTS.c.segment == segment)
        .order_by(POINTS.c.number)
    )
    return [
        Trial(json.loads(parameters), _TRIAL_STATES[state], loss if state in _LEARNT else None)
        for parameters, state, loss in connection.execute(query).all()
        if state in _TRIAL_STATES
    ]


def _keep(
    connection: Connection, need: _Need, suggestion: Suggestion, took_s: float, now: float
) -> int:
    """Commit new points, unless the world has moved on while the sampler was thinking."""
    task, segment = need.task.id, need.segment.number
    state = connection.scalar(select(TASKS.c.state).where(TASKS.c.id == task))
    asks = connection.scalar(
        select(SEGMENTS.c.n_asks).where(SEGMENTS.c.task_id == task, SEGMENTS.c.number == segment)
    )
    if state != TaskState.RUNNING.value or asks != need.segment.n_asks:
        return 0
    new = suggestion.points[: need.points]
    _insert_points(connection, need, suggestion, len(new), now)
    connection.execute(
        update(SEGMENTS)
        .where(SEGMENTS.c.task_id == task, SEGMENTS.c.number == segment)
        .values(n_asks=asks + 1, exhausted=suggestion.exhausted or not new)
    )
    connection.execute(
        insert(ASKS).values(
            task_id=task,
            segment=segment,
            number=asks + 1,
            at=now,
            wanted=need.points,
            got=len(new),
            duration_s=took_s,
            note=suggestion.note,
        )
    )
    if suggestion.note:
        feed.log(connection, now, task, f"{need.task.sampler}: {suggestion.note}")
    if suggestion.exhausted or not new:
        feed.log(connection, now, task, f"{need.task.sampler} has no more points{_of(need)}")
        books.end_tasks(connection, [task], now)
    return len(new)


def _of(need: _Need) -> str:
    return "" if need.segment.name is None else f" for segment {need.segment.name}"


def _insert_points(
    connection: Connection, need: _Need, suggestion: Suggestion, n: int, now: float
) -> None:
    if n == 0:
        return
    task, segment = need.task.id, need.segment.number
    last = connection.scalar(select(func.max(POINTS.c.number)).where(POINTS.c.task_id == task))
    first = (last or 0) + 1
    connection.execute(
        insert(POINTS),
        [
            {
                "task_id": task,
                "number": first + at,
                "segment": segment,
                "state": PointState.WAITING.value,
                "parameters": feed.dump(suggestion.points[at]),
                "sampler": suggestion.origin[at],
                "created_at": now,
            }
            for at in range(n)
        ],
    )
    moves = books.Moves()
    moves.add(task, segment, None, PointState.WAITING, n)
    moves.write(connection)
    feed.record(connection, now, [feed.Change(task, "asked", {"points": n, "first": str(first)})])
