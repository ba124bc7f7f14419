"""A site as text: what the harvester makes of its file. Pure."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from harvester.config import Origin, SiteFile
from harvester.quantities import format_duration, format_instant
from harvester.site import Queue, Site
from harvester.views.text import WIDTH, clean, columns


def site_screen(found: SiteFile) -> str:
    """The site's values, what the policy decided, and where each value comes from."""
    site = found.site
    lines = [f"{site.name}: {clean(site.description) or 'no description'}"]
    lines += [f"  {name:<14} {clean(value)}" for name, value in _values(site)]
    lines += ["", _queue_table(site)]
    if found.rulings:
        lines += ["", "  Decided by the administrator's policy:"]
        lines += [
            f"    {ruling.key} is {clean(ruling.value)} (the site file says "
            f"{clean(ruling.instead_of)})"
            for ruling in found.rulings
        ]
    lines += ["", "  Where the values come from:", *_sources(found.origins)]
    lines += ["", "  Read from, the first wins:"]
    lines += [f"    {path}" for path in found.layers]
    return "\n".join(lines)


def site_json(found: SiteFile) -> dict[str, Any]:
    """The same for programs."""
    return {
        **dataclasses.asdict(found.site),
        "layers": [str(path) for path in found.layers],
        "origins": [dataclasses.asdict(origin) for origin in found.origins],
        "policy": [dataclasses.asdict(ruling) for ruling in found.rulings],
    }


def _sources(origins: Sequence[Origin]) -> Iterator[str]:
    grouped: dict[str, list[str]] = {}
    for origin in origins:
        grouped.setdefault(_words(origin), []).append(origin.key)
    for source, keys in grouped.items():
        yield f"    {clean(source)}:"
        yield from textwrap.wrap(
            clean(", ".join(keys)), WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6
        )


def _words(origin: Origin) -> str:
    match origin.source:
        case None:
            return f"set in {origin.file}"
        case "unsourced":
            return "UNSOURCED, from general knowledge; check with the centre"
        case "chosen":
            return "chosen here, not the centre's"
    return origin.source if origin.date is None else f"{origin.source} ({origin.date})"


def _values(site: Site) -> Iterator[tuple[str, object]]:
    node, budgets, planning = site.node, site.budgets, site.planning
    yield "batch system", site.batch_system
    yield "account", site.account or "-"
    memory = f", {node.memory_mb / 1000:g} GB" if node.memory_mb else ""
    yield "node", f"{node.gpus} GPUs ({node.gpu_variable}), {node.cores} cores{memory}"
    yield "spool", f"{site.spool} ({site.filesystem} file system)"
    if site.remote is not None:
        yield "over ssh", f"{site.remote.host}, where the spool is; state and index are here"
    yield "state", site.state_dir
    yield "index", site.index
    yield "central", site.central.url or "the one that runs on this machine"
    yield "runner", f"{site.runner.python}, transport {site.runner.transport}"
    yield "launcher", " ".join(site.runner.launcher) or "none"
    yield "MPI launcher", " ".join(site.runner.mpi_launcher) or "none"
    only = ", bare payloads are refused" if site.containers_only else ""
    yield "containers", f"{site.container_runtime}{only}"
    yield "network", _network(site)
    for window in site.reservations:
        start, end = format_instant(window.start), format_instant(window.end)
        yield "maintenance", f"{start} to {end}: {window.why}"
    yield (
        "budgets",
        f"a query every {format_duration(budgets.query_interval_s)}, "
        f"{budgets.submissions_per_hour} submissions an hour, "
        f"{budgets.jobs_in_flight} jobs in flight",
    )
    if site.submission.held:
        yield "submission", "held: `harvester alloc release` lets a job start"
    yield (
        "margins",
        f"{format_duration(planning.boot_margin_s)} to start, "
        f"{format_duration(site.runner.drain_margin_s)} to end",
    )


_REACH = {
    "none": "compute nodes reach nothing outside",
    "proxy": "compute nodes reach the outside through a proxy",
    "outbound": "compute nodes reach the outside",
    "unknown": "not known what compute nodes reach",
}


def _network(site: Site) -> str:
    found = [_REACH[site.network.compute]]
    if site.network.unset_proxy:
        found.append("the login node's proxy is not used")
    if site.network.inter_job is not None:
        reach = "reach" if site.network.inter_job else "do not reach"
        found.append(f"nodes of different jobs {reach} each other")
    return "; ".join(found)


def _queue_words(queue: Queue, site: Site) -> str:
    wanted = site.planning.queues
    used = queue.name in wanted if wanted else queue.planned
    words = ["routes"] * bool(queue.routes_to) + ["not used"] * (not used)
    return queue.name + (f" ({', '.join(words)})" if words else "")


def _queue_table(site: Site) -> str:
    rows = [
        (
            _queue_words(queue, site),
            f"{item.nodes_min}-{item.nodes_max}",
            format_duration(item.walltime_max_s),
            queue.queued_max,
            queue.running_max,
            queue.total_max,
        )
        for queue in site.queues
        for item in queue.bins
    ]
    headers = ("queue", "nodes", "walltime", "queued max", "running max", "total max")
    return columns(headers, rows, indent="  ")
