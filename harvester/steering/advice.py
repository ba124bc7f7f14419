"""What to tell a user about a sound task: what it will waste, and what a site cannot give it."""

from __future__ import annotations

import math
from collections.abc import Iterator

from harvester.errors import InputError, Problem
from harvester.quantities import format_duration
from harvester.site import Queue, Site, WalltimeBin
from harvester.steering.definition import TaskDefinition
from harvester.steering.options import notes
from harvester.steering.problems import shown


def warnings(definition: TaskDefinition, site: Site | None = None) -> tuple[str, ...]:
    """Sentences about what is allowed but probably not meant; none of them stops a task."""
    found = [*notes(definition.config), *_idle_gpus(definition, site), *_limits(definition)]
    return tuple(found)


def check_against_site(
    definition: TaskDefinition, site: Site, *, file: str = "task document"
) -> None:
    """Refuse a task that this site can never run; ``file`` is what the task was read from.

    Raises:
        InputError: everything it asks for that the site does not have, with the queue's bin.
    """
    problems = [
        Problem(f"{file}: site {site.name}", key, value, expected)
        for key, value, expected in (
            *_node_problems(definition, site),
            *_queue_problems(definition, site),
            *_other_problems(definition, site),
        )
    ]
    if problems:
        raise InputError(problems)


# --- warnings ---


def _idle_gpus(definition: TaskDefinition, site: Site | None) -> Iterator[str]:
    parallel, total = definition.parallel, definition.total_points
    slots = _slots(definition, site) if site is not None else 0
    if parallel < min(slots, total) and site is not None:
        yield (
            f"nParallelEvaluation is {parallel}, but one node of {site.name} holds {slots} of "
            f"these payloads: {slots - parallel} places stay idle; raise it to {slots} or more"
        )
    elif parallel == 1 and total > 1:
        yield (
            "nParallelEvaluation is 1: points run one after another and all GPUs but one payload's "
            "stay idle; raise it to the number of points that should run at a time"
        )
    iteration = definition.points_per_iteration
    if iteration is not None and iteration < parallel:
        yield (
            f"nPointsPerIteration ({iteration}) is below nParallelEvaluation ({parallel}): an "
            "iteration cannot fill the places"
        )


def _slots(definition: TaskDefinition, site: Site) -> int:
    """How many of these payloads run on one node at a time; 0 where one needs several nodes."""
    shape = definition.payload.shape
    if shape.nodes_min > 1 or shape.gpus_per_node <= 0 or site.node.gpus <= 0:
        return 0
    if shape.gpus_per_node < 1:
        return site.node.gpus * math.floor(1 / shape.gpus_per_node + 1e-9)
    return int(site.node.gpus // shape.gpus_per_node)


def _limits(definition: TaskDefinition) -> Iterator[str]:
    if definition.max_evaluation_jobs < definition.max_points:
        yield (
            f"maxEvaluationJobs ({definition.max_evaluation_jobs}) is below maxPoints "
            f"({definition.max_points}): the search ends early"
        )
    sizes = [space.grid_size() for space in definition.spaces]
    smallest = min((size for size in sizes if size is not None), default=None)
    if smallest is not None and smallest < definition.max_points:
        yield (
            f"the search space has at most {smallest} points and maxPoints is "
            f"{definition.max_points}: points will repeat (with the grid sampler, the search ends)"
        )


# --- a site's limits: (key, value, what was expected) ---

_Found = Iterator[tuple[str, str, str]]


def _node_problems(definition: TaskDefinition, site: Site) -> _Found:
    shape, node = definition.payload.shape, site.node
    if shape.gpus_per_node > node.gpus:
        yield (
            "payload.gpus_per_node",
            f"{shape.gpus_per_node:g}",
            f"expected at most {node.gpus}, the GPUs of one node",
        )
    if shape.cores_per_node > node.cores:
        yield (
            *_given(definition, "cores", "cores_per_node"),
            f"expected at most {node.cores}, the cores of one node",
        )
    if 0 < node.memory_mb < shape.memory_mb_per_node:
        yield (
            *_given(definition, "memory", "memory_mb"),
            f"expected at most {node.memory_mb} MB, the memory of one node",
        )


def _given(definition: TaskDefinition, *names: str) -> tuple[str, str]:
    """Key and value, as the user wrote them, of a setting that has several names."""
    section = definition.document["payload"]
    name = next(name for name in names if section.get(name) is not None)
    return f"payload.{name}", shown(section[name])


def _queue_problems(definition: TaskDefinition, site: Site) -> _Found:
    nodes = definition.payload.shape.nodes_min
    bins = [(queue, item) for queue in site.queues for item in queue.bins]
    most = max((item.nodes_max for _, item in bins), default=0)
    if site.planning.nodes_max is not None:
        most = min(most, site.planning.nodes_max)
    if nodes > most:
        key = "elastic.min_nodes" if definition.payload.shape.start == "elastic" else "nodes"
        yield f"payload.{key}", str(nodes), f"expected at most {most} nodes ({_name_bins(bins)})"
        return
    # An allocation may be larger than the payload, so larger bins serve too.
    fitting = [(queue, item) for queue, item in bins if item.nodes_max >= nodes]
    yield from _walltime_problems(definition, site, fitting)


def _walltime_problems(
    definition: TaskDefinition, site: Site, bins: list[tuple[Queue, WalltimeBin]]
) -> _Found:
    expected = definition.payload.expected_s
    if expected is None or definition.checkpoint is not None:
        return
    longest = max(item.walltime_max_s for _, item in bins)
    if site.planning.walltime_max_s is not None:
        longest = min(longest, site.planning.walltime_max_s)
    usable = longest - site.planning.boot_margin_s - site.runner.drain_margin_s
    if expected > usable:
        yield (
            "payload.expected_minutes",
            f"{expected / 60:g}",
            f"expected at most {format_duration(usable)}, what the longest walltime leaves "
            f"({_name_bins(bins)}); shorten it or declare checkPointToSave",
        )


def _other_problems(definition: TaskDefinition, site: Site) -> _Found:
    if definition.container is not None and site.container_runtime == "none":
        yield (
            "evaluationContainer",
            definition.container.image,
            "this site has no container runtime; set containers.runtime in its file or leave the "
            "container out",
        )
    if definition.container is None and site.containers_only:
        yield "evaluationContainer", "", "expected an image: this site runs containers only"
    if definition.sites and site.name not in definition.sites:
        yield "site", ", ".join(definition.sites), f"expected {site.name} among the task's sites"


def _name_bins(bins: list[tuple[Queue, WalltimeBin]]) -> str:
    return "; ".join(
        f"queue {queue.name or 'default'}, {item.nodes_min}-{item.nodes_max} nodes: "
        f"{format_duration(item.walltime_max_s)}"
        for queue, item in bins[:6]
    )
