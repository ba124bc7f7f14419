"""PanDA's own ``runHPO`` as a payload, in its offline mode: the files by which it talks.

It finds its point in ``JobsEventRanges.json``, works in ``workDir`` below its working directory,
and writes ``event_status.dump``: one announcement for each new checkpoint, while no earlier one
lies there, and at last its loss. What it leaves as ``output.json`` is judged like any payload's.

Source: PanDAWMS/panda-wnscript ``src/runhpo/runHPO.py`` and ``misc_utils.py`` (2022). It expects
the points of a job below a key ``eventRanges``; PanDA's Harvester lists them directly. One entry
serves both.
"""

from __future__ import annotations

import json
import os
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

from payload_runner.protocol import METADATA_LIMIT_BYTES, CheckpointRule, Order, PayloadSpec
from payload_runner.workplace import read_bounded

CONTRACT = "runhpo"
EVENTS_FILE = "JobsEventRanges.json"
DUMP_FILES = ("event_status.dump", "event_status.dump.json")  # as runHPO and Harvester name it
SANDBOX_FILE = "jobO.sandbox.tar"  # the user's files, for its option -a
JOB_REPORT = "jobReport.json"
_ITS_DIRECTORY = "workDir"
_DUMP_BYTES = 1_000_000

_Json = Any  # what a payload wrote


def variables(order: Order) -> Dict[str, str]:
    """What it reads in its environment."""
    return {
        "PAYLOAD_OFFLINE_MODE": "1",
        "PandaID": _job(order),
        "PanDA_TaskID": _word(order.task),
    }


def checkpoint_rule(order: Order, rule: CheckpointRule) -> CheckpointRule:
    """The one file in which it keeps the files that its own option ``--checkPointToSave`` names."""
    return replace(rule, paths=(f"{_ITS_DIRECTORY}/{_archive(order)}",), load_as=None)


def lay_out(order: Order, spec: PayloadSpec, workdir: Path, seen_as: str) -> None:
    """Put beside the payload's files what it reads. ``seen_as``: how it sees ``workdir``.

    Raises OSError.
    """
    restored, kept = workdir / _ITS_DIRECTORY / _archive(order), workdir / _archive(order)
    checkpoint = None
    if restored.exists():
        # It empties its directory before it looks for the checkpoint.
        os.replace(restored, kept)
        checkpoint = f"{seen_as}/{kept.name}"
    (workdir / EVENTS_FILE).write_text(json.dumps(events(order, checkpoint)), encoding="utf-8")
    with tarfile.open(workdir / SANDBOX_FILE, "w:gz", compresslevel=1) as tar:
        for item in spec.files:
            tar.add(workdir / item.name, item.name)


def events(order: Order, checkpoint: Optional[str] = None) -> Dict[str, _Json]:
    """``JobsEventRanges.json``: this one point, so that both layouts are found in it."""
    event = {
        "eventRangeID": f"{_word(order.task)}-{_job(order)}-0-{_word(order.point)}-{order.number}",
        "hp_point": {"id": order.point, "loss": None, "parameters": order.parameters},
    }
    if checkpoint is not None:
        event["checkpoint"] = checkpoint
    return {_job(order): [{**event, "eventRanges": [event]}]}


def take_announcement(workdir: Path, hint: Path) -> bool:
    """Turn its word of a new checkpoint into ``hint``, so that it can give the next one."""
    for name in DUMP_FILES:
        if any(item.get("type") == "checkpoint" for item in _dumped(workdir / name, workdir)):
            os.replace(workdir / name, hint)
            return True
    return False


def output_of(workdir: Path, hint: Path) -> Optional[bytes]:
    """Its loss in the form of ``output.json``, from its dump; None where it wrote none."""
    # The last dump may have become a hint between two looks.
    for path in (*(workdir / name for name in DUMP_FILES), hint):
        for item in _dumped(path, workdir):
            if item.get("eventStatus") == "finished" and "loss" in item:
                return json.dumps({"loss": item["loss"]}).encode()
    return None


def metadata_of(workdir: Path) -> Optional[bytes]:
    """The user's metadata, which it puts into its job report. Raises OSError."""
    data = read_bounded(workdir / JOB_REPORT, 2 * METADATA_LIMIT_BYTES, within=workdir)
    found = _object(data)
    return json.dumps(found["user_job_metadata"]).encode() if "user_job_metadata" in found else None


def _dumped(path: Path, workdir: Path) -> List[Mapping[str, _Json]]:
    try:
        found = _object(read_bounded(path, _DUMP_BYTES, within=workdir))
    except OSError:
        return []
    items = [item for value in found.values() if isinstance(value, list) for item in value]
    return [item for item in items if isinstance(item, dict)]


def _object(data: Optional[bytes]) -> Mapping[str, _Json]:
    try:
        found = json.loads(data or b"{}")
    except (ValueError, RecursionError):  # still being written, or rubbish
        return {}
    return found if isinstance(found, dict) else {}


def _archive(order: Order) -> str:
    return f"{_word(order.task)}_{_word(order.point)}"


def _job(order: Order) -> str:
    """A number for the job, as PanDA's are: the same for the same attempt."""
    return str(zlib.crc32(order.attempt.encode()))


def _word(text: str) -> str:
    """It takes the parts of an event's id to be separated by "-"."""
    return text.replace("-", "_")
