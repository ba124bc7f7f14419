"""What an attempt came to: its exit and the bytes of its ``output.json``. Pure.

The contract is iDDS's: ``{"status": 0, "loss": 0.01, "message": "..."}``, where a missing status
or 0 means good. Whatever else is found is a failure of the point, with the true reason.
"""

from __future__ import annotations

import json
import math
import signal
from dataclasses import dataclass
from typing import Any, Mapping, Optional

from payload_runner.protocol import METADATA_LIMIT_BYTES

OUTPUT_LIMIT_BYTES = 1_000_000  # of output.json; it holds one number and a message
MESSAGE_LIMIT = 2000
_REASON_TAIL = 400


@dataclass(frozen=True)
class Exit:
    """How the payload's process ended: a code, or the signal that killed it."""

    code: Optional[int] = None
    signal: Optional[int] = None
    peak_memory_mb: int = 0  # of its largest process; 0: unknown

    @property
    def good(self) -> bool:
        return self.code == 0

    @property
    def was_asked_to_end(self) -> bool:
        """Whether a signal that asks to end did it; shells tell it by a code above 128."""
        number = self.signal if self.signal is not None else (self.code or 0) - 128
        return number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True)
class Verdict:
    """State, blame and reason of an attempt, with its loss when it succeeded."""

    state: str
    blame: Optional[str] = None
    reason: Optional[str] = None
    loss: Optional[float] = None
    message: Optional[str] = None

    @property
    def succeeded(self) -> bool:
        return self.state == "succeeded"


class BadOutput(ValueError):
    """An ``output.json`` that is no result; the text says why."""


def judge(
    exit_: Exit, output: Optional[bytes], output_name: str = "output.json", errors: str = ""
) -> Verdict:
    """The verdict on a payload that nobody stopped.

    ``output``: the file's bytes, at most one more than ``OUTPUT_LIMIT_BYTES``; None: missing.
    ``errors``: the end of its stderr, for the reason.
    """
    if not exit_.good:
        return Verdict("failed", "point", with_tail(describe_exit(exit_), errors))
    try:
        loss, message = parse_output(output, output_name)
    except BadOutput as error:
        return Verdict("failed", "point", with_tail(str(error), errors))
    return Verdict("succeeded", loss=loss, message=message)


def parse_output(output: Optional[bytes], name: str) -> tuple[float, Optional[str]]:
    """Loss and message of a good result.

    Raises:
        BadOutput: anything else.
    """
    found = _load_object(output, name)
    message = _message(found.get("message"))
    status = found.get("status", 0)
    if not isinstance(status, (int, float)) or status != 0:
        said = f": {message}" if message else ""
        raise BadOutput(f"{name}: status is {_show(status)}, not 0{said}")
    if "loss" not in found:
        raise BadOutput(f"{name}: there is no loss")
    return _loss(found["loss"], name), message


def parse_metadata(data: bytes, name: str) -> Mapping[str, Any]:
    """The metadata dictionary of a payload.

    Raises:
        BadOutput: too large, no JSON, no object, or with NaN or Infinity in it.
    """
    if len(data) > METADATA_LIMIT_BYTES:
        raise BadOutput(f"{name} dropped: {len(data)} bytes, at most {METADATA_LIMIT_BYTES}")
    try:
        value = json.loads(data, parse_constant=_refuse_constant)
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise BadOutput(f"{name} dropped: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadOutput(f"{name} dropped: expected an object, got {_show(value)}")
    return value


def describe_exit(exit_: Exit) -> str:
    """How a process ended, in words."""
    if exit_.signal is None:
        hint = {126: " (not executable)", 127: " (command not found)"}.get(exit_.code or 0, "")
        return f"exit code {exit_.code}{hint}"
    try:
        name = signal.Signals(exit_.signal).name
    except ValueError:
        name = f"signal {exit_.signal}"
    if exit_.signal != signal.SIGKILL:
        return f"killed by {name}"
    size = f", its largest process held {exit_.peak_memory_mb} MB" if exit_.peak_memory_mb else ""
    return f"killed by {name}, not by the harvester (out of memory?{size})"


def with_tail(reason: str, errors: str) -> str:
    """The reason and the last words on stderr, if there are any."""
    tail = errors.strip()[-_REASON_TAIL:]
    return f"{reason}; stderr ends: {tail}" if tail else reason


def _load_object(output: Optional[bytes], name: str) -> Mapping[str, Any]:
    if output is None:
        raise BadOutput(f"{name} was not written")
    if len(output) > OUTPUT_LIMIT_BYTES:
        raise BadOutput(f"{name} is larger than {OUTPUT_LIMIT_BYTES} bytes")
    if not output.strip():
        raise BadOutput(f"{name} is empty")
    try:
        found = json.loads(output)
    except (ValueError, RecursionError) as error:
        raise BadOutput(f"{name} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise BadOutput(f"{name}: expected an object, got {_show(found)}")
    return found


def _loss(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadOutput(f"{name}: loss is {_show(value)}, not a number")
    try:
        loss = float(value)
    except OverflowError:
        raise BadOutput(f"{name}: loss is an integer beyond the range of a float") from None
    if not math.isfinite(loss):
        raise BadOutput(f"{name}: loss is {loss}, not finite")
    return loss


def _message(value: object) -> Optional[str]:
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:MESSAGE_LIMIT]


def _show(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
