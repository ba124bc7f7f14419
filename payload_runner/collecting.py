"""What an ended payload left behind: its result, metadata, metrics and the state of its disk.

Blocks on files; runs in the loop for plain payloads and in a worker thread for those with files.
"""

from __future__ import annotations

import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, List, Mapping, Optional, Tuple

from payload_runner import runhpo
from payload_runner.commits import commit
from payload_runner.containers import runtime_failed
from payload_runner.outcome import (
    OUTPUT_LIMIT_BYTES,
    BadOutput,
    Exit,
    Verdict,
    judge,
    parse_metadata,
    with_tail,
)
from payload_runner.protocol import (
    INLINE_LIMIT_BYTES,
    METADATA_LIMIT_BYTES,
    FileRef,
    IncarnationPaths,
    Order,
    PayloadSpec,
    SpoolPaths,
)
from payload_runner.relaying import HINT_FILE
from payload_runner.workplace import read_bounded, read_plain, usage_bytes

METRICS_LIMIT_BYTES = 100_000_000  # of the metrics file, before packing
_FULL_BYTES = 1024 * 1024  # less room than this is no room
_OWN_QUOTA_BYTES = 1_000_000_000  # a payload that holds this much has earned "quota exceeded"
_DISK_WORDS = ("No space left on device", "Disk quota exceeded")


@dataclass(frozen=True)
class Leftovers:
    """A payload that ended and has still to be collected."""

    order: Order
    spec: PayloadSpec
    workdir: Path
    exit: Exit
    errors: str  # the end of its stderr
    spool: SpoolPaths
    incarnation: IncarnationPaths
    node_local: bool
    reports_result: bool = True  # False on the further nodes of a payload
    container_runtime: str = "none"  # of the node, for payloads that need one


@dataclass(frozen=True)
class Collected:
    """The verdict and what goes with it. ``notes``: what was dropped, for people."""

    verdict: Verdict
    metadata: Optional[Mapping[str, Any]] = None
    metadata_file: Optional[FileRef] = None
    metrics_file: Optional[FileRef] = None
    notes: Tuple[str, ...] = ()


def needs_thread(left: Leftovers) -> bool:
    """Whether ``collect`` may take long."""
    names = (left.spec.metrics_name, left.spec.meta_name)
    return any(name is not None and os.path.lexists(left.workdir / name) for name in names)


def collect(left: Leftovers) -> Collected:
    """Judge a payload and commit its files. Failures to commit become notes."""
    verdict = _verdict(left)
    if not left.reports_result:
        return Collected(verdict)
    notes: List[str] = []
    metadata, metadata_file = _metadata(left, notes)
    metrics_file = _metrics(left, notes)
    return Collected(verdict, metadata, metadata_file, metrics_file, tuple(notes))


def archive_metrics(source: Path, name: str, point: str, target: Path) -> None:
    """Pack a metrics file as PanDA does: a tgz that holds ``<name>_<point>``. Raises OSError."""
    with tarfile.open(target, "w:gz", compresslevel=6) as tar:
        tar.add(source, f"{os.path.basename(name)}_{point}", recursive=True)


def _verdict(left: Leftovers) -> Verdict:
    if not left.reports_result:
        if left.exit.good:
            return Verdict("succeeded")
        return judge(left.exit, None, left.spec.output_name, left.errors)
    output = None
    if left.exit.good:
        try:
            path = os.path.join(left.workdir, left.spec.output_name)
            output = read_plain(path, OUTPUT_LIMIT_BYTES, within=left.workdir)
            if output is None and left.spec.contract == runhpo.CONTRACT:
                output = runhpo.output_of(left.workdir, left.workdir / HINT_FILE)
        except OSError as error:
            reason = f"{left.spec.output_name} cannot be read: {error.strerror}"
            return Verdict("failed", "point", reason)
    verdict = judge(left.exit, output, left.spec.output_name, left.errors)
    return verdict if verdict.succeeded else _blame_disk(left, _blame_runtime(left, verdict))


def _blame_runtime(left: Leftovers, verdict: Verdict) -> Verdict:
    """A container that could not be started is the site's failure, not the point's."""
    container, runtime = left.spec.container, left.container_runtime
    if container is None or not runtime_failed(runtime, left.exit.code, left.errors):
        return verdict
    reason = (
        f"{runtime} could not run the container of image {container.image}; if the image is not "
        f"at this site, bring it with `harvester image pull {container.image}`"
    )
    return Verdict("failed", "site", with_tail(reason, left.errors))


def _blame_disk(left: Leftovers, verdict: Verdict) -> Verdict:
    """A failure on a full disk is the point's own only when the point filled it."""
    told = next((words for words in _DISK_WORDS if words in left.errors), None)
    try:
        disk = os.statvfs(left.workdir)
    except OSError:
        return verdict
    full = disk.f_bavail * disk.f_frsize < _FULL_BYTES
    if not full and told is None:
        return verdict
    own = usage_bytes(left.workdir)
    if own * 2 >= disk.f_blocks * disk.f_frsize or own >= _OWN_QUOTA_BYTES:
        reason = f"the payload filled its disk: its working directory holds {own / 1e6:.0f} MB"
        return Verdict("failed", "point", with_tail(reason, left.errors))
    where = "node" if left.node_local else "site"
    reason = f"the disk of the working directory is full, {own / 1e6:.0f} MB are the payload's"
    return Verdict("failed", where, with_tail(reason, left.errors))


def _metadata(
    left: Leftovers, notes: List[str]
) -> Tuple[Optional[Mapping[str, Any]], Optional[FileRef]]:
    name = left.spec.meta_name
    if name is None:
        return None, None
    try:
        data = read_bounded(left.workdir / name, METADATA_LIMIT_BYTES, within=left.workdir)
        if data is None and left.spec.contract == runhpo.CONTRACT:
            data = runhpo.metadata_of(left.workdir)
        if data is None:
            return None, None
        if len(data) > METADATA_LIMIT_BYTES:
            size = (left.workdir / name).stat().st_size
            raise BadOutput(f"{name} dropped: {size} bytes, at most {METADATA_LIMIT_BYTES}")
        value = parse_metadata(data, name)
        if len(json.dumps(value)) <= INLINE_LIMIT_BYTES:
            return value, None
        target = left.incarnation.metadata(left.order.attempt)
        return None, commit(left.spool, target, lambda path: _write(path, data))
    except (BadOutput, OSError) as error:
        notes.append(str(error))
        return None, None


def _metrics(left: Leftovers, notes: List[str]) -> Optional[FileRef]:
    name = left.spec.metrics_name
    if name is None or not os.path.lexists(left.workdir / name):
        return None
    target = left.incarnation.metrics(left.order.attempt)
    size = max(usage_bytes(left.workdir / name), os.lstat(left.workdir / name).st_size)
    if size > METRICS_LIMIT_BYTES:
        notes.append(f"{name} dropped: {size} bytes, at most {METRICS_LIMIT_BYTES}")
        return None
    try:
        return commit(
            left.spool,
            target,
            lambda path: archive_metrics(left.workdir / name, name, left.order.point, path),
        )
    except OSError as error:
        notes.append(f"{name} dropped: {error}")
        return None


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
