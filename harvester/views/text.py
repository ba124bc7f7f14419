"""Plain text for terminals of 80 columns: safe strings, aligned columns, instants and ages."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import datetime

WIDTH = 80


def clean(text: object) -> str:
    """Text from elsewhere without control characters: it cannot move the cursor or hide lines."""
    return "".join(character if character.isprintable() else "?" for character in str(text))


def clean_lines(text: str) -> str:
    """As ``clean``, with line ends and tabs kept."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else "?" for character in text
    )


def indented(text: str, indent: str) -> list[str]:
    """The lines of a text from elsewhere that say something, each behind ``indent``."""
    return [f"{indent}{clean(line)}" for line in text.splitlines() if line.strip()]


def shorten(text: str, width: int) -> str:
    """At most ``width`` characters, with "..." where something was cut."""
    return text if len(text) <= width else f"{text[: max(0, width - 3)]}..."


def columns(headers: Sequence[str], rows: Iterable[Sequence[object]], indent: str = "") -> str:
    """Rows under their headers, numbers to the right; the last column may run on."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [
        max(len(header), *(len(row[place]) for row in cells)) if cells else len(header)
        for place, header in enumerate(headers)
    ]
    right = [_all_numbers(row[place] for row in cells) for place in range(len(headers))]
    lines = []
    for row in ([*headers], *cells):
        parts = [
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(row, widths, right, strict=True)
        ]
        lines.append((indent + "  ".join(parts)).rstrip())
    return "\n".join(lines)


def number(value: float | None, digits: int = 4) -> str:
    """A number for people, "-" for none."""
    return "-" if value is None else f"{value:.{digits}g}"


def instant(value: object) -> float | None:
    """Seconds since the epoch of an ISO 8601 text or a number; None for anything else."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    try:
        return datetime.fromisoformat(str(value)).timestamp()
    except ValueError:
        return None


def local_time(value: object) -> str:
    """An instant on the reader's own clock: the time today, else the date as well."""
    seconds = instant(value)
    if seconds is None:
        return "-"
    then, now = time.localtime(seconds), time.localtime()
    same_day = then[:3] == now[:3]
    return time.strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M", then)


def _cell(value: object) -> str:
    return "-" if value is None or value == "" else clean(value)


def _all_numbers(texts: Iterable[str]) -> bool:
    return all(text == "-" or text.replace(".", "", 1).lstrip("-").isdigit() for text in texts)
