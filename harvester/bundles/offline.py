"""The central service of a site that only carried files reach: points in, results out.

Lives in one directory of the state directory::

    in/<bundle>.json       the contents of imported bundles
    inputs/<sha256>        input files of payloads
    handed/<hash>.json     which points a request for points got
    out/<name>.json        results, one file per delivery, until the other side has them
    files/<sha256>         files of results

The daemon alone hands out and delivers; imports add to ``in`` and take from ``out``.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harvester.bundles.archive import Bundle, write_bundle
from harvester.central.port import LeaseReply, LeaseRequest, LeaseStanding, Receipt, Report, Result
from harvester.central.records import leased_point, point_fields, result_fields, result_of
from harvester.clock import iso
from harvester.errors import CentralUnavailable, StorageUnavailable
from harvester.model import LeasedPoint, LeaseId
from payload_runner.files import RealFiles
from payload_runner.protocol import BadRecord, PayloadSpec, from_fields

_WRONG = (BadRecord, KeyError, TypeError, ValueError, AttributeError)


class BundlePlaces:
    """The directory of one side's bundles, and how its files are written."""

    def __init__(self, root: Path) -> None:
        """Make what is missing. Raises StorageUnavailable."""
        self._files = RealFiles()
        self.points, self.inputs = root / "in", root / "inputs"
        self.handed, self.out, self.files = root / "handed", root / "out", root / "files"
        try:
            for path in (self.points, self.inputs, self.handed, self.out, self.files):
                self._files.make_dir(path)
        except OSError as error:
            raise StorageUnavailable(f"{root}: {error}") from error

    def write(self, path: Path, value: Mapping[str, Any]) -> None:
        """Put JSON at ``path``, durably, whole or not at all. Raises StorageUnavailable."""
        try:
            self._files.replace(path, json.dumps(value, allow_nan=False).encode())
        except OSError as error:
            raise StorageUnavailable(f"{path}: {error}") from error

    def read(self, path: Path) -> Mapping[str, Any]:
        """A JSON object. Raises StorageUnavailable when it is damaged or cannot be read."""
        try:
            found = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise StorageUnavailable(f"{path} cannot be read: {error}") from error
        if not isinstance(found, dict):
            raise StorageUnavailable(f"{path} holds no object")
        return found


class BundleCentral:
    """Implements ``CentralService`` from what was imported; tells results to who carries them.

    Metrics of running payloads are not carried: what they are for, stopping early, needs an
    answer while the payload runs.
    """

    def __init__(self, root: Path, now: Callable[[], float] = time.time) -> None:
        self._places = BundlePlaces(root)
        self._now = now
        self._lock = threading.Lock()  # calls come from several lanes
        self._known: dict[str, _Imported] = {}
        self._delivered = 0

    def lease(self, request: LeaseRequest) -> LeaseReply:
        with self._lock:
            imported = self._imported()
            path = self._places.handed / f"{hashlib.sha256(request.key.encode()).hexdigest()}.json"
            if path.exists():
                points = _points(self._places.read(path))
                rest = _free(imported, self._handed())
            else:
                free = _free(imported, self._handed())
                points, rest = free[: request.points], free[request.points :]
                if points:
                    self._places.write(path, {"points": [point_fields(item) for item in points]})
            payloads = _payloads(imported, points, request.known_payloads)
            return LeaseReply(
                points=tuple(points), payloads=payloads, more=bool(rest), waiting=len(rest)
            )

    def renew(self, leases: Sequence[LeaseId]) -> LeaseStanding:
        with self._lock:
            imported, asked = self._imported(), set(leases)
            gone = {lease for item in imported for lease in item.gone} & asked
            return LeaseStanding(gone=tuple(sorted(gone)), stop=_stops(imported, asked))

    def deliver(self, results: Sequence[Result]) -> tuple[Receipt, ...]:
        with self._lock:
            self._delivered += 1
            name = f"{time.time_ns():020d}-{self._delivered}"
            told = {"results": [result_fields(result) for result in results]}
            self._places.write(self._places.out / f"{name}.json", told)
        return tuple(Receipt(result.attempt, "counted") for result in results)

    def report(self, reports: Sequence[Report]) -> Mapping[LeaseId, str]:
        with self._lock:
            return _stops(self._imported(), {report.lease for report in reports})

    def fetch_input(self, sha256: str, target: Path) -> None:
        try:
            _copy(self._places.inputs / sha256, target)
        except FileNotFoundError as error:
            reason = f"input file {sha256} came with no bundle; import one that was carried whole"
            raise CentralUnavailable(reason) from error
        except OSError as error:
            raise StorageUnavailable(f"cannot write {target}: {error.strerror}") from error

    def upload(self, path: Path, sha256: str, size: int) -> None:
        target = self._places.files / sha256
        if target.exists():
            return
        part = target.with_name(f"{sha256}.part")
        _copy(path, part)
        with part.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256 or part.stat().st_size != size:
            # As good as gone: no later try finds another.
            raise FileNotFoundError(errno.ENOENT, "the file is not what was reported", str(path))
        RealFiles().rename(part, target)

    def tasks(self) -> Sequence[Mapping[str, Any]]:
        return ()

    def _imported(self) -> list[_Imported]:
        for path in sorted(self._places.points.glob("*.json")):
            if path.name not in self._known:
                self._known[path.name] = _Imported(self._places.read(path))
        return list(self._known.values())

    def _handed(self) -> set[LeaseId]:
        found = (self._places.read(path) for path in self._places.handed.glob("*.json"))
        return {point.lease for one in found for point in _points(one)}


