"""Checks a merged site file against schema and rules, and puts every mistake into a sentence."""

from __future__ import annotations

import difflib
import json
import re
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from harvester import paths
from harvester.config_rules import broken_rules
from harvester.config_schema import FORMS, PolicyKeys, SiteKeys
from harvester.config_yaml import Key, Layer
from harvester.errors import ConfigurationError, Problem

_Keys = TypeVar("_Keys", bound=BaseModel)


def validate(first: Path, layer: Layer, others: Iterable[Problem] = ()) -> SiteKeys:
    """The keys of a merged site file; ConfigurationError with everything wrong in it.

    ``others``: what was found wrong elsewhere, to be told at once.
    """
    keys, problems = _keys(SiteKeys, first, layer)
    problems.extend(others)
    for key, sentence in broken_rules(layer.values):
        # A shipped file is a centre without a user; `run` asks for the account.
        if key != ("account",) or first.parent != paths.SHIPPED_SITES:
            problems.append(problem_at(first, layer, key, sentence))
    return _sound(keys, problems)


def validate_policy(path: Path, layer: Layer) -> PolicyKeys:
    """The keys of a policy file; ConfigurationError with everything wrong in it."""
    return _sound(*_keys(PolicyKeys, path, layer))


def _keys(model: type[_Keys], first: Path, layer: Layer) -> tuple[_Keys | None, list[Problem]]:
    try:
        return model.model_validate(layer.values), list(layer.problems)
    except ValidationError as error:
        found = error.errors(include_url=False)
        wrong = [_schema_problem(model, first, layer, details) for details in found]
        return None, [*layer.problems, *wrong]


def _sound(keys: _Keys | None, problems: list[Problem]) -> _Keys:
    if problems or keys is None:
        raise ConfigurationError(sorted(problems, key=lambda item: (item.file, item.line or 0)))
    return keys


def _schema_problem(
    model: type[BaseModel], first: Path, layer: Layer, details: ErrorDetails
) -> Problem:
    # pydantic names a bad key of a mapping by a last element "[key]".
    key: Key = tuple(part for part in details["loc"] if part != "[key]")
    kind = details["type"]
    if kind == "extra_forbidden":
        return problem_at(first, layer, key, f"unknown key{_nearest_key(model, key)}", value="")
    if kind == "missing":
        return problem_at(first, layer, key, "expected this key; it has no default", value="")
    return problem_at(first, layer, key, _expected(kind, details))


def _expected(kind: str, details: ErrorDetails) -> str:
    context = details.get("ctx", {})
    match kind:
        case "literal_error":
            near = difflib.get_close_matches(str(details["input"]), _choices(context), 1, 0.5)
            return f"expected {context['expected']}" + (
                f"; did you mean {near[0]}?" if near else ""
            )
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            word = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}
            sign, bound = next(iter(context.items()))
            return f"expected {word[sign]} {bound:g}"
        case "string_pattern_mismatch":
            return f"expected {FORMS.get(context['pattern'], context['pattern'])}"
        case "harvester":
            return details["msg"]
    return _TYPES.get(kind, f"not accepted: {details['msg']}")


_TYPES = {
    "int_type": "expected a whole number",
    "float_type": "expected a number",
    "string_type": "expected text (put it in quotes)",
    "bool_type": "expected true or false",
    "list_type": "expected a list",
    "dict_type": "expected `key: value` lines",
    "model_type": "expected `key: value` lines",
    "too_short": "expected at least one item",
    "string_too_short": "expected some text",
}


def _choices(context: Mapping[str, Any]) -> list[str]:
    return re.findall(r"'([^']*)'", context["expected"])


def _nearest_key(model: type[BaseModel], key: Key) -> str:
    known = _known_keys(model, key[:-1])
    near = difflib.get_close_matches(str(key[-1]), known, 1, 0.5)
    return f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(known)}"


def _known_keys(model: Any, parents: Key) -> list[str]:
    for part in parents:
        if part not in model.model_fields:
            continue  # an item of a list, or a free name in a mapping
        model = model.model_fields[part].annotation
        while arguments := getattr(model, "__args__", ()):  # list[X], dict[str, X], Annotated[X]
            model = arguments[-1] if typing.get_origin(model) is dict else arguments[0]
    return [field.alias or name for name, field in model.model_fields.items()]


def problem_at(
    first: Path, layer: Layer, key: Key, expected: str, value: str | None = None
) -> Problem:
    place = next(
        (layer.marks[key[:end]] for end in range(len(key), 0, -1) if key[:end] in layer.marks),
        None,
    )
    shown = _shown(layer.values, key) if value is None else value
    file, line = (str(first), None) if place is None else (place.file, place.line)
    return Problem(file, _dotted(key), shown, expected, line)


def _shown(values: Any, key: Key) -> str:
    for part in key:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return ""
    text = values if isinstance(values, str) else json.dumps(values)
    return repr(text)[:80] if isinstance(values, str) else text[:80]


def _dotted(key: Key) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key)
    return text.removeprefix(".")
