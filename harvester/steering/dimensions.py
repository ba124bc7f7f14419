"""What one hyperparameter may be: its values, and their place in the unit interval.

Samplers think in unit coordinates: every dimension maps ``width`` numbers of [0, 1] to a value
and back. Uniform coordinates give the dimension's own distribution, so random sampling is
nothing but random coordinates.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist
from typing import Any, Protocol

from harvester.steering.problems import is_number

LEVELS_MAX = 1000  # a finer grid is treated as continuous by those that enumerate
_TAIL = 1e-6  # unbounded distributions are cut here, at 4.75 sigma


class Dimension(Protocol):
    """One hyperparameter's values."""

    @property
    def width(self) -> int:
        """How many unit coordinates it takes; 0 for a fixed value."""

    def from_unit(self, unit: Sequence[float]) -> Any:
        """The value at these coordinates; they are clipped to [0, 1] and never refused."""

    def to_unit(self, value: Any) -> tuple[float, ...]:
        """Coordinates that give ``value`` back; the nearest ones for a number outside."""

    def contains(self, value: Any) -> bool:
        """Whether ``value`` is one that this dimension can give."""

    def values(self) -> tuple[Any, ...] | None:
        """All values, or None where there are more than ``LEVELS_MAX`` or infinitely many."""


def same_value(left: Any, right: Any) -> bool:
    """Equality as JSON means it: true is not 1, but 1 is 1.0."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    return bool(left == right)


def clip(unit: float) -> float:
    """A coordinate inside [0, 1]; NaN becomes the middle."""
    return 0.5 if math.isnan(unit) else min(1.0, max(0.0, unit))


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same value."""

    value: Any

    @property
    def width(self) -> int:
        return 0

    def from_unit(self, unit: Sequence[float]) -> Any:
        return self.value

    def to_unit(self, value: Any) -> tuple[float, ...]:
        return ()

    def contains(self, value: Any) -> bool:
        return same_value(self.value, value)

    def values(self) -> tuple[Any, ...]:
        return (self.value,)


