"""What a sampler is asked: the space, the history and how many points."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from harvester.errors import InputError, Problem
from harvester.steering.problems import nearest, shown
from harvester.steering.samplers.registry import SAMPLERS
from harvester.steering.space import SearchSpace, parse_space


@dataclass(frozen=True, slots=True)
class Trial:
    """A point that was asked for earlier. ``state``: done, pending, failed or pruned."""

    parameters: Mapping[str, Any]
    state: str = "done"
    loss: float | None = None

    @property
    def value(self) -> float | None:
        """The loss to learn from: of a done or pruned trial, and only if it is finite."""
        if self.state not in ("done", "pruned") or self.loss is None:
            return None
        return float(self.loss) if math.isfinite(self.loss) else None

    @property
    def is_pending(self) -> bool:
        """Whether its loss may still come."""
        return self.state == "pending"


# How callers may write a trial; the pair is (parameters, loss or None), as iDDS has it.
Past = Trial | Mapping[str, Any] | Sequence[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request for points."""

    sampler: str
    space: SearchSpace
    history: tuple[Trial, ...]
    n: int
    seed: int
    n_asks: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def rng(self, purpose: str) -> random.Random:
        """A random source of its own for each purpose, ask and length of history."""
        return random.Random(f"{self.seed}/{self.n_asks}/{len(self.history)}/{purpose}")

    def number(self, purpose: str) -> int:
        """The same as a seed for numpy, below 2**32."""
        return self.rng(purpose).getrandbits(32)

    def after(self, points: Sequence[Mapping[str, Any]]) -> Ask:
        """The request that is left once ``points`` are pending too."""
        if not points:
            return self
        pending = tuple(Trial(dict(point), "pending") for point in points)
        return replace(self, history=self.history + pending, n=self.n - len(points))


def make_ask(
    name: str,
    space: SearchSpace | Mapping[str, Any],
    history: Sequence[Past],
    n: int,
    seed: int,
    n_asks: int,
    options: Mapping[str, Any] | None,
) -> Ask:
    """The request that loosely typed arguments mean; see ``suggest``.

    Raises:
        InputError: an unknown sampler, or a space that cannot be read.
    """
    if name not in SAMPLERS:
        sentence = f"is not a known sampler{nearest(name, SAMPLERS)}"
        raise InputError(Problem("sampler", "name", shown(name), sentence))
    return Ask(
        sampler=name,
        space=space if isinstance(space, SearchSpace) else parse_space(space),
        history=tuple(map(_trial, history)),
        n=n,
        seed=seed,
        n_asks=n_asks,
        options=dict(options or {}),
    )


def _trial(past: Past) -> Trial:
    if isinstance(past, Trial):
        return past
    if isinstance(past, Mapping):
        parameters, loss = past["parameters"], past.get("loss")
        return Trial(parameters, past.get("state") or _implied_state(loss), loss)
    parameters, loss = past
    return Trial(parameters, _implied_state(loss), loss)


def _implied_state(loss: float | None) -> str:
    return "pending" if loss is None else "done"
