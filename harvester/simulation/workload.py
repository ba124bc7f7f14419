"""What simulated payloads do: how long they take, and how they end. Seeded, so repeatable."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from payload_runner.protocol import Order


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedPayload:
    """One point's payload: seconds of work in all, and its loss; None fails, blaming ``blame``."""

    work_s: float
    loss: float | None
    blame: str = "point"
    reason: str = "exit code 1"


Workload = Callable[[Order], SimulatedPayload]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lognormal:
    """Durations from a lognormal distribution; points in ``failing`` always fail."""

    median_s: float
    sigma: float = 0.3
    seed: int = 0
    failing: frozenset[str] = frozenset()

    def __call__(self, order: Order) -> SimulatedPayload:
        rng = random.Random(f"{self.seed}:{order.task}:{order.point}")
        work = self.median_s * rng.lognormvariate(0.0, self.sigma)
        if order.point in self.failing:
            return SimulatedPayload(work_s=work / 10, loss=None)
        return SimulatedPayload(work_s=work, loss=loss_of(order.parameters))


def loss_of(parameters: Mapping[str, Any]) -> float:
    """A loss that depends on nothing but the point."""
    digest = hashlib.sha256(repr(sorted(parameters.items())).encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32
