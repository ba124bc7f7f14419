"""Before a payload runs: whether it can, its working directory, its command and environment."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Dict, Mapping, Optional, Tuple

from payload_runner import container_environment, environment, gpus, membership, runhpo
from payload_runner.checkpoints import Keeper, Refused, relative_name, restore
from payload_runner.commits import Broken
from payload_runner.containers import ContainerRun, container_argv
from payload_runner.images import BadContainer, resolve_image
from payload_runner.node import Node
from payload_runner.outcome import Verdict
from payload_runner.placement import Slot
from payload_runner.processes import AGENT_MARKER
from payload_runner.protocol import (
    CONTAINER_WORKDIR,
    BadRecord,
    CheckpointRule,
    Container,
    Order,
    PayloadSpec,
    check_attempt,
)
from payload_runner.workplace import read_bounded

STARTS = ("single", "processes", "mpi", "elastic")
WITH_RANKS = ("processes", "mpi")  # several processes on a node, each started by itself
CONTRACTS = ("idds", runhpo.CONTRACT)
IMAGE_ENVIRONMENT = "ch/environment"  # where Charliecloud keeps it, and our own importer
_IMAGE_ENVIRONMENT_BYTES = 64 * 1024


@dataclass(frozen=True)
class Prepared:
    """A working directory that is ready. ``note``: why its checkpoint is not in it."""

    resumed: bool = False
    note: Optional[str] = None
    keeper: Optional[Keeper] = None


@dataclass(frozen=True)
class Command:
    """What to execute, with its whole environment."""

    argv: Tuple[str, ...]
    environment: Dict[str, str]


def refusal(order: Order, spec: PayloadSpec) -> Optional[Verdict]:
    """Why an order cannot be run at all, or None."""
    try:
        check_attempt(order.attempt)
        environment.fill_command(spec.command, order.segment)
        _stay_inside(spec.output_name, spec.meta_name, spec.metrics_name)
    except (BadRecord, environment.BadSegment, Refused) as error:
        return Verdict("failed", "point", str(error))
    if spec.contract not in CONTRACTS:
        reason = f"contract is {spec.contract!r}; this runner knows {', '.join(CONTRACTS)}"
        return Verdict("failed", "site", reason)
    if spec.shape.start not in STARTS:
        known = ", ".join(STARTS)
        reason = f"shape.start is {spec.shape.start!r}; this payload runner starts {known}"
        return Verdict("failed", "site", reason)
    return None


def is_quick(node: Node, order: Order, spec: PayloadSpec) -> bool:
    """Whether ``prepare`` has neither a checkpoint nor new input files to fetch."""
    return order.checkpoint is None and node.workplace.has_inputs(spec)


def prepare(node: Node, order: Order, spec: PayloadSpec, *, keeps: bool) -> Prepared:
    """Make the working directory, inputs and checkpoint in it. Safe in any thread.

    A checkpoint that cannot be restored is left out with a note: starting from zero is better
    than not at all. ``keeps``: checkpoints are to be saved from here.

    Raises:
        Broken: an input file is not what it should be.
        OSError: no space, no permission.
    """
    if spec.shape.start == "elastic":
        node.workplace.set_aside(order.attempt)  # it may have been on this node before
    node.workplace.lay_out(order, spec)
    rule, note = _checkpoint_rule(order, spec), None
    if rule is not None and order.checkpoint is not None:
        note = _restore(node, order, spec, rule)
    if rule is None and spec.contract != runhpo.CONTRACT:
        return Prepared()
    workdir = node.workplace.directory(order.attempt)
    if spec.contract == runhpo.CONTRACT:
        runhpo.lay_out(order, spec, workdir, _seen_as(spec, workdir))
    if rule is None:
        return Prepared()
    keeper = None
    if keeps:
        staging = node.workplace.staging(order.attempt, "save")
        keeper = Keeper(order.attempt, rule, workdir, staging, node.spool, node.incarnation)
        try:
            keeper.begin()
        except Refused as error:
            note = str(error)
    return Prepared(order.checkpoint is not None and note is None, note, keeper)


def command_of(
    node: Node, order: Order, spec: PayloadSpec, slot: Slot, *, deadline: float
) -> Command:
    """What to execute. ``deadline``: epoch seconds of the drain point.

    Raises:
        BadContainer: the container cannot be run here.
    """
    command = environment.fill_command(spec.command, order.segment)
    workdir = node.workplace.directory_text(order.attempt)
    variables = environment.of_attempt(
        node.environment_of(spec),
        order,
        workdir=workdir,
        deadline=deadline,
        threads=gpus.threads_of(node.resources, slot),
        gpus=gpus.visible(node.resources, slot),
    )
    variables[AGENT_MARKER] = node.agent_nonce
    if spec.contract == runhpo.CONTRACT:
        variables.update(runhpo.variables(order))
    if spec.shape.start == "elastic":
        seen_as = _seen_as(spec, Path(workdir))
        address = meeting_host(node, slot)
        members = membership.variables(slot, spec.shape, order.attempt, seen_as, address)
        variables = {**variables, **members, **spec.environment}
    if spec.container is None:
        if node.mps is not None:
            variables.update(node.mps.variables(slot))
        return Command(("/bin/sh", "-c", command), variables)
    return _contained(node, spec, spec.container, slot, workdir, command, variables)


def meeting_host(node: Node, slot: Slot) -> str:
    """Where a payload's processes meet: its first node, by a name that the others can look up."""
    # Nodes of the local batch system are virtual: nobody else knows their names.
    local = node.plan.batch_system == "local"
    return "127.0.0.1" if local or not slot.hosts else slot.hosts[0]


