"""The step that takes in what users started themselves: allocations that joined
(``payload-runner join``), and submissions and queries of ``site probe``, which budgets count.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from harvester.daemon.desk import Desk
from harvester.effects import Finished
from harvester.ids import tag_prefix
from harvester.model import Tag
from harvester.spool.by_hand import queries, submissions
from harvester.store.positions import Position
from payload_runner.files import Files
from payload_runner.protocol import BadRecord, Joined, SpoolPaths, load_json

log = logging.getLogger(__name__)

# One listing of a directory each; a runner that joined waits longer than that.
LOOK_S = {"local": 10.0, "shared": 60.0}
_MARKER_LIMIT = 64 * 1024


@dataclass(frozen=True, slots=True)
class Newcomer:
    """An allocation's directory that we did not know; ``joined``: its marker, if it has one."""

    tag: Tag
    joined: Joined | None


@dataclass(frozen=True, slots=True)
class Looked:
    """What one look found."""

    newcomers: tuple[Newcomer, ...]
    submissions: tuple[float, ...] = ()  # by hand, of the last days: when (wall clock)
    queries: tuple[float, ...] = ()  # of the last hour


class Adopt:
    """Finds the markers that newcomers leave. Only their users ever cancel their jobs."""

    effects = ("adopt",)

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._known: set[str] = set()
        self._looked_at = float("-inf")
        self._looking = False
        self._found = Looked(())

    def take(self, finished: Finished) -> None:
        self._looking = False
        if finished.error is not None:
            log.debug("Cannot look for newcomers now. error=%s", finished.error)
        elif isinstance(finished.result, Looked):
            self._found = finished.result

    def step(self) -> bool:
        found, self._found = self._found, Looked(())
        now = self._desk.clock.now()
        for what, instants in (("submission", found.submissions), ("query", found.queries)):
            # Of a clock that was set back since: they would be counted anew with every look.
            for at in (instant for instant in instants if instant <= now):
                self._desk.store.spendings.note(what, at)
        adopted = [self._adopt(newcomer) for newcomer in found.newcomers]
        if not self._looking and self._left() <= 0 and not self._desk.stopping:
            self._look()
        return any(adopted)

    def due_in(self) -> float | None:
        return None if self._looking else max(0.0, self._left())

    def _left(self) -> float:
        pause = LOOK_S["local" if self._desk.is_local else "shared"]
        return self._looked_at + pause - self._desk.clock.monotonic()

    def _look(self) -> None:
        desk, known = self._desk, frozenset(self._known)
        self._looked_at = desk.clock.monotonic()
        self._looking = True
        prefix = tag_prefix(desk.spool_id)

        def look() -> Looked:
            newcomers = find_newcomers(desk.files, desk.spool, prefix, known)
            state_dir = desk.site.state_dir
            spent = submissions(desk.files, state_dir), queries(desk.files, state_dir)
            return Looked(newcomers, *spent)

        desk.effects.start("adopt", look, lane="files")

    def _adopt(self, newcomer: Newcomer) -> bool:
        desk, tag = self._desk, newcomer.tag
        if desk.store.allocations.state(tag) is not None:
            self._known.add(tag)
            return False
        if newcomer.joined is None:
            return False  # its marker is still to come, or never will
        desk.journal.record("joined", _fields(tag, newcomer.joined, desk.site.node.gpus))
        desk.journal.commit()
        desk.orders.open(tag, Position())
        desk.journal.commit_orders()
        desk.plan_wanted = True
        self._known.add(tag)
        log.info(
            "An allocation has joined. tag=%s job=%s nodes=%s",
            tag,
            newcomer.joined.job_id,
            newcomer.joined.nodes,
        )
        return True


def find_newcomers(
    files: Files, spool: SpoolPaths, prefix: str, known: frozenset[str]
) -> tuple[Newcomer, ...]:
    """Allocations in the spool that are not known, with their markers. Raises OSError."""
    found = []
    for name in files.listdir(spool.allocations):
        if name in known or not name.startswith(prefix):
            continue
        try:
            found.append(Newcomer(Tag(name), _marker(files, spool, name)))
        except (BadRecord, OSError) as error:
            log.debug("Ignore what is no newcomer. name=%s error=%s", name, error)
    return tuple(found)


def _marker(files: Files, spool: SpoolPaths, tag: str) -> Joined | None:
    path = spool.allocation(tag).joined
    if not files.exists(path):
        return None
    return load_json(files.read(path, 0, _MARKER_LIMIT), Joined)


def _fields(tag: Tag, joined: Joined, gpus: int) -> dict[str, object]:
    return {
        "tag": tag,
        "queue": "",
        "nodes": joined.nodes,
        "walltime_s": joined.walltime_s,
        "gpus_per_node": gpus,
        "job_id": joined.job_id,
        "why": f"a user's own job {joined.job_id} joined from {joined.host}",
    }
