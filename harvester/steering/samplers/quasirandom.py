"""Evenly spread points without any library: a Halton sequence with scrambled digits.

Each coordinate counts in its own prime base, and each digit position has a random permutation of
its own. Even the first few points, fewer than the base, fall into different strata of every
coordinate, which a plain Halton sequence does not manage beyond some six dimensions.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence

_COORDINATES_MAX = 100  # beyond it the bases are so large that plain random numbers do as well
_RESOLUTION = 2.0**-24


def halton_point(width: int, index: int, seed: int) -> list[float]:
    """Point ``index`` (from 0) of the sequence of ``seed``, in [0, 1) in each coordinate."""
    bases = _primes(min(width, _COORDINATES_MAX))
    point = [_coordinate(index, base, seed) for base in bases]
    rng = random.Random(f"{seed}/{index}/beyond")
    return point + [rng.random() for _ in range(width - len(point))]


def _coordinate(index: int, base: int, seed: int) -> float:
    value, place, level = 0.0, 1.0 / base, 0
    while place * base > _RESOLUTION or index:
        index, digit = divmod(index, base)
        value += _permutation(seed, base, level)[digit] * place
        place /= base
        level += 1
    return min(value, 1.0 - 2.0**-53)


@functools.lru_cache(maxsize=4096)
def _permutation(seed: int, base: int, level: int) -> Sequence[int]:
    digits = list(range(base))
    random.Random(f"{seed}/{base}/{level}").shuffle(digits)
    return digits


@functools.cache
def _primes(n: int) -> tuple[int, ...]:
    found: list[int] = []
    candidate = 2
    while len(found) < n:
        if all(candidate % prime for prime in found):
            found.append(candidate)
        candidate += 1
    return tuple(found)
