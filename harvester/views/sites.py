"""A site as text: what the harvester makes of its file. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harvester.quantities import format_duration
from harvester.site import Queue, Site
from harvester.views.text import clean, columns


def site_screen(site: Site, layers: Sequence[Path]) -> str:
    """The site's values, and the files they come from, the topmost first."""
    lines = [f"{site.name}: {clean(site.description) or 'no description'}"]
    lines += [f"  {name:<14} {clean(value)}" for name, value in _values(site)]
    lines += ["", _queue_table(site.queues), "", "  Read from, the first wins:"]
    lines += [f"    {path}" for path in layers]
    return "\n".join(lines)


def site_json(site: Site, layers: Sequence[Path]) -> dict[str, Any]:
    """The same for programs."""
    return {**dataclasses.asdict(site), "layers": [str(path) for path in layers]}


def _values(site: Site) -> Iterator[tuple[str, object]]:
    node, budgets, planning = site.node, site.budgets, site.planning
    yield "batch system", site.batch_system
    yield "account", site.account or "-"
    memory = f", {node.memory_mb / 1000:g} GB" if node.memory_mb else ""
    yield "node", f"{node.gpus} GPUs ({node.gpu_variable}), {node.cores} cores{memory}"
    yield "spool", f"{site.spool} ({site.filesystem} file system)"
    yield "state", site.state_dir
    yield "index", site.index
    yield "central", site.central.url or "the one that runs on this machine"
    yield "runner", f"{site.runner.python}, transport {site.runner.transport}"
    yield "launcher", " ".join(site.runner.launcher) or "none"
    yield "containers", site.container_runtime
    yield (
        "budgets",
        f"a query every {format_duration(budgets.query_interval_s)}, "
        f"{budgets.submissions_per_hour} submissions an hour, "
        f"{budgets.jobs_in_flight} jobs in flight",
    )
    yield (
        "margins",
        f"{format_duration(planning.boot_margin_s)} to start, "
        f"{format_duration(site.runner.drain_margin_s)} to end",
    )


def _queue_table(queues: Sequence[Queue]) -> str:
    rows = [
        (
            queue.name,
            f"{item.nodes_min}-{item.nodes_max}",
            format_duration(item.walltime_max_s),
            queue.queued_max,
            queue.running_max,
            queue.total_max,
        )
        for queue in queues
        for item in queue.bins
    ]
    headers = ("queue", "nodes", "walltime", "queued max", "running max", "total max")
    return columns(headers, rows, indent="  ")
