"""What Slurm says of nodes that stand idle now and of who comes next to them, read strictly. Pure.

Three commands tell it: sinfo the idle nodes of each partition, those included that the backfill
scheduler has planned for a job (Slurm 21.08 or newer says which); ``squeue --start`` when the jobs
that wait are expected, and on which nodes; scontrol the reservations to come. A planned node of
which no expected job speaks is left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping

from harvester.batch.commands import Completed
from harvester.model import BackfillWindow

# The environment makes squeue and scontrol print instants as seconds since the epoch.
TIME_FORMAT = {"SLURM_TIME_FORMAT": "%s"}
SINFO = ("sinfo", "--noheader", "--format=%R|%T|%N")
EXPECTED = ("squeue", "--noheader", "--start", "--states=PENDING", "--format=%S|%Y")
RESERVATIONS = ("scontrol", "show", "reservation", "--oneliner")

# sinfo(1), "NODE STATE CODES"; suffixes mark nodes that are off, silent or about to be rebooted.
_IDLE, _PLANNED = frozenset({"idle"}), frozenset({"planned", "idle-"})
_STATE_LINE = re.compile(r"([^|\n]+)\|([^|\n]+)\|([^|\n]*)")
_EXPECTED_LINE = re.compile(r"(\d+|N/A|NONE|Unknown|)\|([^|\n]*)")
_RESERVATION = re.compile(r"ReservationName=.*?\bStartTime=(\d+) .*?\bNodes=(\S*)")
_NO_RESERVATION = "no reservations in the system"
_NO_NODES = frozenset({"", "(null)", "N/A"})
_NODES_MAX = 100_000  # a list that names more is no list of nodes


def parse_windows(
    states: Completed, expected: Completed, reservations: Completed
) -> tuple[BackfillWindow, ...]:
    """The windows of each partition; a longer one lies within each shorter one.

    Raises:
        BatchUnavailable: one of the answers is not what its command prints.
    """
    needed = _needed_at([*_expected(expected), *_reserved(reservations)])
    until: dict[str, list[float]] = {}
    for queue, node, planned in _free(states):
        at = needed.get(node, math.inf)
        if not planned or at != math.inf:
            until.setdefault(queue, []).append(at)
    return tuple(
        window for queue, instants in sorted(until.items()) for window in _stairs(queue, instants)
    )


def expand_nodes(names: str) -> Iterator[str]:
    """The nodes that Slurm abbreviates: ``n[1-2,07-08]x3,login``.

    Raises:
        ValueError: it is not such a list.
    """
    count = 0
    for part in _parts(names):
        for node in _expand(part):
            count += 1
            if count > _NODES_MAX:
                raise ValueError("names more nodes than there are")
            yield node


def _stairs(queue: str, instants: Iterable[float]) -> Iterator[BackfillWindow]:
    ordered = sorted(instants, reverse=True)
    for index, at in enumerate(ordered):
        if index + 1 == len(ordered) or ordered[index + 1] != at:
            yield BackfillWindow(queue, index + 1, at)


def _needed_at(wanted: Iterable[tuple[float, str]]) -> Mapping[str, float]:
    """When each node is first needed."""
    found: dict[str, float] = {}
    for at, node in wanted:
        found[node] = min(at, found.get(node, math.inf))
    return found


def _free(done: Completed) -> Iterator[tuple[str, str, bool]]:
    """Partition, node, and whether it is planned for somebody; each once."""
    seen = set()
    for found in _lines(done, _STATE_LINE):
        queue, state, names = found.groups()
        if state not in _IDLE | _PLANNED:
            continue
        for node in _nodes(done, names):
            if (queue, node) not in seen:
                seen.add((queue, node))
                yield queue, node, state in _PLANNED


def _expected(done: Completed) -> Iterator[tuple[float, str]]:
    for found in _lines(done, _EXPECTED_LINE):
        at, names = found.groups()
        if at.isdecimal() and names not in _NO_NODES:
            for node in _nodes(done, names):
                yield float(at), node


def _reserved(done: Completed) -> Iterator[tuple[float, str]]:
    if done.returncode == 0 and done.stdout.strip().lower() == _NO_RESERVATION:
        return
    for found in _lines(done, _RESERVATION, whole=False):
        at, names = found.groups()
        if names not in _NO_NODES:
            for node in _nodes(done, names):
                yield float(at), node


def _lines(
    done: Completed, pattern: re.Pattern[str], *, whole: bool = True
) -> Iterator[re.Match[str]]:
    if done.returncode != 0:
        raise done.unavailable("failed")
    if done.stdout and not done.stdout.endswith("\n"):
        raise done.unavailable("printed a line that breaks off")
    for line in done.stdout.splitlines():
        if not line.strip():
            continue
        found = pattern.fullmatch(line) if whole else pattern.match(line)
        if found is None:
            raise done.unavailable(f"printed what it should not: {line[:120]!r}")
        yield found


def _nodes(done: Completed, names: str) -> list[str]:
    try:
        return list(expand_nodes(names))
    except ValueError as error:
        raise done.unavailable(f"printed nodes as {names[:80]!r}: {error}") from error


def _parts(names: str) -> Iterator[str]:
    """The list's members: commas within brackets belong to a member."""
    for found in re.finditer(r"(?:[^,\[\]]|\[[^\[\]]*\])+|[,\[\]]", names):
        if found.group() in ("[", "]"):
            raise ValueError("a bracket is missing")
        if found.group() != ",":
            yield found.group()


def _expand(part: str) -> Iterator[str]:
    head, opened, rest = part.partition("[")
    if not opened:
        yield part
        return
    inner, _, tail = rest.partition("]")
    ends = list(_expand(tail))
    for item in inner.split(","):
        low, _, high = item.partition("-")
        first, last = int(low), int(high or low)
        if last - first > _NODES_MAX:
            raise ValueError("a range is too long")
        for number in range(first, last + 1):
            for end in ends:
                yield f"{head}{number:0{len(low)}}{end}"
