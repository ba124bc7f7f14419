"""Reads what a batch system's command printed: strictly, and every doubt is an error.

In JSON, numbers stay the text they are: a job may be called ``1e5``, which PBS prints as a number.
"""

from __future__ import annotations

import json
import re
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


def last_line(done: Completed, pattern: re.Pattern[str], what: str) -> re.Match[str]:
    """The last line of the output, whole, which must be ``what``; a greeting may be before it.

    Sites' wrappers, hooks and plug-ins print such greetings.
    """
    lines = done.stdout.split("\n")
    found = pattern.fullmatch(lines[-2]) if len(lines) > 1 and not lines[-1] else None
    if found is None:
        raise done.unavailable(f"printed no {what} but {done.stdout[-200:]!r}")
    return found


def check_complaints(done: Completed, harmless: re.Pattern[str]) -> None:
    """Raise unless the command did it, or every line of its stderr is a harmless one."""
    complaints = [line for line in done.stderr.splitlines() if line.strip()]
    if done.returncode == 0 and not complaints:
        return
    if not complaints or not all(harmless.search(line) for line in complaints):
        raise done.unavailable("failed")
