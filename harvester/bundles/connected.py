"""The side that reaches the central service: leases points into bundles, delivers what comes back.

This side holds the leases, and prolongs them with every export, import and ``renew``. A lease that
has run out meanwhile is taken up again as long as nobody else got its point; a result counts in any
case while its point is open. The book of all this is one JSON file in the state directory.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harvester.bundles.archive import Bundle, new_id, write_bundle
from harvester.bundles.offline import BundlePlaces
from harvester.central.port import CentralService, LeaseRequest, Result
from harvester.central.records import leased_point, point_fields, result_of
from harvester.clock import iso
from harvester.errors import CentralRefused, StorageUnavailable
from harvester.model import LeaseId
from payload_runner.protocol import BadRecord, PayloadSpec, from_fields, to_fields

log = logging.getLogger(__name__)

_WRONG = (BadRecord, KeyError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True, slots=True)
class Exported:
    """What a bundle of points holds."""

    fresh: int  # points that were leased for it
    outstanding: int  # all points without a final result, the fresh ones included


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of a bundle of results."""

    told: int  # attempts that were told to the service
    known: int  # attempts that had been told before
    refused: int
    outstanding: int


class ConnectedSide:
    """The book of one site's bundles. One process at a time."""

    def __init__(self, root: Path, site: str, harvester: str, central: CentralService) -> None:
        """Raises StorageUnavailable: the book cannot be read."""
        self._places = BundlePlaces(root)
        self._path = root / "book.json"
        self._site = site
        self._harvester = harvester
        self._central = central
        self._book: dict[str, Any] = {
            "asking": None,  # key of a request whose answer is in no bundle yet
            "points": {},  # lease -> point, those without a final result
            "payloads": {},  # id -> definition
            "gone": [],  # leases that others have, or that are settled
            "stop": {},  # lease -> why
            "received": [],  # names of deliveries that were told to the service
        }
        if self._path.exists():
            self._book |= self._places.read(self._path)

    def export(self, points: int, target: Path, now: float) -> Exported:
        """Lease up to ``points`` more and write all that are outstanding to ``target``.

        Points of an earlier bundle come again, in case it was lost on its way; so do those of an
        export that was cut short.

        Raises:
            Unavailable, Refused: as the central service, or the disk; export again.
        """
        self.renew()
        fresh = self._lease(points) if points else 0
        specs = [from_fields(PayloadSpec, item) for item in self._wanted_payloads()]
        head = {"kind": "points", "site": self._site, "bundle": new_id(), "created": iso(now)}
        contents = {
            "points": list(self._book["points"].values()),
            "payloads": [to_fields(spec) for spec in specs],
            "gone": self._book["gone"],
            "stop": self._book["stop"],
            "received": self._book["received"],
        }
        write_bundle(target, head, contents, self._inputs(specs))
        # Only now: until it lies in a file, the same key gets the same points.
        self._book["asking"] = None
        self._write()
        return Exported(fresh, len(self._book["points"]))

    def take(self, bundle: Bundle) -> Imported:
        """Tell the service what a bundle of results holds. Again, or out of order, is harmless.

        Raises:
            BadBundle: nothing was told.
            Unavailable, Refused: as the central service; import again.
        """
        bundle.require("results", self._site)
        try:
            deliveries = {
                str(name): tuple(result_of(fields) for fields in delivery["results"])
                for name, delivery in sorted(bundle.contents()["deliveries"].items())
            }
        except _WRONG as error:
            raise bundle.bad_contents(error) from None
        told = known = refused = 0
        for name, results in deliveries.items():
            if name in self._book["received"]:
                known += len(results)
                continue
            told += len(results)
            refused += self._tell(bundle, results)
            self._book["received"].append(name)
            self._settle(results)
            self._write()
        self.renew()
        return Imported(told, known, refused, len(self._book["points"]))

    def renew(self) -> int:
        """Prolong the leases of all outstanding points; how many there are then."""
        leases = [LeaseId(lease) for lease in self._book["points"]]
        if leases:
            standing = self._central.renew(leases)
            self._book["stop"] |= standing.stop
            for lease in standing.gone:
                self._book["points"].pop(lease, None)
                self._book["gone"].append(lease)
            self._write()
        return len(self._book["points"])

    def _lease(self, points: int) -> int:
        if self._book["asking"] is None:
            self._book["asking"] = new_id()
            self._write()
        reply = self._central.lease(
            LeaseRequest(
                key=self._book["asking"],
                harvester=self._harvester,
                site=self._site,
                points=points,
            )
        )
        for spec in reply.payloads:
            self._book["payloads"][spec.payload_id] = to_fields(spec)
        for point in reply.points:
            self._book["points"][point.lease] = point_fields(point)
        self._write()
        return len(reply.points)

    def _wanted_payloads(self) -> list[Mapping[str, Any]]:
        points = [leased_point(fields) for fields in self._book["points"].values()]
        wanted = sorted({point.payload_id for point in points})
        return [self._book["payloads"][name] for name in wanted]

    def _inputs(self, specs: list[PayloadSpec]) -> dict[str, Path]:
        """The payloads' input files, fetched where they are not here yet."""
        found = {}
        for sha256 in sorted({item.sha256 for spec in specs for item in spec.files}):
            path = self._places.inputs / sha256
            if not path.exists():
                self._central.fetch_input(sha256, path)
            found[sha256] = path
        return found

    def _tell(self, bundle: Bundle, results: tuple[Result, ...]) -> int:
        """Files first, then the results that name them; how many the service refuses.

        A loss is worth more than its archive: where a file is refused, results go without it.
        """
        named = {file.sha256 for result in results for file in result.files}
        there: set[str] = set()
        with tempfile.TemporaryDirectory(dir=self._places.files) as directory:
            for member in bundle.manifest.files:
                if member.sha256 in named:
                    path = Path(directory) / member.sha256
                    try:
                        bundle.take(member, path)
                    except OSError as error:
                        raise StorageUnavailable(f"{path}: {error.strerror}") from error
                    try:
                        self._central.upload(path, member.sha256, member.size)
                    except CentralRefused as error:
                        log.error("The service refuses a file. file=%s reason=%s", path.name, error)  # noqa: TRY400  # its sentence says it all
                        continue
                    there.add(member.sha256)
        receipts = self._central.deliver([_with_files(result, there) for result in results])
        return sum(receipt.verdict == "refused" for receipt in receipts)

    def _settle(self, results: tuple[Result, ...]) -> None:
        for result in results:
            if result.final:
                self._book["points"].pop(result.lease, None)

    def _write(self) -> None:
        self._places.write(self._path, self._book)


def _with_files(result: Result, there: Collection[str]) -> Result:
    """A result with those of its files that the service has."""
    return replace(result, files=tuple(file for file in result.files if file.sha256 in there))
