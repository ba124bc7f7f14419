"""The keys of a site file, with types, limits and defaults: what `site schema` publishes.

Loads pydantic, so only the compiling child process imports this. ``config_compile`` turns a
validated file into ``harvester.site.Site``. ``python -m harvester.config_schema`` prints the JSON
Schema that lies in ``schemas/site.schema.json``.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
import sys
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from harvester.quantities import (
    DURATION_FORMS,
    INSTANT_FORMS,
    NODE_FORMS,
    SIZE_FORMS,
    parse_duration_s,
    parse_instant,
    parse_nodes,
    parse_size_bytes,
)

#: Sources that name no document: general knowledge, and what is for us to choose.
UNSOURCED, CHOSEN = "unsourced", "chosen"

_WORD = r"^[A-Za-z0-9][A-Za-z0-9._:@+/-]{0,127}$"
_GPU = r"^[A-Za-z0-9._-]+$"
_DATE = r"^\d{4}(-\d\d(-\d\d)?)?$"
_URL = r"^https?://[^\s/]+(/\S*)?$"
_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
_NAME = r"^[a-z0-9][a-z0-9_.-]{0,63}$"
_HOST = r"^[A-Za-z0-9][A-Za-z0-9@._-]{0,254}$"
#: What the patterns of this schema mean, for people.
FORMS = {
    _HOST: "a host as ssh takes it: a name, user@name, or an alias of its configuration",
    _WORD: "one word of letters, digits and ._:@+/-, 128 at most",
    _GPU: "a GPU's name of letters, digits and ._-",
    _DATE: 'a date such as "2026-08-31", "2026-08" or "2026"',
    _URL: "a URL that begins with http:// or https://",
    _VARIABLE: "the name of an environment variable",
    _NAME: "a name of small letters, digits and _.-, 64 at most",
}

_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)


def _parsed(parse: Callable[[object], Any]) -> BeforeValidator:
    def validate(value: object) -> Any:
        try:
            return parse(value)
        except ValueError as error:
            raise _refuse(f"expected {error}") from None

    return BeforeValidator(validate)


def _refuse(sentence: str) -> PydanticCustomError:
    # The template language of pydantic gives braces a meaning.
    return PydanticCustomError("harvester", "{sentence}", {"sentence": sentence})


def _split_words(value: object) -> object:
    return shlex.split(value) if isinstance(value, str) else value


def _one_line(value: object) -> object:
    if isinstance(value, str) and ("\n" in value or "\0" in value):
        raise ValueError("one line of text")
    return value


def _either(*kinds: str, description: str) -> WithJsonSchema:
    return WithJsonSchema({"type": list(kinds), "description": description})


Duration = Annotated[
    float, _parsed(parse_duration_s), _either("string", "number", description=DURATION_FORMS)
]
Size = Annotated[int, _parsed(parse_size_bytes), _either("string", description=SIZE_FORMS)]
Nodes = Annotated[
    tuple[int, int],
    _parsed(parse_nodes),
    _either("string", "integer", "array", description=NODE_FORMS),
]
Line = Annotated[str, _parsed(_one_line), _either("string", description="one line of text")]
Word = Annotated[str, Field(pattern=_WORD)]
Words = Annotated[
    list[str], _parsed(_split_words), _either("string", "array", description="a command's words")
]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Directory = Annotated[str, Field(min_length=1, description="a path; $NAME and ~ are expanded")]

Instant = Annotated[float, _parsed(parse_instant), _either("string", description=INSTANT_FORMS)]

Runtime = Literal[
    "none",
    "apptainer",
    "bwrap",
    "charliecloud",
    "podman",
    "podman-hpc",
    "shifter",
    "singularity",
]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class BinKeys(_Part):
    """Jobs of this many nodes may run this long."""

    nodes: Nodes
    walltime: Annotated[Duration, Field(gt=0)]


class QueueKeys(_Part):
    """A queue or partition and the limits the centre sets on it."""

    name: Word
    kind: Literal["queue", "qos"] = "queue"
    bins: Annotated[list[BinKeys], Field(min_length=1)]
    queued_max: Positive | None = None
    running_max: Positive | None = None
    total_max: Positive | None = None
    limits_per: Literal["user", "project"] = "user"
    preemptable: bool = False
    directives: list[Line] = []
    whole_nodes: bool = True
    gpus_min: Count = 0
    planned: bool = True

    @model_validator(mode="after")
    def _bins_are_apart(self) -> QueueKeys:
        ordered = sorted(item.nodes for item in self.bins)
        for (_, high), (low, above) in itertools.pairwise(ordered):
            if low <= high:
                raise _refuse(
                    f"expected bins that do not overlap; {low}-{above} nodes begins at or below "
                    f"the {high} nodes where the bin before it ends"
                )
        return self


class SpoolKeys(_Part):
    """Where orders, events and checkpoints lie: a directory that compute nodes see."""

    path: Directory | None = None
    filesystem: Literal["shared", "local"] = "shared"
    retention: Annotated[Duration, Field(ge=86400.0)] = 30 * 86400.0


class StateKeys(_Part):
    """Where the ledger and the index lie: the ledger not on scratch, the index on a local disk."""

    dir: Directory | None = None
    index: Directory | None = None
    roll_size: Annotated[Size, Field(ge=1_000_000)] = 64 * 1024 * 1024


class NodeKeys(_Part):
    """One node as jobs get it: usable cores and GPUs only."""

    gpus: Count = 0
    cores: Positive
    memory: Size | None = None
    gpu_variable: Literal["CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"] = (
        "CUDA_VISIBLE_DEVICES"
    )
    gpu_order: list[Annotated[str, Field(pattern=_GPU)]] = []


class SubmissionKeys(_Part):
    """What jobs say of themselves here, and what they must leave unsaid."""

    gpu_request: Literal["gres", "gpus-per-node", "none"] = "gres"
    cores_request: bool = True
    memory_request: bool = True
    filesystems: list[Word] = []
    filesystems_required: bool = False
    held: bool = False


class NetworkKeys(_Part):
    """What compute nodes and the login node can reach."""

    compute: Literal["none", "proxy", "outbound", "unknown"] = "unknown"
    unset_proxy: bool = False
    inter_job_network: bool | None = None


class ReservationKeys(_Part):
    """A maintenance window, in which no job may run."""

    start: Annotated[Instant, Field(alias="from")]
    end: Annotated[Instant, Field(alias="to")]
    why: Line = "maintenance"


class SourceKeys(_Part):
    """Where a value comes from, and when it was looked up."""

    source: Annotated[Line, Field(min_length=1)]
    date: Annotated[str, Field(pattern=_DATE)] | None = None


def _source(value: object) -> object:
    if isinstance(value, str):
        if value not in (UNSOURCED, CHOSEN):
            raise ValueError(f"{{source: ..., date: ...}}, {UNSOURCED!r} or {CHOSEN!r}")
        return {"source": value}
    return value


Source = Annotated[
    SourceKeys,
    _parsed(_source),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "enum": [UNSOURCED, CHOSEN]},
                {
                    "type": "object",
                    "properties": {"source": {"type": "string"}, "date": {"type": "string"}},
                    "required": ["source"],
                    "additionalProperties": False,
                },
            ],
            "description": "a document with the date it was looked up, 'unsourced' or 'chosen'",
        }
    ),
]


class BudgetKeys(_Part):
    """Hard limits on what this harvester may cost the centre."""

    query_interval: Annotated[Duration, Field(ge=0.05)] = 60.0
    query_interval_min: Duration = 0.0
    queries_per_minute: Annotated[float, Field(gt=0)] = 2.0
    submissions_per_hour: Positive = 30
    jobs_in_flight: Positive = 4
    node_hours_per_day: Annotated[float, Field(gt=0)] | None = None
    node_hours_total: Annotated[float, Field(gt=0)] | None = None
    command_timeout: Annotated[Duration, Field(gt=0)] = 30.0


class CentralKeys(_Part):
    """Which central service; without a URL the one that runs on this machine."""

    kind: Literal["native", "bundles"] = "native"
    url: Annotated[str, Field(pattern=_URL)] | None = None
    token_file: Directory | None = None
    ca_file: Directory | None = None
    timeout: Annotated[Duration, Field(gt=0)] = 30.0


class RunnerKeys(_Part):
    """How the payload runner lives on the nodes."""

    python: Annotated[str, Field(min_length=1)] = "python3"
    launcher: Words = []
    mpi_launcher: Words = []
    transport: Literal["auto", "tcp", "files", "mpi"] = "auto"
    node_local_dir: Annotated[str, Field(min_length=1)] | None = None
    keep_workdirs: bool = False
    drain_margin: Duration = 60.0
    idle_exit: Duration = 120.0
    environment: dict[Annotated[str, Field(pattern=_VARIABLE)], str] = {}
    prologue: list[Line] = []

    @model_validator(mode="after")
    def _holds_no_secret(self) -> RunnerKeys:
        for name in self.environment:
            if _SECRET.search(name):
                raise _refuse(
                    f"expected no secrets in runner.environment ({name}); payloads would see it"
                )
        return self


class ContainerKeys(_Part):
    """Which container runtime the nodes have."""

    runtime: Runtime = "none"
    only: bool = False
    image_dir: Directory | None = None
    images: dict[str, Annotated[str, Field(min_length=1)]] = {}
    options: list[Line] = []


class PlanningKeys(_Part):
    """Preferences inside the limits."""

    queues: list[Word] = []
    nodes_max: Positive | None = None
    walltime_max: Annotated[Duration, Field(gt=0)] | None = None
    walltime_min: Duration = 0.0
    boot_margin: Duration = 60.0
    default_expected: Annotated[Duration, Field(gt=0)] = 1800.0
    lookahead: Annotated[float, Field(ge=1, le=100)] = 2.0


class LocalKeys(_Part):
    """The virtual cluster of the `local` batch system."""

    nodes: Positive = 2
    warn: Duration = 5.0


class RemoteKeys(_Part):
    """The login node, where the harvester runs on another host and reaches it over ssh."""

    host: Annotated[str, Field(pattern=_HOST)]
    ssh_config: Directory | None = None
    python: Annotated[str, Field(min_length=1)] = "python3"
    prologue: list[Line] = []
    second_factor: bool = False
    session: Annotated[Duration, Field(gt=0)] | None = None
    session_warning: Duration = 3600.0
    timeout: Annotated[Duration, Field(gt=0)] = 30.0


class SiteKeys(_Part):
    """A computing centre as the harvester is to see it."""

    extends: str | None = None
    name: Annotated[str, Field(pattern=_NAME)] | None = None
    description: Line = ""
    batch_system: Literal["local", "slurm", "gridengine", "pbs", "lsf", "flux"]
    account: Word | None = None
    account_required: bool = False
    requeue: bool = False
    directives: list[Line] = []
    spool: SpoolKeys = SpoolKeys()
    state: StateKeys = StateKeys()
    node: NodeKeys
    queues: Annotated[list[QueueKeys], Field(min_length=1)]
    routing_queues: dict[Word, list[Word]] = {}
    submission: SubmissionKeys = SubmissionKeys()
    network: NetworkKeys = NetworkKeys()
    reservations: list[ReservationKeys] = []
    sources: dict[str, Source] = {}
    budgets: BudgetKeys = BudgetKeys()
    central: CentralKeys = CentralKeys()
    runner: RunnerKeys = RunnerKeys()
    containers: ContainerKeys = ContainerKeys()
    planning: PlanningKeys = PlanningKeys()
    local: LocalKeys = LocalKeys()
    remote: RemoteKeys | None = None


class PolicyBudgetKeys(_Part):
    """Bounds of budgets: the interval from below, everything else from above."""

    query_interval: Duration | None = None
    queries_per_minute: Annotated[float, Field(gt=0)] | None = None
    submissions_per_hour: Positive | None = None
    jobs_in_flight: Positive | None = None
    node_hours_per_day: Annotated[float, Field(gt=0)] | None = None
    node_hours_total: Annotated[float, Field(gt=0)] | None = None


class PolicyPlanningKeys(_Part):
    """The largest and the longest allocation."""

    nodes_max: Positive | None = None
    walltime_max: Annotated[Duration, Field(gt=0)] | None = None


class PolicyPayloadKeys(_Part):
    """What may run."""

    containers_only: bool = False
    runtimes: list[Runtime] | None = None


class PolicySubmissionKeys(_Part):
    """How jobs are submitted."""

    held: bool = False


class PolicyLimits(_Part):
    """What a site file can tighten and never loosen."""

    budgets: PolicyBudgetKeys = PolicyBudgetKeys()
    planning: PolicyPlanningKeys = PolicyPlanningKeys()
    payloads: PolicyPayloadKeys = PolicyPayloadKeys()
    submission: PolicySubmissionKeys = PolicySubmissionKeys()
    queues: list[Word] | None = None


class PolicyKeys(PolicyLimits):
    """The administrator's policy; ``sites`` adds limits for single sites by name."""

    sites: dict[str, PolicyLimits] = {}


def site_schema() -> dict[str, Any]:
    """The JSON Schema of site files, for editors."""
    schema = SiteKeys.model_json_schema()
    # A layer that extends another one may leave out whatever that one has.
    del schema["required"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Site"}


if __name__ == "__main__":
    json.dump(site_schema(), sys.stdout, indent=1)
    print()
