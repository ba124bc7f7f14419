"""What a task's attempts run, in the words of the payload runner."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping

from harvester.steering.definition import TaskDefinition
from payload_runner.protocol import PayloadSpec, to_fields

_ID_DIGITS = 16


def payload_spec(definition: TaskDefinition, segment: str | None = None) -> PayloadSpec:
    """The payload of a task, or of one of its segments (they differ in their training files).

    ``payload_id`` is a hash of everything else in it: equal payloads have equal ids.

    Raises:
        KeyError: the task has no such segment.
    """
    training: tuple[str, ...] = ()
    if segment is not None:
        training = {item.name: item.files for item in definition.segments}[segment]
    section = definition.payload
    spec = PayloadSpec(
        payload_id="",
        command=definition.command,
        shape=section.shape,
        files=definition.files,
        input_name=definition.input_name,
        training_name=definition.training_name,
        training_files=training,
        output_name=definition.output_name,
        meta_name=definition.meta_name,
        metrics_name=definition.metrics_name,
        checkpoint=definition.checkpoint,
        container=definition.container,
        environment=dict(section.environment),
        time_limit_s=section.time_limit_s,
        expected_s=section.expected_s,
        node_hours=section.node_hours,
        relay_output=section.relay_output,
        contract=section.contract,
        warn_signal=section.warn_signal,
        warn_s=section.warn_s,
        kill_s=section.kill_s,
    )
    return dataclasses.replace(spec, payload_id=_identify(spec))


def payload_specs(definition: TaskDefinition) -> Mapping[str | None, PayloadSpec]:
    """The payload of each segment by name, or of the whole task under None."""
    if not definition.segments:
        return {None: payload_spec(definition)}
    return {item.name: payload_spec(definition, item.name) for item in definition.segments}


def _identify(spec: PayloadSpec) -> str:
    text = json.dumps(to_fields(spec), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return "p" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_ID_DIGITS]