def _contained(
    node: Node,
    spec: PayloadSpec,
    container: Container,
    slot: Slot,
    workdir: str,
    command: str,
    variables: Mapping[str, str],
) -> Command:
    """The command in its container; ``variables`` are those that it would have without one."""
    plan = node.plan
    runtime = plan.container_runtime
    image = resolve_image(
        container.image, runtime, plan.image_dir, os.path.exists, plan.container_images
    )
    ours = set(variables) - set(node.environment_of(spec))
    given = ours | set(spec.environment) | container_environment.meant_inside(plan.environment)
    of_image = (
        image_environment(image) if container_environment.applies_image_environment(runtime) else {}
    )
    seen = container_environment.inside(variables, given, of_image)
    seen.setdefault("USER", str(os.getuid()))  # ch-run does not start without one
    if spec.shape.start == "mpi":
        seen = {**container_environment.NO_SINGLE_COPY, **seen}
    run = ContainerRun(
        image,
        workdir,
        command,
        plan.container_options + container.options,
        node.resources.gpu_variable if slot.gpus else None,
        (*sorted(set(seen) - {"HOME"}), *_names_of_ranks(spec, slot)),
        of_several=spec.shape.start in WITH_RANKS,
    )
    program, *rest = container_argv(runtime, run)
    found = shutil.which(program, path=node.outer.get("PATH"))
    if found is None:
        raise BadContainer(f"container_runtime is {runtime!r}, but {program} is not on PATH")
    return Command((found, *rest), container_environment.of_runtime(runtime, seen, node.outer))


def _names_of_ranks(spec: PayloadSpec, slot: Slot) -> Tuple[str, ...]:
    """The variables that each rank gets with values of its own, once the command stands."""
    if spec.shape.start not in WITH_RANKS:
        return ()
    launched = environment.OF_LAUNCHER if spec.shape.start == "mpi" else ()
    return (*environment.of_rank(slot, 0, "", ""), *(f"{name}*" for name in launched))


@lru_cache(maxsize=16)
def image_environment(image: str) -> Dict[str, str]:
    """What an unpacked image says of its environment; {} where it says nothing that can be read."""
    try:
        data = read_bounded(
            Path(image, IMAGE_ENVIRONMENT), _IMAGE_ENVIRONMENT_BYTES, within=Path(image)
        )
    except OSError:
        return {}
    return container_environment.parse_image_environment((data or b"").decode("utf-8", "replace"))


def _checkpoint_rule(order: Order, spec: PayloadSpec) -> Optional[CheckpointRule]:
    if spec.checkpoint is None or spec.contract != runhpo.CONTRACT:
        return spec.checkpoint
    return runhpo.checkpoint_rule(order, spec.checkpoint)


def _seen_as(spec: PayloadSpec, workdir: Path) -> str:
    return str(workdir) if spec.container is None else CONTAINER_WORKDIR


@lru_cache(maxsize=256)
def _stay_inside(*names: Optional[str]) -> None:
    for name in names:
        try:
            if name is not None:
                relative_name(name)
        except Refused:
            raise Refused(f"file name {name!r:.200} leaves the working directory") from None


def _restore(node: Node, order: Order, spec: PayloadSpec, rule: CheckpointRule) -> Optional[str]:
    """Restore into a fresh working directory; None, or why it starts from zero."""
    assert order.checkpoint is not None
    workdir = node.workplace.directory(order.attempt)
    staging = node.workplace.staging(order.attempt, "restore")
    try:
        restore(node.spool, order.checkpoint, rule, workdir, staging)
    except (Broken, BadRecord, Refused, OSError) as error:
        # A part of it may lie there already.
        shutil.rmtree(workdir)
        node.workplace.lay_out(order, spec)
        return f"checkpoint not restored, started from zero: {error}"
    return None
