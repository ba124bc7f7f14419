"""What must hold between the keys of a site file. Pure; reads values that may be half wrong.

Types and single values are the schema's business. These rules see the raw values, so that one run
shows broken types and broken rules together; a part whose type is wrong is passed over here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from harvester.quantities import format_duration, parse_duration_s, parse_nodes

Key = tuple[str | int, ...]
Finding = tuple[Key, str]  # the key concerned, and the sentence

LAUNCHERS = ("flux", "jsrun", "mpiexec", "mpirun", "srun")


def broken_rules(values: Mapping[str, Any]) -> list[Finding]:
    """Every rule that a merged site file breaks."""
    return [finding for rule in _RULES for finding in rule(values)]


def _account(values: Mapping[str, Any]) -> Iterator[Finding]:
    if values.get("account_required") is True and not values.get("account"):
        yield ("account",), "expected your project's account: this centre requires one"


def _spool(values: Mapping[str, Any]) -> Iterator[Finding]:
    if values.get("batch_system") not in (None, "local") and not _part(values, "spool").get("path"):
        yield ("spool", "path"), "expected a directory on the shared file system, such as $SCRATCH"


def _launcher(values: Mapping[str, Any]) -> Iterator[Finding]:
    given = _part(values, "runner").get("launcher") or []
    words = given.split() if isinstance(given, str) else given
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        return
    key = ("runner", "launcher")
    if words and values.get("batch_system") == "local":
        yield key, "expected none: the local batch system starts agents itself"
    elif words and PurePosixPath(words[0]).name not in LAUNCHERS:
        yield key, f"unknown launcher {words[0]!r}; expected one of {', '.join(LAUNCHERS)}"
    elif not words and values.get("batch_system") == "slurm" and _largest(values) > 1:
        yield key, "expected a launcher such as srun: a queue allows more than one node"


def _queue_names(values: Mapping[str, Any]) -> Iterator[Finding]:
    seen: set[str] = set()
    for index, queue in _queues(values):
        name = queue.get("name")
        if isinstance(name, str) and name in seen:
            yield ("queues", index, "name"), f"expected each queue once; {name!r} is here twice"
        seen.add(str(name))


def _bins_leave_time(values: Mapping[str, Any]) -> Iterator[Finding]:
    lost_s = sum(
        _duration(_part(values, part).get(key), default)
        for part, key, default in (("planning", "boot_margin", 60), ("runner", "drain_margin", 60))
    )
    for key, item in _bins(values):
        walltime_s = _duration(item.get("walltime"), float("inf"))
        if walltime_s <= lost_s:
            yield (
                (*key, "walltime"),
                "expected more than boot_margin and drain_margin together "
                f"({format_duration(lost_s)}): nothing could run",
            )


def _virtual_nodes(values: Mapping[str, Any]) -> Iterator[Finding]:
    nodes = _part(values, "local").get("nodes", 2)
    if values.get("batch_system") != "local" or not isinstance(nodes, int):
        return
    for key, item in _bins(values):
        if _nodes(item)[0] > nodes:
            yield (*key, "nodes"), f"expected no more than the {nodes} virtual nodes of local.nodes"


def _planning(values: Mapping[str, Any]) -> Iterator[Finding]:
    planning = _part(values, "planning")
    least = _duration(planning.get("walltime_min"), 0)
    most = _duration(planning.get("walltime_max"), float("inf"))
    largest = max(
        (_duration(item.get("walltime"), float("inf")) for _, item in _bins(values)),
        default=float("inf"),
    )
    if least > most:
        yield ("planning", "walltime_min"), "expected at most planning.walltime_max"
    if least > largest:
        text = format_duration(largest)
        yield ("planning", "walltime_min"), f"expected at most the longest bin's walltime ({text})"
    if 0 < most <= _duration(planning.get("boot_margin"), 60):
        yield ("planning", "walltime_max"), "expected more than planning.boot_margin"


_RULES: tuple[Callable[[Mapping[str, Any]], Iterator[Finding]], ...] = (
    _account,
    _spool,
    _launcher,
    _queue_names,
    _bins_leave_time,
    _virtual_nodes,
    _planning,
)


def _part(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = values.get(name)
    return part if isinstance(part, dict) else {}


def _queues(values: Mapping[str, Any]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    queues = values.get("queues")
    for index, queue in enumerate(queues if isinstance(queues, list) else ()):
        if isinstance(queue, dict):
            yield index, queue


def _bins(values: Mapping[str, Any]) -> Iterator[tuple[Key, Mapping[str, Any]]]:
    for index, queue in _queues(values):
        bins = queue.get("bins")
        for place, item in enumerate(bins if isinstance(bins, list) else ()):
            if isinstance(item, dict):
                yield ("queues", index, "bins", place), item


def _nodes(item: Mapping[str, Any]) -> tuple[int, int]:
    try:
        return parse_nodes(item.get("nodes"))
    except ValueError:
        return 0, 0


def _largest(values: Mapping[str, Any]) -> int:
    return max((_nodes(item)[1] for _, item in _bins(values)), default=0)


def _duration(value: object, default: float) -> float:
    try:
        return default if value is None else parse_duration_s(value)
    except ValueError:
        return default
