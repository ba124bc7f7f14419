"""Submissions and queries that a person's command made besides the daemon's, for it to count.

The index has one writer, the daemon, which need not run. So ``site probe`` leaves an empty file per
submission and per query, whose name says when, in the state directory; the daemon charges them to
its budgets.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from payload_runner.files import Files

_KEPT_S = 2 * 86400.0
_HOUR_S = 3600.0
# A daemon looks once a minute: it may not have counted what is younger than its last word.
_COUNTED_AFTER_S = 90.0
_NAME = re.compile(r"(\d{1,15})\.[\w-]+")  # milliseconds and the job's name


def record_submission(files: Files, state_dir: Path, name: str, at: float) -> None:
    """Say that job ``name`` is being submitted; forget what no budget's window reaches any more.

    Raises:
        OSError: it cannot be written.
    """
    _record(files, state_dir, "submissions", name, at, _KEPT_S)


def record_query(files: Files, state_dir: Path, name: str, at: float) -> None:
    """Say that the batch system is being asked for job ``name``; raises as above."""
    _record(files, state_dir, "queries", name, at, _HOUR_S)


def submissions(files: Files, state_dir: Path) -> tuple[float, ...]:
    """When such submissions were made (wall clock); () where there never was one.

    Raises:
        OSError: the directory cannot be listed.
    """
    return _instants(files, state_dir / "submissions")


def queries(files: Files, state_dir: Path) -> tuple[float, ...]:
    """When such queries were made, as ``submissions``."""
    return _instants(files, state_dir / "queries")


def spent_within_hour(
    by_hand: Iterable[float], published: int, published_at: float | None, now: float
) -> int:
    """Submissions of the last hour: ``published`` by the daemon, and those it may not know. Pure.

    ``by_hand`` and the rest are wall clock; ``published_at`` is None where no daemon ever ran.
    """
    if published_at is None or now - published_at >= _HOUR_S:
        return sum(at > now - _HOUR_S for at in by_hand)
    return published + sum(at > published_at - _COUNTED_AFTER_S for at in by_hand)


def _record(files: Files, state_dir: Path, what: str, name: str, at: float, kept_s: float) -> None:
    place = state_dir / what
    files.make_dir(state_dir)
    files.make_dir(place)
    for found in files.listdir(place):
        if (then := _instant(found)) is not None and then < at - kept_s:
            files.remove(place / found)
    files.create_exclusive(place / f"{int(at * 1000)}.{name}", b"")


def _instants(files: Files, place: Path) -> tuple[float, ...]:
    try:
        names: Iterable[str] = files.listdir(place)
    except FileNotFoundError:
        return ()
    found = (_instant(name) for name in names)
    return tuple(sorted(then for then in found if then is not None))


def _instant(name: str) -> float | None:
    found = _NAME.fullmatch(name)
    return None if found is None else int(found.group(1)) / 1000