@dataclass(frozen=True, slots=True)
class Categorical:
    """One of several distinct JSON values, each with a share of the probability."""

    choices: tuple[Any, ...]
    weights: tuple[float, ...]  # positive, sum 1
    ordered: bool = False  # neighbours are alike (TransitionChoice)

    @property
    def width(self) -> int:
        return 1

    def from_unit(self, unit: Sequence[float]) -> Any:
        edges = list(itertools.accumulate(self.weights))
        return self.choices[min(bisect.bisect_right(edges, clip(unit[0])), len(edges) - 1)]

    def to_unit(self, value: Any) -> tuple[float, ...]:
        index = self.index(value) or 0
        return (sum(self.weights[:index]) + self.weights[index] / 2,)

    def contains(self, value: Any) -> bool:
        return self.index(value) is not None

    def values(self) -> tuple[Any, ...]:
        return self.choices

    def index(self, value: Any) -> int | None:
        """The position of ``value`` among the choices, or None."""
        for index, choice in enumerate(self.choices):
            if same_value(choice, value):
                return index
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Numeric:
    """A number from ``low`` to ``high``, both inclusive, evenly spread on a linear or log scale.

    With ``step`` the values are the multiples of it inside the bounds, each the double (or int)
    nearest to the decimal multiple: 3 x 0.1 is 0.3. A whole ``step`` gives ints.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def width(self) -> int:
        return 1

    @property
    def first(self) -> int:
        """Index of the smallest multiple of ``step`` inside the bounds."""
        return math.ceil(_exact(self.low) / _exact(self.step or 1))

    @property
    def last(self) -> int:
        """Index of the largest multiple; below ``first`` when there is none."""
        return math.floor(_exact(self.high) / _exact(self.step or 1))

    def from_unit(self, unit: Sequence[float]) -> float:
        where = clip(unit[0])
        if self.step is not None:
            return multiple(self._index_at(where), self.step)
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            value = math.exp(low + where * (high - low))
        else:
            value = self.low + where * (self.high - self.low)
        return float(min(self.high, max(self.low, value)))

    def to_unit(self, value: Any) -> tuple[float, ...]:
        number = min(self.high, max(self.low, _number(value, self.low)))
        low, high = self._scaled_bounds()
        if low == high:
            return (0.5,)
        return (clip((self._scaled(number) - low) / (high - low)),)

    def contains(self, value: Any) -> bool:
        if not is_number(value) or not self.low <= value <= self.high:
            return False
        return self.step is None or is_multiple(value, self.step)

    def values(self) -> tuple[Any, ...] | None:
        if self.step is None:
            return (float(self.low),) if self.low == self.high else None
        if self.last - self.first >= LEVELS_MAX:
            return None
        return tuple(multiple(index, self.step) for index in range(self.first, self.last + 1))

    def _index_at(self, where: float) -> int:
        first, last = self.first, self.last
        if not self.log:
            return min(last, first + int(where * (last - first + 1)))
        low, high = self._scaled_bounds()
        found = round(math.exp(low + where * (high - low)) / float(self.step or 1))
        return min(last, max(first, found))

    def _scaled_bounds(self) -> tuple[float, float]:
        """The bounds on the scale; of a stepped one, half a step beyond its outer values."""
        if self.step is None:
            return self._scaled(self.low), self._scaled(self.high)
        step = float(self.step)
        return self._scaled((self.first - 0.5) * step), self._scaled((self.last + 0.5) * step)

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.log else float(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Normal:
    """A normally distributed number; with ``base``, ``base`` to the power of one.

    ``step`` rounds it to the nearest multiple. The tails beyond 4.75 sigma are never sampled.
    """

    mu: float
    sigma: float
    base: float | None = None
    step: float | None = None

    @property
    def width(self) -> int:
        return 1

    def from_unit(self, unit: Sequence[float]) -> float:
        where = min(1 - _TAIL, max(_TAIL, clip(unit[0])))
        value = NormalDist(self.mu, self.sigma).inv_cdf(where)
        if self.base is not None:
            value = self.base**value
        return value if self.step is None else multiple(round(value / self.step), self.step)

    def to_unit(self, value: Any) -> tuple[float, ...]:
        number = _number(value, self.from_unit([0.5]))
        if self.base is not None:
            # Rounded to zero: half a step is what it stands for.
            number = math.log(max(number, (self.step or 1e-300) / 2), self.base)
        return (clip(NormalDist(self.mu, self.sigma).cdf(number)),)

    def contains(self, value: Any) -> bool:
        if not is_number(value):
            return False
        if self.base is not None and (value < 0 or (value == 0 and self.step is None)):
            return False
        return self.step is None or is_multiple(value, self.step)

    def values(self) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Vector:
    """Nested lists of independent numbers of one kind."""

    element: Numeric | Normal
    shape: tuple[int, ...]  # each positive

    @property
    def width(self) -> int:
        return math.prod(self.shape)

    def from_unit(self, unit: Sequence[float]) -> Any:
        values: list[Any] = [self.element.from_unit([item]) for item in unit[: self.width]]
        for size in reversed(self.shape[1:]):
            values = [values[at : at + size] for at in range(0, len(values), size)]
        return values

    def to_unit(self, value: Any) -> tuple[float, ...]:
        flat = _flatten(value, len(self.shape))
        if flat is None or len(flat) != self.width:
            return (0.5,) * self.width
        return tuple(self.element.to_unit(item)[0] for item in flat)

    def contains(self, value: Any) -> bool:
        return self._contains(value, self.shape)

    def values(self) -> None:
        return None

    def _contains(self, value: Any, shape: tuple[int, ...]) -> bool:
        if not shape:
            return self.element.contains(value)
        if not isinstance(value, list) or len(value) != shape[0]:
            return False
        return all(self._contains(item, shape[1:]) for item in value)


def multiple(index: int, step: float) -> float:
    """``index`` times ``step`` as decimals multiply; an int when ``step`` is one."""
    return index * step if isinstance(step, int) else float(index * _exact(step))


def is_multiple(value: float, step: float) -> bool:
    """Whether ``value`` is exactly what ``multiple`` gives for some index, and of its type."""
    if isinstance(step, int) and not isinstance(value, int):
        return False
    return multiple(round(_exact(value) / _exact(step)), step) == value


def _exact(value: float) -> Fraction:
    """The number that a person wrote: 0.1 is one tenth here."""
    return Fraction(repr(value))


def _number(value: Any, otherwise: float) -> float:
    return float(value) if is_number(value) else float(otherwise)


def _flatten(value: Any, depth: int) -> list[Any] | None:
    if not isinstance(value, list):
        return None
    if depth == 1:
        return value
    parts = [_flatten(item, depth - 1) for item in value]
    if any(part is None for part in parts):
        return None
    return [item for part in parts if part is not None for item in part]
