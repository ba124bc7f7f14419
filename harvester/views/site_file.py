"""A first site file as text, from what a machine and its user say. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harvester.discovery import Machine, QueueFound

# Where nothing was found out: small and short, so that a first try harms nobody.
NODES, WALLTIME_S, CORES = 1, 3600.0, 1
_LAUNCHERS = {
    "slurm": ["srun", "--ntasks-per-node=1", "--overlap", "--kill-on-bad-exit=0"],
    "pbs": ["mpiexec", "-n", "{nodes}", "--ppn", "1", "--cpu-bind", "none"],
    "lsf": ["jsrun", "-n", "{nodes}", "-r1", "-a1", "-c", "{cores}", "-g", "{gpus}", "-b", "none"],
    "flux": ["flux", "run", "-N", "{nodes}", "-n", "{nodes}", "-c", "{cores}", "-g", "{gpus}"],
    "gridengine": ["qrsh", "-inherit", "-nostdin", "-V"],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What the user says, or what was found."""

    name: str
    account: str | None
    spool: str
    gpus: int
    cores: int
    memory_mb: int | None
    queues: tuple[QueueFound, ...]


def site_file(machine: Machine, answers: Answers, *, host: str, date: str) -> str:
    """The YAML text; every value that was found names its source."""
    system = machine.batch_system
    lines = [
        f"# Written by `harvester site init` on {host}, {date}. Look at every line: the limits of",
        "# a centre are more than its scheduler tells. `harvester site probe` measures the nodes.",
        f"name: {_word(answers.name)}",
        f"description: {_word(f'{answers.name}, as found on {host}')}",
    ]
    if system == "local":
        return "\n".join([*lines, "extends: local", ""])
    lines += [f"batch_system: {system}"]
    lines += [f"account: {_word(answers.account)}"] if answers.account else []
    lines += ["spool:", f"  path: {_word(answers.spool)}", "node:", f"  gpus: {answers.gpus}"]
    lines += [f"  cores: {answers.cores}"]
    lines += [f"  memory: {answers.memory_mb}MiB"] if answers.memory_mb else []
    if variable := _gpu_variable(answers.queues):
        lines += [f"  gpu_variable: {variable}"]
    lines += ["queues:", *(line for queue in answers.queues for line in _queue(queue))]
    lines += ["runner:", f"  launcher: {json.dumps(_LAUNCHERS[system])}"]
    lines += ["budgets:", "  # Raise these once the centre is content.", "  jobs_in_flight: 2"]
    return "\n".join([*lines, *_sources(machine, answers, date), ""])


def _queue(queue: QueueFound) -> Iterator[str]:
    nodes = queue.nodes or NODES
    walltime = _clock(queue.walltime_s or WALLTIME_S)
    yield f"  - name: {_word(queue.name)}"
    if queue.nodes is None or queue.walltime_s is None:
        yield "    # The scheduler does not tell all limits of this queue: these are cautious."
    yield "    bins:"
    yield f'      - {{nodes: 1-{nodes}, walltime: "{walltime}"}}'


def _sources(machine: Machine, answers: Answers, date: str) -> Iterator[str]:
    """What the batch system said is its word; what a person said, or nobody, is to be checked."""
    told = f"{{source: {_word(machine.command)}, date: {_word(date)}}}"
    yield "sources:"
    first = next((queue for queue in answers.queues if queue.cores), QueueFound(name=""))
    yield f"  node.gpus: {told if first.gpus == answers.gpus else 'unsourced'}"
    yield f"  node.cores: {told if first.cores == answers.cores else 'unsourced'}"
    if answers.memory_mb:
        yield f"  node.memory: {told}"
    if _gpu_variable(answers.queues):
        yield f"  node.gpu_variable: {told}"
    for queue in answers.queues:
        is_told = queue.nodes is not None and queue.walltime_s is not None
        yield f"  {_word(f'queues.{queue.name}')}: {told if is_told else 'unsourced'}"
    yield "  spool: chosen"
    yield "  runner: chosen"
    yield "  budgets: chosen"


def _gpu_variable(queues: Sequence[QueueFound]) -> str | None:
    kind = next((queue.gpu_kind.lower() for queue in queues if queue.gpu_kind), "")
    if kind.startswith(("mi", "amd", "gfx")):
        return "ROCR_VISIBLE_DEVICES"
    return "ZE_AFFINITY_MASK" if kind.startswith(("pvc", "max", "intel")) else None


def _clock(seconds: float) -> str:
    hours, minutes = divmod(int(seconds) // 60, 60)
    return f"{hours:02}:{minutes:02}:00"


def _word(text: str) -> str:
    # A JSON text is a YAML text.
    return json.dumps(text)
