"""What must hold between the keys of a site file. Pure; reads values that may be half wrong.

Types and single values are the schema's business. These rules see the raw values, so that one run
shows broken types and broken rules together; a part whose type is wrong is passed over here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from harvester import directives
from harvester.mpi_launchers import PLACEHOLDERS
from harvester.quantities import format_duration, parse_duration_s, parse_instant, parse_nodes

Key = tuple[str | int, ...]
Finding = tuple[Key, str]  # the key concerned, and the sentence

# Slurm: --mem, --mem-per-cpu, --mem-per-gpu; PBS and Grid Engine: -l mem=, select=...:mem=.
_MEMORY_REQUEST = re.compile(r"--mem\b|--mem-per-|\b(?:p?v?mem|h_vmem|mem_free)=|\brusage\[mem=")
# With what agents are usually started there; without a launcher they all run on one host.
_LAUNCHED_BY = {
    "slurm": "srun",
    "pbs": "mpiexec",
    "lsf": "jsrun",
    "flux": "flux run",
    "gridengine": "qrsh -inherit",
}
MPI_LAUNCHERS = (
    "aprun",
    "flux",
    "ibrun",
    "jsrun",
    "mpiexec",
    "mpiexec.hydra",
    "mpirun",
    "prterun",
    "srun",
)
_PLACEHOLDER = re.compile(r"\{\w+\}")
LAUNCHERS = ("flux", "jsrun", "mpiexec", "mpirun", "qrsh", "srun")
_LAUNCHER_PLACEHOLDERS = ("{nodes}", "{cores}", "{gpus}")


def broken_rules(values: Mapping[str, Any]) -> list[Finding]:
    """Every rule that a merged site file breaks."""
    return [finding for rule in _RULES for finding in rule(values)]


def _planned_queues(values: Mapping[str, Any]) -> Iterator[Finding]:
    wanted = _part(values, "planning").get("queues") or []
    queues = [queue for _, queue in _queues(values)]
    names = [queue["name"] for queue in queues if isinstance(queue.get("name"), str)]
    for name in wanted if isinstance(wanted, list) else ():
        if name not in names:
            expected = f"expected names of queues: {', '.join(names)}"
            yield ("planning", "queues"), f"{name!r} is none of this site's; {expected}"
    if queues and not wanted and all(queue.get("planned") is False for queue in queues):
        yield ("queues",), "expected a queue without `planned: false`, or planning.queues"


def _filesystems(values: Mapping[str, Any]) -> Iterator[Finding]:
    submission = _part(values, "submission")
    if submission.get("filesystems_required") is not True or submission.get("filesystems"):
        return
    if not any("filesystems=" in line for line in _directives(values)):
        yield (
            ("submission", "filesystems"),
            "expected the file systems that jobs need, such as [home, eagle]: this centre "
            "starts no job that does not name them (-l filesystems=)",
        )


def _gpu_request(values: Mapping[str, Any]) -> Iterator[Finding]:
    asks = _part(values, "submission").get("gpu_request", "gres") != "none"
    asks = asks and bool(_part(values, "node").get("gpus"))
    asks = asks or any("gpu" in line for line in _directives(values))
    for index, queue in _queues(values):
        least = queue.get("gpus_min")
        if isinstance(least, int) and least > 0 and not asks:
            yield (
                ("queues", index, "gpus_min"),
                f"queue {queue.get('name')} takes jobs only with a GPU request ({least} or "
                "more); expected node.gpus above 0 and submission.gpu_request other than none",
            )


def _containers_only(values: Mapping[str, Any]) -> Iterator[Finding]:
    containers = _part(values, "containers")
    if containers.get("only") is True and containers.get("runtime", "none") == "none":
        yield ("containers", "runtime"), "expected a runtime: bare payloads are refused here"


def _memory_request(values: Mapping[str, Any]) -> Iterator[Finding]:
    if _part(values, "submission").get("memory_request") is not False:
        return
    keys: list[tuple[Key, Mapping[str, Any]]] = [((), values)]
    keys += [(("queues", index), queue) for index, queue in _queues(values)]
    for key, part in keys:
        for line in _lines(part):
            if _MEMORY_REQUEST.search(line):
                sentence = f"{line!r} asks for memory, which jobs of this centre cannot do; drop it"
                yield (*key, "directives"), sentence


def _own_words(values: Mapping[str, Any]) -> Iterator[Finding]:
    """Directives that say what the harvester says of each job."""
    kinds = {index: str(queue.get("kind", "queue")) for index, queue in _queues(values)}
    parts: list[tuple[Key, Mapping[str, Any], frozenset[str]]]
    parts = [((), values, frozenset(kinds.values()))]
    parts += [
        (("queues", index), queue, frozenset((kinds[index],))) for index, queue in _queues(values)
    ]
    for key, part, concerned in parts:
        for line in _lines(part):
            sentence = directives.refusal(values.get("batch_system"), line, concerned)
            if sentence is not None:
                yield (*key, "directives"), sentence


def _routing(values: Mapping[str, Any]) -> Iterator[Finding]:
    for router, behind in _part(values, "routing_queues").items():
        for index, queue in _queues(values):
            if isinstance(behind, list) and queue.get("name") in behind:
                yield (
                    ("queues", index, "name"),
                    f"queue {queue['name']} takes no submissions; submit to {router}, which "
                    "routes jobs to it",
                )


def _gpu_order(values: Mapping[str, Any]) -> Iterator[Finding]:
    node = _part(values, "node")
    order, gpus = node.get("gpu_order"), node.get("gpus", 0)
    if isinstance(order, list) and order and isinstance(gpus, int):
        words = [word for word in order if isinstance(word, str)]
        if len(order) != gpus or len(set(words)) != len(words):
            yield ("node", "gpu_order"), f"expected each of the node's {gpus} GPUs once"


def _query_interval(values: Mapping[str, Any]) -> Iterator[Finding]:
    budgets = _part(values, "budgets")
    least_s = _duration(budgets.get("query_interval_min"), 0)
    if _duration(budgets.get("query_interval"), 60) < least_s:
        yield (
            ("budgets", "query_interval"),
            f"expected at least {format_duration(least_s)}, what this centre asks for",
        )


def _reservations(values: Mapping[str, Any]) -> Iterator[Finding]:
    windows = values.get("reservations")
    for index, window in enumerate(windows if isinstance(windows, list) else ()):
        if not isinstance(window, dict):
            continue
        try:
            start, end = parse_instant(window.get("from")), parse_instant(window.get("to"))
        except ValueError:
            continue
        if end <= start:
            yield ("reservations", index, "to"), "expected an instant after `from`"


def _account(values: Mapping[str, Any]) -> Iterator[Finding]:
    if values.get("account_required") is True and not values.get("account"):
        yield ("account",), "expected your project's account: this centre requires one"


def _project_limits(values: Mapping[str, Any]) -> Iterator[Finding]:
    if values.get("account") or values.get("batch_system") == "local":
        return
    if values.get("account_required") is True:  # is told that already
        return
    for index, queue in _queues(values):
        if queue.get("limits_per") == "project":
            yield (
                ("queues", index, "limits_per"),
                f"queue {queue.get('name')} counts the jobs of a project; expected its `account`",
            )


def _spool(values: Mapping[str, Any]) -> Iterator[Finding]:
    if values.get("batch_system") not in (None, "local") and not _part(values, "spool").get("path"):
        yield ("spool", "path"), "expected a directory on the shared file system, such as $SCRATCH"


def _remote(values: Mapping[str, Any]) -> Iterator[Finding]:
    """Of a site on the other side of an ssh connection: nothing there follows from here."""
    if not isinstance(values.get("remote"), dict):
        return
    if values.get("batch_system") == "local":
        yield ("remote",), "expected a real batch system: `local` runs jobs on this machine only"
    if _part(values, "spool").get("filesystem") == "local":
        yield ("spool", "filesystem"), "expected shared: the spool is on another host"
    for part, name in (("spool", "path"), ("containers", "image_dir")):
        path = _part(values, part).get(name)
        if isinstance(path, str) and path[:1] in ("$", "~"):
            yield (
                (part, name),
                f"expected the path as it is on {_part(values, 'remote').get('host')}, from /: "
                "variables and ~ of this host mean nothing there",
            )


def _by_hand(values: Mapping[str, Any]) -> Iterator[Finding]:
    central = _part(values, "central")
    if central.get("kind") == "bundles" and central.get("url"):
        yield ("central", "url"), "expected none: with `kind: bundles` no service is called"


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
    elif not words and values.get("batch_system") in _LAUNCHED_BY and _largest(values) > 1:
        usual = _LAUNCHED_BY[values["batch_system"]]
        yield key, f"expected a launcher such as {usual}: a queue allows more than one node"
    for name in _PLACEHOLDER.findall(" ".join(words)):
        if name not in _LAUNCHER_PLACEHOLDERS:
            yield key, f"unknown placeholder {name}; expected {', '.join(_LAUNCHER_PLACEHOLDERS)}"


def _node_local(values: Mapping[str, Any]) -> Iterator[Finding]:
    path = _part(values, "runner").get("node_local_dir")
    if isinstance(path, str) and path and path[0] not in "/$":
        yield (
            ("runner", "node_local_dir"),
            "expected an absolute path, or one that begins with a variable that nodes have",
        )


def _mpi_launcher(values: Mapping[str, Any]) -> Iterator[Finding]:
    given = _part(values, "runner").get("mpi_launcher") or []
    words = given.split() if isinstance(given, str) else given
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words) or not words:
        return
    key = ("runner", "mpi_launcher")
    line = " ".join(words)
    for name in _PLACEHOLDER.findall(line):
        if name not in PLACEHOLDERS:
            yield key, f"unknown placeholder {name}; expected {', '.join(PLACEHOLDERS)}"
    if PurePosixPath(words[0]).name not in MPI_LAUNCHERS:
        yield key, f"unknown launcher {words[0]!r}; expected one of {', '.join(MPI_LAUNCHERS)}"
    elif "{ranks}" not in line and "{erf}" not in line:
        yield key, "expected {ranks}, how many the payload has (or {erf}, jsrun's resource file)"


def _transport(values: Mapping[str, Any]) -> Iterator[Finding]:
    runner = _part(values, "runner")
    given = runner.get("launcher") or []
    words = given.split() if isinstance(given, str) else given
    if runner.get("transport") != "mpi" or not isinstance(words, list) or not words:
        return
    if PurePosixPath(str(words[0])).name == "qrsh":
        key = ("runner", "transport")
        yield key, "expected another one: qrsh starts no MPI ranks (auto, tcp or files)"


def _requeue(values: Mapping[str, Any]) -> Iterator[Finding]:
    if values.get("requeue") is True and values.get("batch_system") == "flux":
        yield ("requeue",), "expected false: Flux starts no job a second time"


def _queue_names(values: Mapping[str, Any]) -> Iterator[Finding]:
    seen: set[str] = set()
    for index, queue in _queues(values):
        name = queue.get("name")
        if isinstance(name, str) and name in seen:
            yield ("queues", index, "name"), f"expected each queue once; {name!r} is here twice"
        seen.add(str(name))


def _bins_leave_time(values: Mapping[str, Any]) -> Iterator[Finding]:
    lost_s = _lost_s(values)
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
    lost_s = _lost_s(values)
    if 0 < most <= lost_s:
        yield (
            ("planning", "walltime_max"),
            "expected more than planning.boot_margin and runner.drain_margin together "
            f"({format_duration(lost_s)})",
        )


def _nodes_in_bins(values: Mapping[str, Any]) -> Iterator[Finding]:
    most = _part(values, "planning").get("nodes_max")
    bins = [(_nodes(item)[0], key) for key, item in _bins(values)]
    if isinstance(most, int) and bins and most < min(bins)[0]:
        least, key = min(bins)
        queue = values["queues"][key[1]].get("name")
        yield (
            ("planning", "nodes_max"),
            f"expected at least {least}, where the smallest bin begins (queue {queue})",
        )


_RULES: tuple[Callable[[Mapping[str, Any]], Iterator[Finding]], ...] = (
    _account,
    _project_limits,
    _spool,
    _remote,
    _by_hand,
    _launcher,
    _mpi_launcher,
    _node_local,
    _transport,
    _requeue,
    _queue_names,
    _bins_leave_time,
    _virtual_nodes,
    _planning,
    _nodes_in_bins,
    _planned_queues,
    _filesystems,
    _gpu_request,
    _containers_only,
    _memory_request,
    _own_words,
    _routing,
    _gpu_order,
    _query_interval,
    _reservations,
)


def _lost_s(values: Mapping[str, Any]) -> float:
    boot_s = _duration(_part(values, "planning").get("boot_margin"), 60)
    return boot_s + _duration(_part(values, "runner").get("drain_margin"), 60)


def _directives(values: Mapping[str, Any]) -> list[str]:
    """The directives of the site and of its queues."""
    return [*_lines(values), *(line for _, queue in _queues(values) for line in _lines(queue))]


def _lines(part: Mapping[str, Any]) -> list[str]:
    given = part.get("directives")
    return [line for line in given if isinstance(line, str)] if isinstance(given, list) else []


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
