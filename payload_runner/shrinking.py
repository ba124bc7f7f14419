"""Makes a record fit into a log: long texts are cut, and the record says so. Pure.

Writers keep to the limits of the protocol; this is for what escapes make longer than it was, and
keeps one odd record from ending an allocation.
"""

from __future__ import annotations

import json
from typing import Any, Dict, Optional

from payload_runner.logfile import MAX_RECORD_BYTES, RecordTooLarge, encode_record

CUT = "\n[... cut ...]\n"
_SHORTEST = 256


def fitted(kind: str, fields: Dict[str, Any]) -> Dict[str, Any]:
    """The fields with their longest texts cut in the middle until the record fits.

    If that is not enough, the largest other value goes, and ``cut`` names it.

    Raises:
        ValueError: NaN or Infinity among the fields.
        RecordTooLarge: it does not fit whatever is cut.
    """
    while True:
        try:
            encode_record(2**31, kind, 2.0e9, fields)
        except RecordTooLarge:
            fields = _shorter(fields) or _without_largest(kind, fields)
        else:
            return fields


def _shorter(fields: Dict[str, Any]) -> Optional[Dict[str, Any]]:
    """With its longest text cut; None if it has no long one."""
    texts = {name: text for name, text in fields.items() if isinstance(text, str)}
    longest = max(texts, key=lambda name: len(texts[name]), default="")
    if not longest or len(texts[longest]) <= _SHORTEST:
        return None
    text = texts[longest]
    keep = len(text) // 4
    return {**fields, longest: text[:keep] + CUT + text[-keep:]}


def _without_largest(kind: str, fields: Dict[str, Any]) -> Dict[str, Any]:
    sizes = {
        name: len(json.dumps(value))
        for name, value in fields.items()
        if isinstance(value, (dict, list, tuple))
    }
    if not sizes:
        raise RecordTooLarge(f"record {kind!r} is over {MAX_RECORD_BYTES} bytes whatever is cut")
    largest = max(sizes, key=lambda name: sizes[name])
    rest = {name: value for name, value in fields.items() if name != largest}
    return {**rest, "cut": " ".join(filter(None, (rest.get("cut"), largest)))}