class _Imported:
    """One imported bundle of points."""

    def __init__(self, contents: Mapping[str, Any]) -> None:
        self.points = _points(contents)
        specs = [from_fields(PayloadSpec, item) for item in contents["payloads"]]
        self.payloads = {spec.payload_id: spec for spec in specs}
        self.gone = frozenset(LeaseId(str(lease)) for lease in contents["gone"])
        self.stop = {LeaseId(str(lease)): str(why) for lease, why in contents["stop"].items()}
        self.received = frozenset(str(name) for name in contents["received"])


def import_points(bundle: Bundle, root: Path, site: str) -> int:
    """Take a bundle of points into the site's directory; how many points it names.

    Again, or after a newer one, it does no harm: a point is handed out once, and what the other
    side has received is received.

    Raises:
        BadBundle: nothing was taken.
        StorageUnavailable: it may have been taken in part; take it again.
    """
    bundle.require("points", site)
    contents = bundle.contents()
    try:
        imported = _Imported(contents)
    except _WRONG as error:
        raise bundle.bad_contents(error) from None
    places = BundlePlaces(root)
    try:
        for member in bundle.manifest.files:
            target = places.inputs / member.sha256
            if not target.exists():
                bundle.take(member, target)
    except OSError as error:
        raise StorageUnavailable(f"{root}: {error}") from error
    # Inputs before the points that need them.
    name = hashlib.sha256(bundle.manifest.bundle.encode()).hexdigest()[:16]
    places.write(places.points / f"{name}.json", contents)
    _forget_received(places, imported.received)
    return len(imported.points)


def export_results(root: Path, site: str, bundle: str, target: Path, now: float) -> int:
    """Write all results that the other side is not known to have; how many attempts they tell.

    Raises:
        StorageUnavailable: they cannot be read, or the bundle cannot be written.
    """
    places = BundlePlaces(root)
    deliveries = {path.stem: places.read(path) for path in sorted(places.out.glob("*.json"))}
    files = {
        sha256: places.files / sha256
        for sha256 in _named_files(deliveries.values())
        if (places.files / sha256).exists()
    }
    head = {"kind": "results", "site": site, "bundle": bundle, "created": iso(now)}
    write_bundle(target, head, {"deliveries": deliveries}, files)
    return sum(len(item["results"]) for item in deliveries.values())


def _copy(source: Path, target: Path) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    with source.open("rb") as reader, os.fdopen(os.open(target, flags, 0o600), "wb") as writer:
        shutil.copyfileobj(reader, writer)


def _forget_received(places: BundlePlaces, received: Collection[str]) -> None:
    """Remove the deliveries that the other side has, and the files that only they name."""
    deliveries = sorted(places.out.glob("*.json"))
    gone = [path for path in deliveries if path.stem in received]
    kept = [path for path in deliveries if path.stem not in received]
    needed = _named_files(places.read(path) for path in kept)
    unneeded = _named_files(places.read(path) for path in gone) - needed
    for sha256 in unneeded:
        (places.files / sha256).unlink(missing_ok=True)
    for path in gone:
        path.unlink(missing_ok=True)


def _named_files(deliveries: Iterable[Mapping[str, Any]]) -> set[str]:
    return {
        file.sha256
        for delivery in deliveries
        for fields in delivery["results"]
        for file in result_of(fields).files
    }


def _points(contents: Mapping[str, Any]) -> list[LeasedPoint]:
    return [leased_point(fields) for fields in contents["points"]]


def _free(imported: Sequence[_Imported], handed: Collection[LeaseId]) -> list[LeasedPoint]:
    """Points that nobody got yet and that are still wanted, the most urgent first."""
    unwanted = {lease for item in imported for lease in (*item.gone, *item.stop)}
    found = {point.lease: point for item in imported for point in item.points}
    free = [item for lease, item in found.items() if lease not in handed and lease not in unwanted]
    return sorted(free, key=lambda point: -point.priority)


def _payloads(
    imported: Sequence[_Imported], points: Iterable[LeasedPoint], known: Collection[str]
) -> tuple[PayloadSpec, ...]:
    wanted = {point.payload_id for point in points} - set(known)
    specs = {name: spec for item in imported for name, spec in item.payloads.items()}
    return tuple(specs[name] for name in sorted(wanted) if name in specs)


def _stops(imported: Sequence[_Imported], leases: Collection[LeaseId]) -> dict[LeaseId, str]:
    found = {lease: why for item in imported for lease, why in item.stop.items()}
    return {lease: why for lease, why in found.items() if lease in leases}
