"""Reads JSON that a batch system's command printed: strictly, and every doubt is an error.

Numbers stay the text they are: a job may be called ``1e5``, and PBS prints that as a number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from harvester.batch.commands import Completed

Table = Mapping[str, Any]  # Any because it is what somebody's command printed


def read_table(done: Completed) -> Table:
    """The one JSON object that a command printed.

    Raises:
        BatchUnavailable: it is something else.
    """
    try:
        value = json.loads(
            done.stdout,
            parse_int=str,
            parse_float=str,
            parse_constant=str,
            strict=False,  # PBS leaves control characters in the values of variables
        )
    except (ValueError, RecursionError) as error:
        raise done.unavailable(f"printed what is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise done.unavailable(f"printed no JSON object but {done.stdout[:120]!r}")
    return value


def table(done: Completed, parent: Table, key: str) -> Table:
    """The object under ``key``; {} if the key is missing."""
    value = parent.get(key, {})
    if not isinstance(value, dict):
        raise done.unavailable(f"printed {key} as {value!r:.80}, not as an object")
    return value


def tables(done: Completed, parent: Table, key: str) -> Sequence[Table]:
    """The objects of the array under ``key``, which must be there."""
    value = parent.get(key)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise done.unavailable(f"printed {key} as {value!r:.80}, not as an array of jobs")
    return value


def text(done: Completed, parent: Table, key: str) -> str:
    """The text or number under ``key``, which must be there."""
    value = parent.get(key)
    if not isinstance(value, str):
        raise done.unavailable(f"printed {key} as {value!r:.80}, not as a text or number")
    return value


def text_if_any(done: Completed, parent: Table, key: str) -> str:
    """The text or number under ``key``; "" if the key is missing or null."""
    return "" if parent.get(key) is None else text(done, parent, key)


def count(done: Completed, parent: Table, key: str) -> int:
    """The whole number under ``key``; 0 if it is missing, null or ""."""
    found = text_if_any(done, parent, key)
    if found and not found.isdecimal():
        raise done.unavailable(f"printed {key} as {found!r:.80}, not as a count")
    return int(found or 0)
