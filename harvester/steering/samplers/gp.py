"""``auto``: a Gaussian process with log expected improvement, and now and then a mutation.

The recipe that measured best without a GPU: an evenly spread start; winsorised losses; failures
enter as the worst seen and pending points as what the model believes of them; beyond 300 points
the best 150 and the newest 150; the best point is mutated in every sixth ask, and always where a
model is hopeless (more than 30 axes) or too slow (more than 1,000 points).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import erfcx, log_ndtr

from harvester.steering.samplers.ask import Ask
from harvester.steering.samplers.cube import Array, Cube
from harvester.steering.samplers.gaussian_process import GaussianProcess
from harvester.steering.samplers.losses import finished, most_telling, winsorised

_BEST, _RECENT = 150, 150
_AXES_MAX, _POINTS_MAX = 30, 1_000
_MUTATE_EVERY = 6
_DRAWN, _PARENTS, _CHILDREN = 1_000, 8, 40
_SEARCHERS, _MOVES, _ROUNDS = 5, 30, 10
_APART = 1e-4  # closer to a known point than this in every coordinate: the same point


def propose(ask: Ask) -> list[dict[str, Any]]:
    """``ask.n`` points, one after another, each believed by those after it."""
    cube = Cube(ask.space)
    if cube.width == 0:
        return []
    rng = np.random.default_rng(ask.number("auto"))
    trials, losses = finished(ask.history)
    rows = cube.encode([trial.parameters for trial in trials])
    pending = cube.encode([t.parameters for t in ask.history if t.is_pending])
    if cube.width > _AXES_MAX or len(trials) > _POINTS_MAX:
        found = [_mutation(cube, rng, rows, losses) for _ in range(ask.n)]
        return [cube.decode(row) for row in found]
    chosen = most_telling(losses, _BEST, _RECENT)
    tamed = np.array(winsorised(losses))
    model = _Model(cube, rows[chosen], tamed[chosen])
    model.believe(pending)
    points = []
    for at in range(len(ask.history), len(ask.history) + ask.n):
        mutates = at % _MUTATE_EVERY == _MUTATE_EVERY - 1
        row = _mutation(cube, rng, rows, losses) if mutates else model.best_candidate(rng)
        model.believe(row[None, :])
        points.append(cube.decode(row))
    return points


class _Model:
    """The process with its known rows, believed ones included."""

    def __init__(self, cube: Cube, rows: Array, losses: Array) -> None:
        self._cube = cube
        self._rows = rows
        self._process = GaussianProcess(cube.distances(rows, rows), losses)
        fitted, _ = self._process.predict(cube.distances(rows, rows))
        # What the model takes for the best value: less fooled by noise than the best loss.
        self._best = float(fitted.min())
        self._parents = rows[np.argsort(losses, kind="stable")[:_PARENTS]]

    def believe(self, rows: Array) -> None:
        if len(rows):
            distances = self._cube.distances(self._rows, rows)
            self._process.believe(distances, self._cube.distances(rows, rows))
            self._rows = np.vstack([self._rows, rows])

    def best_candidate(self, rng: np.random.Generator) -> Array:
        """The row that promises most, by global candidates and a local search from the best."""
        scales = np.repeat([0.2, 0.1, 0.05, 0.02], _CHILDREN // 4)
        parents = np.repeat(self._parents, len(scales), axis=0)
        near = self._cube.mutate(rng, parents, np.tile(scales, len(self._parents))[:, None])
        rows = np.vstack([self._cube.draw(rng, _DRAWN), near])
        worth = self._improvement(rows)
        first = np.argsort(-worth, kind="stable")[:_SEARCHERS]
        rows, worth = rows[first], worth[first]
        for step in range(_ROUNDS):
            rows, worth = self._climb(rng, rows, worth, 0.1 * 0.6**step)
        result: Array = rows[int(np.argmax(worth))]
        return result

    def _climb(
        self, rng: np.random.Generator, rows: Array, worth: Array, scale: float
    ) -> tuple[Array, Array]:
        moved = self._cube.mutate(rng, np.repeat(rows, _MOVES, axis=0), scale)
        moved_worth = self._improvement(moved).reshape(len(rows), _MOVES)
        best = np.argmax(moved_worth, axis=1)
        found = moved.reshape(len(rows), _MOVES, -1)[np.arange(len(rows)), best]
        found_worth = moved_worth[np.arange(len(rows)), best]
        better = found_worth > worth
        return np.where(better[:, None], found, rows), np.where(better, found_worth, worth)

    def _improvement(self, rows: Array) -> Array:
        """Logarithm of the expected improvement; minus infinity at points that are known."""
        distances = self._cube.distances(self._rows, rows)
        mean, deviation = self._process.predict(distances)
        worth = log_expected_improvement((self._best - mean) / deviation) + np.log(deviation)
        known = distances.max(axis=0).min(axis=0) < _APART**2
        return np.where(known, -np.inf, worth)


def log_expected_improvement(z: Array) -> Array:
    """``log(pdf(z) + z cdf(z))``, exact far into the lower tail, where the plain form is 0.

    After Ament et al., Unexpected Improvements to Expected Improvement, 2023.
    """
    log_pdf = -0.5 * z * z - 0.5 * np.log(2.0 * np.pi)
    low = np.minimum(z, -1.0)
    # 1 + z cdf/pdf, which cancels; beyond -1e3 its series 1/z^2 is exact to double precision.
    tail = 1.0 + low * np.sqrt(np.pi / 2.0) * erfcx(-low / np.sqrt(2.0))
    tail = np.where(low < -1e3, low**-2.0, np.maximum(tail, 1e-300))
    high = np.maximum(z, -1.0)
    plain = np.log(
        np.exp(-0.5 * high * high) / np.sqrt(2.0 * np.pi) + high * np.exp(log_ndtr(high))
    )
    return np.where(z < -1.0, log_pdf + np.log(tail), plain)


def _mutation(cube: Cube, rng: np.random.Generator, rows: Array, losses: list[float]) -> Array:
    """The best row, mutated by a step that grew with every success and shrank between them.

    The (1+1) evolution strategy with the one-fifth rule, its state replayed from the history.
    """
    step, best = 0.2, 0
    for index, loss in enumerate(losses):
        improved = loss <= losses[best]
        step = min(0.5, step * 1.5) if improved else max(0.005, step * 0.9)
        best = index if improved else best
    result: Array = cube.mutate(rng, rows[best : best + 1], step)[0]
    return result
