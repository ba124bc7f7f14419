"""Compares what a site file claims with what a probe job found. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from harvester.site import Site
from payload_runner.probe import ProbeReport
from payload_runner.probing import GPU_VARIABLES, Disk, NodeFound

# A file that takes longer to be seen comes from another host's cache.
LOCAL_WITHIN_S = 2.0
_NO_GPUS = ("", "NoDevFiles", "none", "None", "-1")
# Sockets below it get names that are too long: seen with Podman 4.3 at 52 characters, not at 44.
RUNROOT_CHARACTERS = 44
_ROOMY_MB = 10_000  # a disk below this is no place for training data


@dataclass(frozen=True, slots=True)
class Finding:
    """One claim beside its measurement. ``proposal`` is None where the claim holds."""

    key: str  # of the site file
    claimed: str
    measured: str
    proposal: object | None = None
    advice: str = ""  # where no value of the file is the cure


@dataclass(frozen=True, slots=True)
class Measured:
    """All that a probe job brought back."""

    nodes: tuple[NodeFound, ...]
    report: ProbeReport
    nodes_asked: int
    login_host: str

    @property
    def first(self) -> NodeFound:
        """Any one node: they are alike, or ``node`` findings say that they are not."""
        return self.nodes[0]


def judge(site: Site, measured: Measured) -> tuple[Finding, ...]:
    """Every claim that the probe can judge, in the order of the site file."""
    return tuple(finding for rule in _RULES for finding in rule(site, measured))


def are_good(findings: Iterable[Finding]) -> bool:
    """Whether nothing is to be changed."""
    return not any(item.proposal is not None or item.advice for item in findings)


def snippet(findings: Iterable[Finding]) -> str:
    """The corrections as YAML, to be laid over the site file; "" when there are none."""
    tree: dict[str, Any] = {}
    for item in findings:
        if item.proposal is not None:
            *outer, last = item.key.split(".")
            place = tree
            for part in outer:
                place = place.setdefault(part, {})
            place[last] = item.proposal
    return "\n".join(_yaml(tree, 0))


def _yaml(tree: dict[str, Any], depth: int) -> Iterator[str]:
    for key, value in tree.items():
        pad = "  " * depth
        if isinstance(value, dict):
            yield f"{pad}{key}:"
            yield from _yaml(value, depth + 1)
        else:
            yield f"{pad}{key}: {json.dumps(value)}"  # JSON is YAML


Rule = Callable[[Site, Measured], Iterator[Finding]]


def _filesystem(site: Site, measured: Measured) -> Iterator[Finding]:
    delay = measured.report.answer_s
    seen = (
        "the login node's answer was not seen in time"
        if delay is None
        else f"a file and its answer were seen within {delay:g} s"
    )
    is_other = measured.report.host != measured.login_host
    slow = delay is None or delay > LOCAL_WITHIN_S
    wrong = site.filesystem == "local" and is_other and slow
    advice = ""
    if delay is None and not wrong:
        advice = "see whether login and compute nodes share the spool's file system"
    yield Finding("spool.filesystem", site.filesystem, seen, "shared" if wrong else None, advice)


def _gpus(site: Site, measured: Measured) -> Iterator[Finding]:
    node = measured.first
    variable = _set_variable(site, node)
    given = _given(node, variable)
    count = len(node.gpus) if given is None else len(given)
    how = f"{variable}={node.gpu_variables[variable]}" if given is not None else "device files"
    claimed = str(site.node.gpus)
    proposal = None if count == site.node.gpus else count
    if given is None and not node.gpus and site.batch_system == "local":
        proposal = None  # its GPUs are numbers
    yield Finding("node.gpus", claimed, f"{count} ({how})", proposal)
    if given and variable != site.node.gpu_variable:
        yield Finding("node.gpu_variable", site.node.gpu_variable, variable, variable)
    yield from _order(site, node)


def _set_variable(site: Site, node: NodeFound) -> str:
    named = [site.node.gpu_variable, *GPU_VARIABLES]
    return next((name for name in named if name in node.gpu_variables), site.node.gpu_variable)


def _given(node: NodeFound, variable: str) -> list[str] | None:
    value = node.gpu_variables.get(variable)
    if value is None:
        return None
    return [] if value in _NO_GPUS else [name for name in value.split(",") if name]


def _order(site: Site, node: NodeFound) -> Iterator[Finding]:
    near = [cores[0] for cores in node.gpu_cores if cores]
    if len(near) != site.node.gpus or len(near) < 2:
        return
    order = [str(index) for index in sorted(range(len(near)), key=lambda index: near[index])]
    natural = [str(index) for index in range(len(near))]
    claimed = list(site.node.gpu_names) or natural
    proposal = None if claimed == order or len(set(near)) == 1 else order
    yield Finding("node.gpu_order", ",".join(claimed), ",".join(order), proposal)


def _cores(site: Site, measured: Measured) -> Iterator[Finding]:
    if site.batch_system == "local":
        return  # virtual nodes share this machine
    found = sorted({node.cores for node in measured.nodes})
    proposal = None if found == [site.node.cores] else found[0]
    text = " or ".join(str(number) for number in found)
    yield Finding("node.cores", str(site.node.cores), f"{text} for a process", proposal)


def _memory(site: Site, measured: Measured) -> Iterator[Finding]:
    if site.batch_system == "local":
        return
    found, claimed = min(node.memory_mb for node in measured.nodes), site.node.memory_mb
    proposal = f"{found}MB" if claimed == 0 or claimed > found else None
    yield Finding(
        "node.memory", f"{claimed} MB" if claimed else "not said", f"{found} MB", proposal
    )


def _python(site: Site, measured: Measured) -> Iterator[Finding]:
    versions = ", ".join(sorted({node.python for node in measured.nodes}))
    yield Finding("runner.python", site.runner.python, f"Python {versions}")


def _launcher(site: Site, measured: Measured) -> Iterator[Finding]:
    report, asked = measured.report, measured.nodes_asked
    claimed = " ".join(site.runner.launcher) or "none"
    hosts = len({node.host for node in measured.nodes})
    started = f"{len(measured.nodes)} processes on {hosts} of {asked} nodes"
    advice = ""
    if len(measured.nodes) != asked or hosts != asked:
        advice = "the launcher has to start one process on every node of the job"
    elif report.nodes.code != 0:
        advice = f"the launcher ends with {report.nodes.code}: {_last(report.nodes.words)}"
    yield Finding("runner.launcher", claimed, started, None, advice)
    if report.nested is not None:
        yield _nested(site, measured)


def _nested(site: Site, measured: Measured) -> Finding:
    nested = measured.report.nested
    assert nested is not None
    words = list(site.runner.launcher)
    if nested.code == 0 and nested.processes == measured.nodes_asked:
        text = f"a second call beside it works, {nested.seconds:g} s"
        return Finding("runner.launcher", " ".join(words), text)
    waited = "did not come to its end" if nested.code is None else f"exit code {nested.code}"
    text = f"a second call beside it: {waited}, {nested.processes} processes"
    if words[0].rpartition("/")[2] == "srun" and "--overlap" not in words:
        return Finding("runner.launcher", " ".join(words), text, [*words, "--overlap"])
    advice = f"multi-node payloads need it; it says: {_last(nested.words)}"
    return Finding("runner.launcher", " ".join(words), text, None, advice)


def _last(words: str) -> str:
    return words.strip().rpartition("\n")[2][:200] or "nothing"


def _node_local(site: Site, measured: Measured) -> Iterator[Finding]:
    if site.batch_system == "local":
        return
    claimed, disks = site.runner.node_local_dir, measured.first.disks
    best = _best(disks)
    if claimed is None:
        roomy = best is not None and best.free_mb >= _ROOMY_MB
        yield Finding(
            "runner.node_local_dir",
            "none",
            _described(best) if best else "no disk of the node's own",
            best.path if best is not None and roomy else None,
        )
        return
    # It was looked at first, with its variables replaced.
    mine = disks[0] if disks else None
    good = mine is not None and mine.writable and not mine.is_shared
    proposal = None if good else (best.path if best else None)
    advice = "" if good or best else "leave it out: nodes have no disk of their own"
    yield Finding("runner.node_local_dir", claimed, _described(mine), proposal, advice)


def _best(disks: Sequence[Disk]) -> Disk | None:
    own = [disk for disk in disks if disk.writable and not disk.is_shared and not disk.is_memory]
    # The root's own disk serves everybody; a place of its own is meant for us.
    return max(own, key=lambda disk: (disk.path != "/tmp", disk.free_mb), default=None)  # nosec B108


def _described(disk: Disk | None) -> str:
    if disk is None or not disk.filesystem:
        return "is not there"
    kind = "shared" if disk.is_shared else "memory" if disk.is_memory else "the node's own"
    access = "" if disk.writable else ", not writable"
    return f"{disk.path}: {disk.filesystem} ({kind}), {disk.free_mb} MB free{access}"


def _containers(site: Site, measured: Measured) -> Iterator[Finding]:
    found = measured.first.runtimes
    text = ", ".join(found) or "none on PATH"
    claimed = site.container_runtime
    wrong = claimed != "none" and claimed not in found
    proposal = (found[0] if found else "none") if wrong else None
    yield Finding("containers.runtime", claimed, text, proposal)
    runroot = measured.first.podman_runroot
    if claimed == "podman" and len(runroot) > RUNROOT_CHARACTERS:
        advice = (
            f"Podman's runroot has {len(runroot)} characters; beyond {RUNROOT_CHARACTERS} some "
            "releases learn of the end of a container 20 s late: name a shorter one in "
            "storage.conf before its first image is brought"
        )
        yield Finding("containers.runtime", claimed, f"runroot {runroot}", advice=advice)


def _network(site: Site, measured: Measured) -> Iterator[Finding]:
    node, claimed = measured.first, site.network.compute
    if not node.has_route:
        measured_text, value = "no route out", "none"
    elif node.has_proxy:
        measured_text, value = "a route out, and a proxy in the environment", "proxy"
    else:
        # Whether anything answers out there is not tried: that would be somebody else's host.
        measured_text, value = "a route out", "outbound"
    contradicts = value == "none" and claimed != "none"
    is_virtual = site.batch_system == "local"
    proposal = value if contradicts and not is_virtual else None
    yield Finding("network.compute", claimed, measured_text, proposal)


_RULES: tuple[Rule, ...] = (
    _filesystem,
    _gpus,
    _cores,
    _memory,
    _python,
    _launcher,
    _node_local,
    _containers,
    _network,
)
