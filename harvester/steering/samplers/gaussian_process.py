"""A Gaussian process: Matern 5/2 with one length scale per axis (ARD), fitted by MAP.

The amplitude is profiled out of the likelihood; what is searched are the length scales and the
ratio of noise to signal. Formulas: Rasmussen and Williams, Gaussian Processes for Machine
Learning, 2006, sections 4.2 and 5.4.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

Array = NDArray[np.float64]

_NOISE_BOUNDS = (np.log(1e-6), np.log(1.0))
_SCALE_BOUNDS = (np.log(0.03), np.log(30.0))
_NOISE_PRIOR = (np.log(1e-3), 2.0)  # mean and deviation of the logarithm
_SCALE_SIGMA = 1.0
_JITTER = 1e-8


class GaussianProcess:
    """A fitted process over squared distances per axis, as ``Cube.distances`` gives them."""

    def __init__(self, distances: Array, losses: Array) -> None:
        """Fit to losses with their (axes, n, n) distances."""
        self._centre = float(losses.mean())
        self._spread = float(losses.std()) or 1.0
        self._y = (losses - self._centre) / self._spread
        self.scales, self.noise = _fit(distances, self._y)
        self._correlation = correlation(self._weigh(distances))
        self._factorise()
        self._amplitude = max(float(self._y @ self._alpha) / len(self._y), 1e-10)

    def predict(self, distances: Array) -> tuple[Array, Array]:
        """Mean and standard deviation at points with (axes, n, m) distances to the known ones."""
        cross = correlation(self._weigh(distances))
        mean = cross.T @ self._alpha
        reduced = solve_triangular(self._factor, cross, lower=True, check_finite=False)
        variance = np.maximum(1.0 - np.einsum("ij,ij->j", reduced, reduced), 1e-12)
        deviation = np.sqrt(variance * self._amplitude) * self._spread
        return mean * self._spread + self._centre, deviation

    def believe(self, to_known: Array, among: Array) -> None:
        """Take m points for known with the values now predicted (kriging believer).

        Args:
            to_known: distances (axes, n, m) to the known ones.
            among: distances (axes, m, m) among themselves.
        """
        cross = correlation(self._weigh(to_known))
        believed = cross.T @ self._alpha
        self._correlation = np.block(
            [[self._correlation, cross], [cross.T, correlation(self._weigh(among))]]
        )
        self._y = np.concatenate([self._y, believed])
        self._factorise()  # the amplitude stays: belief is no evidence

    def _weigh(self, distances: Array) -> Array:
        squared: Array = np.einsum("gij,g->ij", distances, np.exp(-2.0 * self.scales))
        return squared

    def _factorise(self) -> None:
        n = len(self._y)
        matrix = self._correlation + (np.exp(self.noise) + _JITTER) * np.eye(n)
        self._factor = cholesky(matrix, lower=True, check_finite=False)
        self._alpha = cho_solve((self._factor, True), self._y, check_finite=False)


def correlation(squared: Array) -> Array:
    """Matern 5/2 of squared scaled distances."""
    root = np.sqrt(5.0 * squared)
    result: Array = (1.0 + root + root * root / 3.0) * np.exp(-root)
    return result


def _fit(distances: Array, y: Array) -> tuple[Array, float]:
    """Logarithms of the length scales and of the noise ratio with the largest posterior."""
    n_axes, n = len(distances), len(y)
    typical = np.log(0.5 * np.sqrt(n_axes))
    bounds = [_SCALE_BOUNDS] * n_axes + [_NOISE_BOUNDS]
    steps = 40 if n <= 120 else 15
    best: tuple[float, Array] | None = None
    for offset in (0.0, -1.0) if n <= 120 else (0.0,):
        start = np.append(np.full(n_axes, typical + offset), _NOISE_PRIOR[0])
        found = minimize(
            _posterior,
            start,
            args=(distances, y, typical),
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": steps},
        )
        if best is None or found.fun < best[0]:
            best = (float(found.fun), found.x)
    assert best is not None
    return best[1][:-1], float(best[1][-1])


def _posterior(theta: Array, distances: Array, y: Array, typical: float) -> tuple[float, Array]:
    """Negative log posterior (up to a constant) and its gradient."""
    n = len(y)
    weights, noise = np.exp(-2.0 * theta[:-1]), np.exp(theta[-1])
    squared = np.einsum("gij,g->ij", distances, weights)
    root = np.sqrt(5.0 * squared)
    decay = np.exp(-root)
    matrix = (1.0 + root + root * root / 3.0) * decay
    matrix[np.diag_indices(n)] += noise + _JITTER
    try:
        factor = cholesky(matrix, lower=True, check_finite=False)
    except LinAlgError:
        return 1e10, np.zeros_like(theta)
    inverse = cho_solve((factor, True), np.eye(n), check_finite=False)
    alpha = inverse @ y
    amplitude = max(float(y @ alpha) / n, 1e-10)
    value = 0.5 * n * np.log(amplitude) + np.log(np.diag(factor)).sum()
    outer = 0.5 * (inverse - np.outer(alpha, alpha) / amplitude)
    slope = outer * ((5.0 / 3.0) * (1.0 + root) * decay)
    gradient = np.append(
        np.einsum("gij,ij->g", distances, slope) * weights, np.trace(outer) * noise
    )
    away = np.append((theta[:-1] - typical) / _SCALE_SIGMA, 0.0)
    away[-1] = (theta[-1] - _NOISE_PRIOR[0]) / _NOISE_PRIOR[1]
    gradient += away / np.append(np.full(len(weights), _SCALE_SIGMA), _NOISE_PRIOR[1])
    return float(value + 0.5 * away @ away), gradient
