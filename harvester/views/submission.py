"""What a task submission would send, as text. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator

from harvester.quantities import format_duration
from harvester.steering.definition import TaskDefinition
from harvester.views.text import WIDTH, clean, shorten

FILES_SHOWN = 12


def submission_screen(definition: TaskDefinition) -> str:
    """The search, its payload, its space and its files."""
    lines = [f"Would submit {clean(definition.name)!r}; nothing was sent."]
    for section in (_search, _payload, _space, _files):
        lines.extend(section(definition))
    return "\n".join(lines)


def _search(definition: TaskDefinition) -> Iterator[str]:
    segments = f" in {len(definition.segments)} segments" if definition.segments else ""
    yield f"  points      {definition.total_points}{segments}, {definition.parallel} at a time"
    if definition.points_per_iteration is None:
        asked = "one as soon as a result is told"
    else:
        asked = (
            f"{definition.points_per_iteration} per iteration, the next below "
            f"{definition.min_unevaluated_points} unevaluated"
        )
    yield f"  asked       {asked}"
    yield f"  sampler     {clean(definition.sampler.name)} {_options(definition)}".rstrip()
    yield f"  ends after  {definition.charge_limit} attempts charged to points"
    yield f"  sites       {', '.join(definition.sites) or 'any'}"


def _options(definition: TaskDefinition) -> str:
    options = dict(definition.sampler.options)
    return clean(json.dumps(options)) if options else ""


def _payload(definition: TaskDefinition) -> Iterator[str]:
    payload, shape = definition.payload, definition.payload.shape
    yield f"  command     {clean(definition.command)}"
    yield f"  container   {clean(definition.container.image) if definition.container else 'none'}"
    nodes = "1 node" if shape.nodes_min == 1 else f"{shape.nodes_min} nodes"
    if shape.nodes_max > shape.nodes_min:
        nodes = f"{shape.nodes_min} to {shape.nodes_max} nodes"
    yield f"  shape       {nodes}, {shape.gpus_per_node:g} GPU each, {shape.ranks_per_node} rank(s)"
    if payload.expected_s is not None:
        yield f"  expected    {format_duration(payload.expected_s)} per evaluation"
    if payload.node_hours is not None:
        yield f"  budget      {payload.node_hours:g} node-hours at a site"
    if payload.time_limit_s is not None:
        yield f"  limit       {format_duration(payload.time_limit_s)} per evaluation"
    rule = definition.checkpoint
    if rule is None:
        yield "  checkpoint  none: an evaluation that is cut off starts again from nothing"
    else:
        names = clean(", ".join(rule.paths))
        yield f"  checkpoint  {names}, looked at every {format_duration(rule.interval_s)}"


def _space(definition: TaskDefinition) -> Iterator[str]:
    for space in definition.spaces[:1]:
        yield f"  space       {len(space.parameters)} hyperparameters"
        for parameter in space.parameters:
            form = json.dumps(space.source.get(parameter.name), default=str)
            yield shorten(f"    {clean(parameter.name)}: {clean(form)}", WIDTH)


def _files(definition: TaskDefinition) -> Iterator[str]:
    total = sum(file.size for file in definition.files)
    yield f"  files       {len(definition.files)}, {total} bytes together"
    for file in definition.files[:FILES_SHOWN]:
        yield f"    {clean(file.name)} ({file.size} bytes{', executable' * file.executable})"
    if len(definition.files) > FILES_SHOWN:
        yield f"    ... {len(definition.files) - FILES_SHOWN} more"
