"""Which samplers there are, and which options each takes. Imports none of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from harvester.steering.problems import Problems, is_number, nearest

DEFAULT = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One sampler: the module under ``harvester.steering.samplers`` and its options."""

    module: str
    help: str
    light: bool = False  # standard library only, quick: may run in the service's own process
    exhausts: bool = False  # may answer with fewer points: there are no more
    options: Mapping[str, tuple[Callable[[Any], bool], str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SamplerChoice:
    """A task's sampler and its options."""

    name: str = DEFAULT
    options: Mapping[str, Any] = field(default_factory=dict)


_ESTIMATORS = ("GP", "RF", "ET")
_LIES = ("cl_min", "cl_mean", "cl_max", "believer")


def _among(names: tuple[str, ...]) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: isinstance(value, str) and value in names), f"one of {', '.join(names)}"


def _is_start(value: Any) -> bool:
    return is_number(value) and isinstance(value, int) and 1 <= value <= 10_000


_START = (_is_start, "a whole number from 1 to 10000")
_A_NAME = (lambda value: isinstance(value, str) and value.isidentifier(), "an optimiser's name")

SAMPLERS: Mapping[str, Entry] = {
    "auto": Entry(
        module="gp",
        help="Gaussian process with expected improvement; the best measured without a GPU.",
        options={"n_start": _START},
    ),
    "random": Entry(module="simple", help="Independent draws.", light=True),
    "sobol": Entry(module="sobol", help="Evenly spread (scrambled Sobol sequence)."),
    "grid": Entry(
        module="grid",
        help="Every combination of what grid_search marks (else of all finite parameters).",
        light=True,
        exhausts=True,
    ),
    "skopt": Entry(
        module="scikit_optimize",
        help="scikit-optimize: Gaussian process, random forest or extra trees.",
        options={
            "base_estimator": _among(_ESTIMATORS),
            "lie": _among(_LIES),
            "n_start": _START,
        },
    ),
    "nevergrad": Entry(
        module="evolution",
        help="Any registered optimiser of nevergrad; default OnePlusOne.",
        options={"optimizer": _A_NAME, "budget": _START},
    ),
}


def read_sampler(problems: Problems, given: Any) -> SamplerChoice:
    """The ``sampler`` of a configuration: a name, or ``{"name": ..., "options": {...}}``."""
    if given is None:
        return SamplerChoice()
    fields = {"name": given} if isinstance(given, str) else given
    if not isinstance(fields, Mapping):
        problems.add("sampler", given, 'expected a name or {"name": ..., "options": {...}}')
        return SamplerChoice()
    problems.unknown_keys("sampler", map(str, fields), ("name", "options"))
    name = fields.get("name", DEFAULT)
    if not isinstance(name, str) or name not in SAMPLERS:
        problems.add("sampler.name", name, f"is not a known sampler{nearest(name, SAMPLERS)}")
        return SamplerChoice()
    return SamplerChoice(name, _read_options(problems, name, fields.get("options") or {}))


def _read_options(problems: Problems, name: str, options: Any) -> Mapping[str, Any]:
    if not isinstance(options, Mapping):
        problems.add("sampler.options", options, "expected an object")
        return {}
    known = SAMPLERS[name].options
    if not known and options:
        problems.add("sampler.options", dict(options), f"{name} takes none")
        return {}
    problems.unknown_keys("sampler.options", map(str, options), tuple(known))
    for key, value in options.items():
        if key in known and not known[key][0](value):
            problems.add(f"sampler.options.{key}", value, f"expected {known[key][1]}")
    return dict(options)
