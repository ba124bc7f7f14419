"""What the payloads of one node share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Callable, Dict, Mapping, Optional, Protocol, Set

from payload_runner import environment
from payload_runner.gpus import NodeResources
from payload_runner.loop import Loop
from payload_runner.mps import Mps
from payload_runner.outcome import Exit
from payload_runner.protocol import (
    AllocationPlan,
    Event,
    IncarnationPaths,
    PayloadSpec,
    SpoolPaths,
)
from payload_runner.watching import Wake
from payload_runner.workplace import Workplace


class Owner(Protocol):
    """Whoever started a process."""

    def process_ended(self, pid: int, exit_: Exit) -> None:
        """It was reaped; the rest of its group is being killed."""


@dataclass
class Node:
    """The node's resources, places and loop.

    ``emit`` sends an event to the leader, ``tell`` any other word.
    """

    loop: Loop
    plan: AllocationPlan
    spool: SpoolPaths
    incarnation: IncarnationPaths
    workplace: Workplace
    resources: NodeResources
    host: str
    agent_nonce: str
    outer: Mapping[str, str]  # the agent's own environment
    emit: Callable[[Event], None]
    tell: Callable[[str, Dict[str, str]], None]
    wake: Callable[[], Wake]
    wall: Callable[[], float]
    mps: Optional[Mps] = None
    owners: Dict[int, Owner] = field(default_factory=dict)  # by process id
    helpers: Set[int] = field(default_factory=set)  # processes of the agent's own
    _environments: Dict[str, Dict[str, str]] = field(default_factory=dict)

    def environment_of(self, spec: PayloadSpec) -> Dict[str, str]:
        """The part of the environment that all attempts of a payload share."""
        found = self._environments.get(spec.payload_id)
        if found is None:
            found = environment.inherited(self.outer, self.plan.environment, spec.environment)
            self._environments[spec.payload_id] = found
        return found
