"""Collects everything that is wrong with an input, so that people see it all at once."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from harvester.errors import InputError, Problem
from payload_runner.protocol import to_fields

# Of a point's parameters, or of what describes one evaluation: a record of the file protocol holds
# 64 KiB, with some words about them.
PART_MAX_BYTES = 60 * 1024
_SHOWN_CHARACTERS = 80


class Problems:
    """The problems found so far in one file; nothing is raised before ``check``."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.found: list[Problem] = []

    def add(self, key: str, value: Any, expected: str) -> None:
        """Note one problem; ``value`` is shown as JSON, shortened."""
        self.found.append(Problem(self.file, key, shown(value), expected))

    def tell(self, key: str, sentence: str) -> None:
        """Note a problem that has no value to show."""
        self.found.append(Problem(self.file, key, "", sentence))

    def missing(self, key: str, expected: str) -> None:
        """Note a key that is not there."""
        self.tell(key, f"is missing; {expected}")

    def extend(self, others: Iterable[Problem]) -> None:
        """Take over what another reader found."""
        self.found.extend(others)

    def unknown_keys(self, where: str, given: Iterable[str], known: Collection[str]) -> None:
        """Note each given key that is not known, with the nearest one that is."""
        for key in given:
            if key not in known:
                path = f"{where}.{key}" if where else key
                self.tell(path, f"is not a known key{nearest(key, known)}")

    def check(self) -> None:
        """Raise what was found.

        Raises:
            InputError: there is at least one problem.
        """
        if self.found:
            raise InputError(self.found)


def nearest(name: object, known: Collection[str]) -> str:
    """``; did you mean 'x'?`` or, without a near one, the known names."""
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    lowered = {item.lower(): item for item in known}
    if str(name).lower() in lowered:
        return f"; did you mean {lowered[str(name).lower()]!r}?"
    if len(known) > 40:
        return ""
    return f"; known are {', '.join(sorted(known))}"


def shown(value: Any) -> str:
    """A value as JSON on one line, at most 80 characters."""
    try:
        text = json.dumps(value, default=repr)
    except (TypeError, ValueError, RecursionError):
        text = repr(type(value))
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def json_bytes(value: Any) -> int:
    """The length of a value, or of a record, as the file protocol writes it."""
    return len(json.dumps(to_fields(value), separators=(",", ":")))


def is_number(value: Any) -> bool:
    """A finite int or float that a double can hold; a bool is not a number here."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def is_clean_json(value: Any, depth: int = 16) -> bool:
    """JSON without NaN, infinities, huge numbers, or nesting deeper than ``depth``."""
    if value is None or isinstance(value, (str, bool)):
        return True
    if isinstance(value, (int, float)):
        return is_number(value)
    if depth == 0:
        return False
    if isinstance(value, Mapping):
        return all(
            isinstance(key, str) and is_clean_json(item, depth - 1) for key, item in value.items()
        )
    if isinstance(value, (list, tuple)):
        return all(is_clean_json(item, depth - 1) for item in value)
    return False


def unclean_numbers(value: Any, where: str = "", depth: int = 32) -> Iterator[tuple[str, Any]]:
    """The key and value of each number that ``is_clean_json`` would refuse, in the file's order."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not is_number(value):
            yield where, value
    elif depth and isinstance(value, Mapping):
        for key, item in value.items():
            yield from unclean_numbers(item, f"{where}.{key}" if where else str(key), depth - 1)
    elif depth and isinstance(value, list):
        for index, item in enumerate(value):
            yield from unclean_numbers(item, f"{where}[{index}]", depth - 1)
