"""Attempts that are over here, for as long as the allocation lives: no id ever runs twice."""

from __future__ import annotations

from typing import Dict, Iterable, Mapping, Optional, Protocol, Set, Tuple

from payload_runner.attempts import Fields
from payload_runner.protocol import AttemptEnded, HandedBack, to_fields

HAND_BACK_AT_ONCE = 500  # attempts in one record
_COMMITS = ("metadata_file", "metrics_file")


class Emit(Protocol):
    """Writes an event. ``urgent``: it is a commit record, or somebody waits for it."""

    def __call__(self, kind: str, fields: Fields, *, urgent: bool = False) -> None: ...


class Settled:
    """Tells the outcomes of attempts, and tells them again when an order is repeated."""

    def __init__(self, emit: Emit, known: Mapping[str, Tuple[str, Fields]]) -> None:
        """``known``: event kind and fields of what earlier starts of this job settled."""
        self._emit = emit
        self._known: Dict[str, Tuple[str, Fields]] = dict(known)
        self._ran_on: Dict[str, int] = {}
        self._asked: Set[str] = set()

    def end(self, attempt: str, fields: Fields, node: Optional[int] = None) -> None:
        """An attempt ended, on ``node`` if it ran at all."""
        fields = {**fields, "attempt": attempt}
        urgent = any(name in fields for name in _COMMITS)
        self._emit(AttemptEnded.KIND, fields, urgent=urgent)
        # Its output was told once; keeping all of it would fill the memory.
        slim = {key: value for key, value in fields.items() if key not in ("stdout", "stderr")}
        self._known[attempt] = (AttemptEnded.KIND, slim)
        if node is not None:
            self._ran_on[attempt] = node

    def hand_back(self, attempts: Iterable[str], reason: str) -> None:
        """These will not be started."""
        waiting = tuple(attempts)
        for at in range(0, len(waiting), HAND_BACK_AT_ONCE):
            part = waiting[at : at + HAND_BACK_AT_ONCE]
            self._emit(HandedBack.KIND, to_fields(HandedBack(part, reason)))
            for attempt in part:
                alone = to_fields(HandedBack((attempt,), reason))
                self._known[attempt] = (HandedBack.KIND, alone)

    def repeat(self, attempt: str) -> bool:
        """Tell the outcome of a settled attempt again; False if it is not settled."""
        if attempt not in self._known:
            return False
        self._emit(*self._known[attempt])
        return True

    def ask_for_output(self, attempt: str) -> Optional[int]:
        """The node that has the output of a settled attempt; its answer will be relayed."""
        node = self._ran_on.get(attempt)
        if node is not None:
            self._asked.add(attempt)
        return node

    def late(self, attempt: str, kind: str, fields: Fields) -> None:
        """A word of a node on a settled attempt: only output that was asked for counts."""
        if kind == AttemptEnded.KIND and attempt in self._asked:
            self._asked.discard(attempt)
            self._emit(kind, fields)
