"""Durations, sizes and node ranges as people write them, parsed in one place.

Every parser raises ``ValueError`` whose message says what would have been accepted.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

DURATION_FORMS = 'a duration such as "02:00:00", "1-12:00:00", "90m", "1h30m" or 5400 (seconds)'
SIZE_FORMS = 'a size with its unit such as "512GB" or "64GiB"'
INSTANT_FORMS = 'an instant with its zone such as "2026-12-01T06:00+01:00" or "2026-12-01T05:00Z"'
NODE_FORMS = 'nodes such as "1-91", [1, 91] or 8'

_CLOCK = re.compile(r"(?:(\d{1,4})-)?(\d{1,4}):([0-5]\d):([0-5]\d)")
_UNITS = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?")
_UNIT_S = (86_400.0, 3_600.0, 60.0, 1.0)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMGTP]i?)?B")
_RANGE = re.compile(r"(\d+)\s*-\s*(\d+)")
_POWERS = "KMGTP"
# A hundred years: instants that lie later than the year 9999 cannot be written.
_DURATION_MAX_S = 36_525 * 86_400.0
_SIZE_DIGITS_MAX = 15


def parse_duration_s(value: object) -> float:
    """Seconds of a duration; a bare number is seconds. "12:00" is refused: it says two things."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not 0 <= value <= _DURATION_MAX_S:
            raise ValueError(DURATION_FORMS)
        return float(value)
    text = value.strip() if isinstance(value, str) else ""
    # The clock form starts with optional days, the other one is days down to seconds.
    match = _CLOCK.fullmatch(text) or (_UNITS.fullmatch(text) if text else None)
    if match is None:
        raise ValueError(DURATION_FORMS)
    seconds = sum(
        float(part) * unit for part, unit in zip(match.groups(), _UNIT_S, strict=True) if part
    )
    if seconds > _DURATION_MAX_S:
        raise ValueError(f"{DURATION_FORMS}, of a hundred years at most")
    return seconds


def parse_size_bytes(value: object) -> int:
    """Bytes of a size: GB is 1000^3, GiB is 1024^3. A bare number is refused."""
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or len(match[1]) > _SIZE_DIGITS_MAX:
        raise ValueError(SIZE_FORMS)
    number, prefix = match.groups()
    if not prefix:
        return int(float(number))
    base = 1024 if prefix.endswith("i") else 1000
    return int(float(number) * base ** (_POWERS.index(prefix[0].upper()) + 1))


def parse_nodes(value: object) -> tuple[int, int]:
    """The smallest and the largest number of nodes; both at least 1, in this order."""
    if isinstance(value, str) and (match := _RANGE.fullmatch(value.strip())):
        value = [int(match[1]), int(match[2])]
    if isinstance(value, int) and not isinstance(value, bool):
        value = [value, value]
    if not isinstance(value, list) or [type(item) for item in value] != [int, int]:
        raise ValueError(NODE_FORMS)
    low, high = value
    if not 1 <= low <= high:
        raise ValueError(f"{NODE_FORMS}: at least 1 and the smaller number first")
    return low, high


def parse_instant(value: object) -> float:
    """Seconds since the epoch of an ISO 8601 instant; without its zone it says many things."""
    try:
        instant = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        instant = None
    if instant is None or instant.tzinfo is None:
        raise ValueError(INSTANT_FORMS)
    return instant.timestamp()


def format_instant(seconds: float) -> str:
    """An instant for people, in UTC: ``2026-12-01 05:00 UTC``."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def format_duration(seconds: float) -> str:
    """A duration for people: ``45 s``, ``12 min``, ``3 h 05 min``, ``2 d 4 h``."""
    whole = max(0, round(seconds))
    if whole < 120:
        return f"{whole} s"
    minutes = whole // 60
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
