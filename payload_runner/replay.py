"""Runs by hand what an attempt ran: same inputs, environment, container and checkpoint.

For people who want to see why a point fails, on a login node or in an interactive job. Reads the
orders in the spool and writes only to a directory of its own; no limit of time or memory is
enforced, and nothing is reported to anybody.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, Optional, Tuple

from payload_runner import environment, gpus, membership
from payload_runner.capacity import WHOLE, Room, need_of
from payload_runner.files import Files
from payload_runner.logfile import LogReader, Record
from payload_runner.loop import Loop
from payload_runner.node import Node
from payload_runner.outcome import OUTPUT_LIMIT_BYTES, Exit, Verdict, judge
from payload_runner.placement import GpuShare, Slot
from payload_runner.preparing import WITH_RANKS, Command, command_of, prepare
from payload_runner.probing import gpu_devices
from payload_runner.processes import MARKER
from payload_runner.protocol import (
    AllocationPaths,
    AllocationPlan,
    BadRecord,
    NodeShape,
    Order,
    PayloadSpec,
    SpoolPaths,
    from_fields,
    load_json,
)
from payload_runner.workplace import Workplace, read_plain

_ORDERS = re.compile(r"orders\.(\d+)\.log")


class NothingToReplay(ValueError):
    """No order that can be read names this attempt; the text says where was looked."""


@dataclass(frozen=True)
class Recorded:
    """One attempt as it was ordered."""

    order: Order
    spec: PayloadSpec
    plan: AllocationPlan
    at: float  # when it was ordered, seconds since the epoch


def find_attempt(files: Files, spool: SpoolPaths, wanted: str) -> Recorded:
    """The order of an attempt (``1.7.1.2``), or of the newest attempt at a point (``1.7``).

    Raises:
        NothingToReplay: there is none in this spool.
        OSError: the spool cannot be read.
    """
    found = list(_recorded(files, spool, wanted))
    if not found:
        raise NothingToReplay(
            f"no order for {wanted} in {spool.root}: it was never ordered here, or its allocation "
            "has been cleared away"
        )
    return max(found, key=lambda item: (item.order.number, item.at))


def replay_visibly(
    spool: SpoolPaths,
    found: Recorded,
    environ: Mapping[str, str],
    directory: Optional[Path] = None,
    *,
    fresh: bool = False,
    dry_run: bool = False,
) -> int:
    """As ``replay``, for people: says on standard error what it does and what came of it.

    Returns 0 for a success of the payload (or a dry run) and 1 for anything else.
    """
    for name, value in describe(found):
        print(f"{name:<11} {value}", file=sys.stderr)
    if dry_run:
        return 0
    place = (directory or Path(f"replay-{found.order.attempt}")).absolute()
    print(f"{'directory':<11} {place / found.order.attempt}\n---", file=sys.stderr, flush=True)
    verdict = replay(spool, found, place, environ, fresh=fresh)
    told = f"loss {verdict.loss}" if verdict.succeeded else str(verdict.reason)
    print(f"---\n{verdict.state}: {told}", file=sys.stderr)
    return 0 if verdict.succeeded else 1


def replay(
    spool: SpoolPaths,
    found: Recorded,
    directory: Path,
    environ: Mapping[str, str],
    *,
    fresh: bool = False,
) -> Verdict:
    """Run it to its end, its output going where ours goes; returns how it would have been judged.

    ``directory`` must not exist; the working directory is left in it. ``fresh``: without the
    checkpoint. Main thread only.

    Raises:
        BadContainer: the container cannot be run here.
        Broken: an input file in the spool is not what it should be.
        OSError: files or programs that cannot be read, written or started.
    """
    order = replace(found.order, checkpoint=None) if fresh else found.order
    with closing(Loop()) as loop:
        node = _node(loop, spool, found.plan, directory, environ)
        node.workplace.open()
        slot = _slot(found.spec, node.resources.shape)
        prepare(node, order, found.spec, keeps=False)
        deadline = time.time() + (found.spec.time_limit_s or found.plan.walltime_s)
        command = command_of(node, order, found.spec, slot, deadline=deadline)
        workdir = node.workplace.directory(order.attempt)
        exit_ = _run(command, slot, found.spec, workdir)
        output = read_plain(workdir / found.spec.output_name, OUTPUT_LIMIT_BYTES, within=workdir)
    return judge(exit_, output, found.spec.output_name)


def describe(found: Recorded) -> Iterator[Tuple[str, str]]:
    """What would be run, as (name, value)."""
    order, spec, plan = found.order, found.spec, found.plan
    yield "attempt", order.attempt
    yield "command", environment.fill_command(spec.command, order.segment)
    yield "parameters", json.dumps(order.parameters)
    yield "files", ", ".join(item.name for item in spec.files) or "none"
    if spec.container is not None:
        yield "container", f"{spec.container.image} with {plan.container_runtime}"
    if order.checkpoint is not None:
        yield "checkpoint", f"of attempt {order.checkpoint_of}, {order.checkpoint.size} bytes"
    shape = spec.shape
    if shape.nodes_max > 1 or shape.start != "single":
        ranks = f"{_ranks(spec)} of its processes" if _ranks(spec) > 1 else "one of its processes"
        yield "note", f"it ran on {shape.nodes_min} or more nodes ({shape.start}); here: {ranks}"


# --- finding ---


def _recorded(files: Files, spool: SpoolPaths, wanted: str) -> Iterator[Recorded]:
    for allocation in _allocations(files, spool):
        specs: Dict[str, PayloadSpec] = {}
        orders: List[Tuple[Order, float]] = []
        for record in _order_records(files, allocation):
            try:
                if record.kind == "define":
                    spec = from_fields(PayloadSpec, record.fields)
                    specs[spec.payload_id] = spec
                elif record.kind == Order.KIND and _is_wanted(record, wanted):
                    orders.append((from_fields(Order, record.fields), record.at))
            except BadRecord:
                continue
        for order, at in orders:
            plan = _plan(files, allocation)
            if plan is not None and order.payload_id in specs:
                yield Recorded(order, specs[order.payload_id], plan, at)


def _is_wanted(record: Record, wanted: str) -> bool:
    attempt = str(record.fields.get("attempt"))
    return attempt == wanted or attempt.startswith(f"{wanted}.")


def _allocations(files: Files, spool: SpoolPaths) -> Iterator[AllocationPaths]:
    try:
        names = files.listdir(spool.allocations)
    except FileNotFoundError:
        return
    for name in sorted(names):
        try:
            yield spool.allocation(name)
        except BadRecord:
            continue  # not one of ours


def _order_records(files: Files, allocation: AllocationPaths) -> Iterator[Record]:
    matches = [_ORDERS.fullmatch(name) for name in files.listdir(allocation.root)]
    for epoch in sorted(int(match.group(1)) for match in matches if match):
        reader = LogReader(files, allocation.orders(epoch), time.monotonic)
        while True:
            before = reader.position
            yield from reader.poll().records
            if reader.position == before:
                break


def _plan(files: Files, allocation: AllocationPaths) -> Optional[AllocationPlan]:
    try:
        return load_json(allocation.plan.read_bytes(), AllocationPlan)
    except (OSError, BadRecord):
        return None


# --- running ---


def _node(
    loop: Loop,
    spool: SpoolPaths,
    plan: AllocationPlan,
    directory: Path,
    environ: Mapping[str, str],
) -> Node:
    """This machine as a node of the allocation, with the GPUs that are here."""

    def nobody(*_: object) -> None:
        """Nothing is reported, and nothing watched."""

    here = len(gpu_devices()) if environ.get(plan.node.gpu_variable) is None else plan.node.gpus
    shape = replace(plan.node, gpus=min(plan.node.gpus, here))
    return Node(
        loop=loop,
        plan=plan,
        spool=spool,
        incarnation=spool.allocation(plan.tag).incarnation("replay", 0),
        workplace=Workplace(spool, directory, node_local=False, keep=True),
        resources=gpus.find_resources(shape, environ, pin=False),
        host=socket.gethostname(),
        agent_nonce=f"replay-{os.getpid()}",
        outer=dict(environ),
        emit=nobody,
        tell=nobody,
        wake=nobody,  # type: ignore[arg-type]  # nothing is watched here
        wall=time.time,
    )


def _slot(spec: PayloadSpec, shape: NodeShape) -> Slot:
    """What the payload would get on such a node; all there is where that is less."""
    need, room = need_of(spec.shape, shape), Room(shape)
    if room.fits(need):
        grant = room.take(need)
        shares = tuple(GpuShare(index, units / WHOLE) for index, units in grant.gpus)
        cores = grant.cores
    else:
        shares = tuple(GpuShare(index) for index in range(shape.gpus))
        cores = ()
    ranks = _ranks(spec)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return Slot(
        node=0,
        gpus=shares,
        cores=cores,
        ranks=ranks,
        world_size=ranks,
        hosts=("127.0.0.1",),
        master_port=port,
    )


def _ranks(spec: PayloadSpec) -> int:
    return spec.shape.ranks_per_node if spec.shape.start == "processes" else 1


def _of_rank(command: Command, slot: Slot, spec: PayloadSpec, rank: int) -> Dict[str, str]:
    seen = command.environment["HARVESTER_WORKDIR"]
    if spec.shape.start in WITH_RANKS:
        return environment.of_rank(slot, rank, f"{seen}/{membership.HOST_FILE}", slot.hosts[0])
    if spec.shape.start == "elastic":
        attempt = command.environment[MARKER]
        return membership.variables(slot, spec.shape, attempt, seen, slot.hosts[0])
    return {}


def _run(command: Command, slot: Slot, spec: PayloadSpec, workdir: Path) -> Exit:
    """All ranks to their end; the first exit that was not good."""
    running = []
    if spec.shape.start != "single":
        membership.write_files(workdir, slot)
    try:
        for rank in range(slot.ranks):
            variables = {**command.environment, **_of_rank(command, slot, spec, rank)}
            running.append(subprocess.Popen(command.argv, env=variables, cwd=workdir))
        codes = [process.wait() for process in running]
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()
    code = next((code for code in codes if code), 0)
    return Exit(code=code) if code >= 0 else Exit(signal=-code)
