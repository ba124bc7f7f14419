"""GPUs and cores of a node: which there are, how payloads are told theirs, which cores are near."""

from __future__ import annotations

import functools
import glob
import os
import re
from dataclasses import dataclass
from typing import FrozenSet, List, Mapping, Sequence, Set, Tuple

from payload_runner.placement import Slot
from payload_runner.protocol import NodeShape

_NONE_GIVEN = ("NoDevFiles", "none", "None", "-1")  # as Slurm and sites write "no GPU"
_COMPANIONS = {
    # Numbers in batch systems and drivers follow the bus; CUDA's own default does not.
    "CUDA_VISIBLE_DEVICES": {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
    "ZE_AFFINITY_MASK": {"ZE_ENABLE_PCI_ID_DEVICE_ORDER": "1"},
}


@dataclass(frozen=True)
class NodeResources:
    """What the agent may hand out on its node."""

    gpu_variable: str
    gpus: Tuple[str, ...]  # as the batch system names them; a slot's index counts from 0 here
    cores: Tuple[int, ...]  # kernel numbers; a slot's core counts from 0 here
    memory_mb: int
    pin: bool = True

    @property
    def shape(self) -> NodeShape:
        return NodeShape(
            gpus=len(self.gpus),
            cores=len(self.cores),
            memory_mb=self.memory_mb,
            gpu_variable=self.gpu_variable,
        )


def find_resources(
    promised: NodeShape, environ: Mapping[str, str], *, pin: bool = True
) -> NodeResources:
    """The node as it is. GPUs come from the variable that the batch system set, else the plan.

    ``pin``: False on virtual nodes, which share the machine's cores with one another.
    """
    gpus = given_gpus(promised, environ)
    cores = sorted(os.sched_getaffinity(0))
    if pin:
        # Names that the site has put in order say already which cores are near.
        near = [] if promised.gpu_names else cores_near_gpus()
        ordered = order_cores(cores, near_each(gpus, near))
    else:
        ordered = list(range(promised.cores)) if promised.cores else cores
    memory_mb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1_000_000
    return NodeResources(
        promised.gpu_variable, gpus, tuple(ordered), promised.memory_mb or memory_mb, pin
    )


def given_gpus(promised: NodeShape, environ: Mapping[str, str]) -> Tuple[str, ...]:
    """The names of the GPUs that we may use, in order; at most as many as were promised."""
    given = environ.get(promised.gpu_variable, "").strip()
    if given in _NONE_GIVEN:
        return ()
    if not given:
        numbers = tuple(str(number) for number in range(promised.gpus))
        return promised.gpu_names or numbers
    names = tuple(name.strip() for name in given.split(",") if name.strip())
    # The site's order counts where it speaks of the same GPUs.
    ordered = tuple(name for name in promised.gpu_names if name in names)
    return (ordered if len(ordered) == len(names) else names)[: promised.gpus]


@functools.lru_cache(maxsize=256)  # slots come again and again
def visible(resources: NodeResources, slot: Slot) -> Mapping[str, str]:
    """The variables that show a payload its GPUs and no others."""
    if not resources.gpus:
        return {}
    names = [resources.gpus[gpu.index] for gpu in slot.gpus if gpu.index < len(resources.gpus)]
    return {
        resources.gpu_variable: ",".join(names),
        **_COMPANIONS.get(resources.gpu_variable, {}),
    }


@functools.lru_cache(maxsize=256)
def gpu_labels(host: str, slot: Slot) -> Tuple[str, ...]:
    """``node:index`` or ``node:index/share`` for each GPU of a slot."""
    return tuple(
        f"{host}:{gpu.index}" + ("" if gpu.share >= 1 else f"/{gpu.share:g}") for gpu in slot.gpus
    )


def cores_of(resources: NodeResources, slot: Slot, rank: int = 0, ranks: int = 1) -> FrozenSet[int]:
    """The kernel's numbers of the cores of one of the slot's processes; empty: do not pin."""
    if not resources.pin or any(core >= len(resources.cores) for core in slot.cores):
        return frozenset()
    cores = [resources.cores[core] for core in slot.cores]
    each = len(cores) // ranks
    return frozenset(cores[rank * each : (rank + 1) * each] if each else cores)


@functools.lru_cache(maxsize=256)
def threads_of(resources: NodeResources, slot: Slot) -> int:
    """How many threads a rank should start: its share of cores. 0: nothing to go by."""
    cores = float(len(slot.cores))
    if not cores and resources.gpus:
        shares = sum(gpu.share for gpu in slot.gpus)
        cores = len(resources.cores) * shares / len(resources.gpus)
    return 0 if cores <= 0 else max(1, int(cores) // max(1, slot.ranks))


def near_each(names: Sequence[str], near: Sequence[FrozenSet[int]]) -> List[FrozenSet[int]]:
    """The cores near each of the GPUs that were given, out of those near each GPU of the node.

    Names that are numbers count along the bus; others are taken as its first ones.
    """
    if all(name.isdigit() and int(name) < len(near) for name in names):
        return [near[int(name)] for name in names]
    return list(near[: len(names)])


def order_cores(cores: Sequence[int], near: Sequence[FrozenSet[int]]) -> List[int]:
    """Cores so ordered that the n-th equal part lies near the n-th GPU, as far as that goes."""
    if not near:
        return list(cores)
    left = list(cores)
    each = len(left) // len(near)
    ordered: List[int] = []
    for close in near:
        mine = ([core for core in left if core in close] + [c for c in left if c not in close])[
            :each
        ]
        ordered += mine
        left = [core for core in left if core not in mine]
    return ordered + left


def parse_core_list(text: str) -> FrozenSet[int]:
    """The kernel's list format: ``0-3,8,10-11``; what cannot be read is left out."""
    found: Set[int] = set()
    for part in text.strip().split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match:
            first = int(match.group(1))
            found.update(range(first, int(match.group(2) or first) + 1))
    return frozenset(found)


def cores_near_gpus() -> List[FrozenSet[int]]:
    """The cores close to each NVIDIA or AMD GPU by bus address; [] where sysfs does not say."""
    addresses = set()
    for path in glob.glob("/sys/bus/pci/devices/*/class"):
        folder = os.path.dirname(path)
        # 0x0302: 3D controller, 0x1200: processing accelerator; a display alone is no GPU of ours.
        if _read(path)[:6] in ("0x0302", "0x1200") and _read(f"{folder}/vendor").strip() in (
            "0x10de",
            "0x1002",
        ):
            addresses.add(folder)
    near = [parse_core_list(_read(f"{folder}/local_cpulist")) for folder in sorted(addresses)]
    return near if all(near) else []


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
