"""The ``payload`` section of a configuration: shape, duration and manners of an evaluation.

The section is this project's own; every key is optional::

    "payload": {"nodes": 1, "gpus_per_node": 1, "ranks_per_node": 1, "cores": 4, "memory": "8GB",
                "expected_minutes": 30, "max_minutes": 120, "start": "single",
                "environment": {"NAME": "value"}, "warn_signal": "SIGUSR2", "warn_seconds": 30,
                "kill_seconds": 10,
                "elastic": {"min_nodes": 1, "max_nodes": 4},
                "priority": 0, "early_stopping": "median", "node_hours": 500,
                "keep_output": "failures", "contract": "idds"}

``cores`` and ``memory`` are per node. ``elastic`` takes the place of ``nodes`` and ``start``: the
command runs once on every node that the evaluation has for a while. ``node_hours`` bounds what all
attempts of the task may take at a site: beyond it none is started.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harvester.quantities import parse_size_bytes
from harvester.steering.problems import Problems, is_number
from payload_runner.protocol import Shape

STARTS = ("single", "processes", "mpi")
WARN_SIGNALS = ("SIGUSR1", "SIGUSR2", "SIGTERM", "SIGINT", "SIGHUP", "SIGCONT", "SIGURG")
CONTRACTS = ("idds", "runhpo")
KEEP_OUTPUT = ("failures", "always")
EARLY_STOPPING = ("none", "median")

_KEYS = (
    "nodes",
    "gpus_per_node",
    "ranks_per_node",
    "cores",
    "cores_per_node",
    "memory",
    "memory_mb",
    "expected_minutes",
    "max_minutes",
    "start",
    "elastic",
    "environment",
    "warn_signal",
    "warn_seconds",
    "kill_seconds",
    "priority",
    "node_hours",
    "keep_output",
    "contract",
    "early_stopping",
)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_ELASTIC_KEYS = ("min_nodes", "max_nodes")
_ELASTIC_FORM = '{"min_nodes": 1, "max_nodes": 4}'
_NODES_MOST = 1_000_000
_YEAR_MINUTES = 366 * 24 * 60


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadSection:
    """What the section says, with its defaults filled in."""

    shape: Shape = field(default_factory=Shape)
    expected_s: float | None = None
    time_limit_s: float | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    warn_signal: str = "SIGUSR2"
    warn_s: float = 30.0
    kill_s: float = 10.0
    priority: int = 0  # higher goes first
    node_hours: float | None = None  # for all attempts at a site together
    relay_output: bool = False  # of evaluations that succeed, too
    contract: str = "idds"
    early_stopping: str | None = None


def read_payload(problems: Problems, section: Any) -> PayloadSection:
    """The section as values; wrong ones read as their defaults, with the problems noted."""
    if section is None:
        return PayloadSection()
    if not isinstance(section, Mapping):
        problems.add("payload", section, "expected an object")
        return PayloadSection()
    keys = [str(key) for key in section]
    problems.unknown_keys("payload", [key for key in keys if key not in _ELASTIC_KEYS], _KEYS)
    for key in (key for key in keys if key in _ELASTIC_KEYS):
        problems.tell(f"payload.{key}", f'is a key of elastic; expected "elastic": {_ELASTIC_FORM}')
    fields = _Fields(problems, section)
    expected, limit = fields.minutes("expected_minutes"), fields.minutes("max_minutes")
    if expected is not None and limit is not None and expected > limit:
        problems.add("payload.expected_minutes", expected / 60, "is above max_minutes")
    return PayloadSection(
        shape=_shape(problems, fields),
        expected_s=expected,
        time_limit_s=limit,
        environment=_environment(problems, section.get("environment")),
        warn_signal=fields.one_of("warn_signal", WARN_SIGNALS, "SIGUSR2"),
        warn_s=fields.number("warn_seconds", 30.0, 0, 3600),
        kill_s=fields.number("kill_seconds", 10.0, 0, 3600),
        priority=fields.whole("priority", 0, -1000, 1000),
        node_hours=fields.positive("node_hours"),
        relay_output=fields.one_of("keep_output", KEEP_OUTPUT, "failures") == "always",
        contract=fields.one_of("contract", CONTRACTS, "idds"),
        early_stopping=_early_stopping(fields),
    )


@dataclass(frozen=True, slots=True)
class _Fields:
    problems: Problems
    section: Mapping[str, Any]

    def wrong(self, name: str, expected: str) -> None:
        self.problems.add(f"payload.{name}", self.section[name], f"expected {expected}")

    def given(self, name: str) -> Any:
        return self.section.get(name)

    def number(self, name: str, default: float, least: float, most: float) -> float:
        value = self.given(name)
        if value is None:
            return default
        if is_number(value) and least <= value <= most:
            return float(value)
        self.wrong(name, f"a number from {least:g} to {most:g}")
        return default

    def whole(self, name: str, default: int, least: int, most: int) -> int:
        value = self.given(name)
        if value is None:
            return default
        if is_number(value) and value == int(value) and least <= value <= most:
            return int(value)
        self.wrong(name, f"a whole number from {least} to {most}")
        return default

    def minutes(self, name: str) -> float | None:
        value = self.given(name)
        if value is None:
            return None
        if is_number(value) and 0 < value <= _YEAR_MINUTES:
            return float(value) * 60
        self.wrong(name, f"minutes above 0, at most {_YEAR_MINUTES} (a year)")
        return None

    def positive(self, name: str) -> float | None:
        value = self.given(name)
        if value is None:
            return None
        if is_number(value) and 0 < value < math.inf:
            return float(value)
        self.wrong(name, "a number above 0")
        return None

    def one_of(self, name: str, known: tuple[str, ...], default: str) -> str:
        value = self.given(name)
        if value is None:
            return default
        if isinstance(value, str) and value in known:
            return value
        self.wrong(name, f"one of {', '.join(known)}")
        return default


def _shape(problems: Problems, fields: _Fields) -> Shape:
    if fields.given("elastic") is not None:
        return _elastic_shape(problems, fields)
    nodes = fields.whole("nodes", 1, 1, _NODES_MOST)
    ranks = fields.whole("ranks_per_node", 1, 1, 100_000)
    start = fields.one_of("start", STARTS, "processes" if ranks > 1 else "single")
    if start == "single" and ranks > 1:
        problems.add(
            "payload.ranks_per_node", ranks, "expected 1 with start 'single'; use 'processes'"
        )
    return Shape(
        nodes_min=nodes,
        nodes_max=nodes,
        gpus_per_node=_gpus(fields),
        ranks_per_node=ranks,
        cores_per_node=_cores(problems, fields),
        memory_mb_per_node=_memory_mb(problems, fields),
        start=start,
    )


def _elastic_shape(problems: Problems, fields: _Fields) -> Shape:
    for name in ("nodes", "start"):
        if fields.given(name) is not None:
            problems.add(f"payload.{name}", fields.given(name), "and elastic: give one of them")
    least, most = _elastic_nodes(problems, fields.given("elastic"))
    return Shape(
        nodes_min=least,
        nodes_max=most,
        gpus_per_node=_gpus(fields),
        ranks_per_node=fields.whole("ranks_per_node", 1, 1, 100_000),
        cores_per_node=_cores(problems, fields),
        memory_mb_per_node=_memory_mb(problems, fields),
        start="elastic",
    )


def _elastic_nodes(problems: Problems, given: Any) -> tuple[int, int]:
    if not isinstance(given, Mapping):
        problems.add("payload.elastic", given, f"expected {_ELASTIC_FORM}")
        return 1, 1
    problems.unknown_keys("payload.elastic", map(str, given), _ELASTIC_KEYS)
    counts = []
    for name in _ELASTIC_KEYS:
        value = given.get(name)
        if value is None or not is_number(value) or not 1 <= value <= _NODES_MOST or value % 1:
            expected = f"expected a whole number from 1 to {_NODES_MOST}"
            problems.add(f"payload.elastic.{name}", value, expected)
            return 1, 1
        counts.append(int(value))
    least, most = counts
    if least > most:
        problems.add("payload.elastic.min_nodes", least, f"is above max_nodes ({most})")
        return 1, 1
    return least, most


def _gpus(fields: _Fields) -> float:
    gpus = fields.number("gpus_per_node", 1.0, 0, 1024)
    if gpus > 1 and gpus != int(gpus):
        fields.wrong("gpus_per_node", "a whole number, or a share below 1")
        return 1.0
    return gpus


def _cores(problems: Problems, fields: _Fields) -> int:
    if fields.given("cores") is not None and fields.given("cores_per_node") is not None:
        problems.add(
            "payload.cores_per_node", fields.given("cores_per_node"), "and cores: give one"
        )
    name = "cores" if fields.given("cores") is not None else "cores_per_node"
    return fields.whole(name, 0, 0, 100_000)


def _memory_mb(problems: Problems, fields: _Fields) -> int:
    text = fields.given("memory")
    if text is None:
        return fields.whole("memory_mb", 0, 0, 1_000_000_000)
    if fields.given("memory_mb") is not None:
        problems.add("payload.memory_mb", fields.given("memory_mb"), "and memory: give one of them")
    try:
        return max(1, parse_size_bytes(text) // 1_000_000)
    except ValueError as error:
        expected = f"expected {error}; a plain number of megabytes is memory_mb"
        problems.add("payload.memory", text, expected)
        return 0


def _environment(problems: Problems, given: Any) -> dict[str, str]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        problems.add("payload.environment", given, 'expected {"NAME": "value"}')
        return {}
    for name, value in given.items():
        key = f"payload.environment.{name}"
        if not _VARIABLE.fullmatch(str(name)):
            problems.add(key, value, "is not a name of an environment variable")
        elif str(name).startswith("HARVESTER_"):
            problems.add(key, value, "names beginning with HARVESTER_ are the harvester's own")
        elif not isinstance(value, str) or "\0" in value or len(value) > 32_768:
            problems.add(key, value, "expected a text, at most 32768 characters")
    return {str(name): str(value) for name, value in given.items()}


def _early_stopping(fields: _Fields) -> str | None:
    rule = fields.one_of("early_stopping", EARLY_STOPPING, "none")
    return None if rule == "none" else rule
