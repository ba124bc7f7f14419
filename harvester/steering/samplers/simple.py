"""``random``: independent draws from the space's own distribution."""

from __future__ import annotations

from typing import Any

from harvester.steering.samplers.ask import Ask


def propose(ask: Ask) -> list[dict[str, Any]]:
    """``ask.n`` draws; they may repeat in a small space."""
    rng = ask.rng("random")
    return [ask.space.sample(rng) for _ in range(ask.n)]
