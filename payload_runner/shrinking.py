"""Makes a record fit into a log: long texts are cut, and say so. Pure."""

from __future__ import annotations

from typing import Any, Dict

from payload_runner.logfile import MAX_RECORD_BYTES, RecordTooLarge, encode_record

CUT = "\n[... cut ...]\n"
_SHORTEST = 256


def fitted(kind: str, fields: Dict[str, Any]) -> Dict[str, Any]:
    """The fields with their longest texts cut in the middle until the record fits.

    Raises:
        ValueError: NaN or Infinity among the fields.
        RecordTooLarge: it does not fit although no long text is left.
    """
    while True:
        try:
            encode_record(2**31, kind, 2.0e9, fields)
        except RecordTooLarge:
            fields = _shorter(kind, fields)
        else:
            return fields


def _shorter(kind: str, fields: Dict[str, Any]) -> Dict[str, Any]:
    texts = {name: text for name, text in fields.items() if isinstance(text, str)}
    longest = max(texts, key=lambda name: len(texts[name]), default="")
    if not longest or len(texts[longest]) <= _SHORTEST:
        raise RecordTooLarge(f"record {kind!r} is over {MAX_RECORD_BYTES} bytes without its texts")
    text = texts[longest]
    keep = len(text) // 4
    return {**fields, longest: text[:keep] + CUT + text[-keep:]}
