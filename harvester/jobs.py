"""The batch job that an allocation becomes at a site. Pure: daemon and ``site render`` agree."""

from __future__ import annotations

from pathlib import Path

from harvester.batch.port import BatchJob
from harvester.errors import InputError, Problem
from harvester.model import Tag
from harvester.quantities import format_duration
from harvester.site import Queue, Site, WalltimeBin
from payload_runner.protocol import AllocationPlan, SpoolPaths


def plan_of(
    site: Site, spool_id: str, *, tag: str, nodes: int, walltime_s: float, idle_exit_s: float
) -> AllocationPlan:
    """What the runner of an allocation at this site is to know."""
    runner = site.runner
    return AllocationPlan(
        tag=tag,
        spool_id=spool_id,
        nodes=nodes,
        node=site.node,
        walltime_s=walltime_s,
        batch_system=site.batch_system,
        launcher=runner.launcher,
        mpi_launcher=runner.mpi_launcher,
        transport=runner.transport,
        filesystem=site.filesystem,
        node_local_dir=runner.node_local_dir,
        keep_workdirs=runner.keep_workdirs,
        drain_margin_s=runner.drain_margin_s,
        idle_exit_s=idle_exit_s,
        container_runtime=site.container_runtime,
        image_dir=site.image_dir,
        container_images=site.container_images,
        container_options=site.container_options,
        environment=runner.environment,
    )


def join_plan(site: Site, spool_id: str) -> AllocationPlan:
    """What a user's own allocation at this site needs to know; tag and size are its own."""
    idle_exit_s = site.runner.idle_exit_s
    return plan_of(site, spool_id, tag="", nodes=1, walltime_s=0.0, idle_exit_s=idle_exit_s)


def job_of(
    site: Site,
    *,
    tag: Tag,
    nodes: int,
    walltime_s: float,
    queue: str,
    runner: Path,
) -> BatchJob:
    """The job of an allocation with this tag; ``runner`` is the payload runner's zipapp."""
    command = (site.runner.python, str(runner), "lead", str(site.spool), str(tag))
    rules = site.submission
    found = next((item for item in site.queues if item.name == queue), None)
    return BatchJob(
        tag=tag,
        nodes=nodes,
        walltime_s=walltime_s,
        directory=SpoolPaths(site.spool).allocation(tag).root,
        command=command,
        queue=queue,
        queue_kind=found.kind if found else "queue",
        account=site.account,
        requeue=site.requeue,
        held=rules.held,
        gpus_per_node=0 if rules.gpu_request == "none" else site.node.gpus,
        gpu_request=rules.gpu_request,
        cores_per_node=site.node.cores if rules.cores else 0,
        memory_mb_per_node=site.node.memory_mb if rules.memory else 0,
        warn_s=site.runner.drain_margin_s,
        directives=(*site.directives, *(found.directives if found else ())),
        prologue=site.runner.prologue,
    )


def choose_queue(
    site: Site, nodes: int, walltime_s: float | None, queue: str | None = None
) -> tuple[str, float]:
    """The first queue that takes this shape, and its walltime: as asked, or the bin's longest.

    Queues that searches use come first.

    Raises:
        InputError: no queue (or not the one named) takes it; names the bin that comes closest.
    """
    if walltime_s == 0:
        expected = "expected more than nothing, or no walltime for the longest"
        raise InputError(Problem(f"site {site.name}", "walltime", "0", expected))
    queues = [item for item in site.queues if queue in (None, item.name)]
    queues.sort(key=lambda item: item.name not in site.planning.queues and not item.planned)
    if not queues:
        names = ", ".join(item.name for item in site.queues)
        raise InputError(Problem(f"site {site.name}", "queue", repr(queue), f"expected {names}"))
    refused = []
    for item in queues:
        for limits in item.bins:
            if not limits.nodes_min <= nodes <= limits.nodes_max:
                continue
            if walltime_s is None or walltime_s <= limits.walltime_max_s:
                return item.name, limits.walltime_max_s if walltime_s is None else walltime_s
            refused.append((item, limits))
    raise InputError(_refusal(site, nodes, walltime_s, refused, queues))


def _refusal(
    site: Site,
    nodes: int,
    walltime_s: float | None,
    refused: list[tuple[Queue, WalltimeBin]],
    queues: list[Queue],
) -> Problem:
    where = f"site {site.name}"
    if refused and walltime_s is not None:
        item, limits = max(refused, key=lambda pair: pair[1].walltime_max_s)
        most = format_duration(limits.walltime_max_s)
        expected = f"expected at most {most}, the bin of {_nodes(limits)} nodes in {item.name}"
        return Problem(where, "walltime", format_duration(walltime_s), expected)
    bins = [f"{_nodes(limits)} ({item.name})" for item in queues for limits in item.bins]
    return Problem(where, "nodes", str(nodes), f"expected one of the bins {', '.join(bins)}")


def _nodes(limits: WalltimeBin) -> str:
    return f"{limits.nodes_min}-{limits.nodes_max}"
