"""Points and results carried by hand between a real central service and a site without any."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harvester.bundles.archive import CONTENTS, MANIFEST, BadBundle, Bundle, write_bundle
from harvester.bundles.connected import ConnectedSide
from harvester.bundles.offline import BundleCentral, export_results, import_points
from harvester.central.port import CentralService, ResultFile
from harvester.errors import CentralUnavailable, StorageUnavailable
from harvester.model import LeaseId
from scripts.stack import Stack
from tests.central_service import RunningService, request, result, running_service, sha256

METRICS = b"metrics of a whole run\n" * 1000
SITE = "island"


@dataclass
class Carried:
    """A service with six points that wait, and the two sides of a site called ``island``."""

    service: RunningService
    task: str
    home: Path

    def connected(self, central: CentralService | None = None) -> ConnectedSide:
        found = central or self.service.harvester()
        return ConnectedSide(self.home / "mainland", SITE, "edge", found)

    @property
    def site(self) -> BundleCentral:
        """As a daemon that was just started sees it."""
        return BundleCentral(self.island)

    @property
    def island(self) -> Path:
        return self.home / SITE

    def out(self, points: int, name: str = "out.zip") -> Path:
        """A bundle of points, still on the mainland."""
        self.connected().export(points, self.home / name, 0.0)
        return self.home / name

    def land(self, path: Path) -> int:
        with Bundle(path) as bundle:
            return import_points(bundle, self.island, SITE)

    def back(self, name: str = "back.zip") -> Path:
        export_results(self.island, SITE, "b1", self.home / name, 0.0)
        return self.home / name

    def losses(self) -> list[float]:
        points = self.service.tasks().points(self.task)
        return sorted(point["loss"] for point in points if point["loss"] is not None)


@pytest.fixture
def carried(tmp_path: Path) -> Iterator[Carried]:
    with running_service(tmp_path) as service:
        yield Carried(service, service.submit_and_ask(), tmp_path)


def test_points_go_in_and_results_with_their_files_come_out(carried: Carried) -> None:
    assert carried.land(carried.out(4)) == 4
    reply = carried.site.lease(request(points=100))
    assert len(reply.points) == 4
    assert [spec.payload_id for spec in reply.payloads] == [reply.points[0].payload_id]
    first, *others = reply.points
    archive = carried.home / "metrics.tgz"
    archive.write_bytes(METRICS)
    carried.site.upload(archive, sha256(METRICS), len(METRICS))
    file = ResultFile(role="metrics", name="m.tgz", size=len(METRICS), sha256=sha256(METRICS))
    receipts = carried.site.deliver([result(first, loss=0.25, files=(file,))])
    assert [receipt.verdict for receipt in receipts] == ["counted"]
    carried.site.deliver([result(point, loss=0.5) for point in others])

    with Bundle(carried.back()) as bundle:
        done = carried.connected().take(bundle)

    assert (done.told, done.known, done.refused, done.outstanding) == (4, 0, 0, 0)
    assert carried.losses() == [0.25, 0.5, 0.5, 0.5]
    assert carried.service.harvester()._http.have(sha256(METRICS)) == len(METRICS)


def test_result_whose_file_is_lost_still_counts(carried: Carried) -> None:
    carried.land(carried.out(1))
    (point,) = carried.site.lease(request()).points
    file = ResultFile(role="metrics", name="m.tgz", size=5, sha256=sha256(b"never"))
    carried.site.deliver([result(point, loss=0.25, files=(file,))])
    with Bundle(carried.back()) as bundle:
        assert carried.connected().take(bundle).told == 1
    assert carried.losses() == [0.25]


@pytest.mark.fault("answer lost or repeated")
def test_bundles_may_come_twice_late_and_in_any_order(carried: Carried) -> None:
    early, late = carried.out(2, "early.zip"), carried.out(2, "late.zip")
    assert carried.land(late) == 4  # those of the early one, should it be lost, are in it again
    taken = carried.site.lease(request("a", 100)).points
    assert len(taken) == 4
    assert carried.land(early) == 2
    assert carried.land(late) == 4
    assert carried.site.lease(request("b", 100)).points == ()
    assert carried.site.lease(request("a", 100)).points == taken

    carried.site.deliver([result(taken[0], loss=0.1)])
    first = carried.back("first.zip")
    carried.site.deliver([result(taken[1], loss=0.2)])
    both = carried.back("both.zip")
    told = []
    for path in (both, first, both):
        with Bundle(path) as bundle:
            done = carried.connected().take(bundle)
            told.append((done.told, done.known))
    assert told == [(2, 0), (0, 1), (0, 2)]
    assert carried.losses() == [0.1, 0.2]


def test_site_keeps_results_until_the_other_side_has_them(carried: Carried) -> None:
    carried.land(carried.out(2))
    one, two = carried.site.lease(request()).points
    carried.site.deliver([result(one, loss=0.1)])
    with Bundle(carried.back()) as bundle:
        carried.connected().take(bundle)
    carried.site.deliver([result(two, loss=0.2)])
    assert len(list((carried.island / "out").iterdir())) == 2
    carried.land(carried.out(0))
    (left,) = (carried.island / "out").iterdir()
    assert json.loads(left.read_text())["results"][0]["loss"] == 0.2


def test_export_that_was_cut_short_gets_the_same_points_again(carried: Carried) -> None:
    with pytest.raises(StorageUnavailable, match="cannot write"):
        carried.connected().export(3, carried.home / "no such directory" / "out.zip", 0.0)
    done = carried.connected().export(3, carried.home / "out.zip", 0.0)
    assert (done.fresh, done.outstanding) == (3, 3)
    assert carried.service.points(carried.task)["leased"] == 3


def test_lease_that_another_got_meanwhile_is_not_evaluated(carried: Carried) -> None:
    carried.land(carried.out(6))
    (begun,) = carried.site.lease(request("a", 1)).points
    carried.service.clock.advance(2 * 3600)
    other = carried.service.harvester("other")
    assert len(other.lease(request("x", 6, harvester="other")).points) == 6
    carried.land(carried.out(0))
    assert carried.site.lease(request("b", 100)).points == ()
    assert carried.site.renew([begun.lease]).gone == (begun.lease,)


def test_leases_are_prolonged_by_whoever_reaches_the_service(carried: Carried) -> None:
    carried.out(6)
    for _ in range(3):
        carried.service.clock.advance(2400)
        assert carried.connected().renew() == 6
    other = carried.service.harvester("other")
    assert other.lease(request("x", 6, harvester="other")).points == ()


def test_task_that_is_cancelled_is_stopped_by_the_next_bundle(carried: Carried) -> None:
    carried.land(carried.out(2))
    (begun,) = carried.site.lease(request("a", 1)).points
    carried.service.tasks().act(carried.task, "kill")
    carried.land(carried.out(0))
    assert carried.site.renew([begun.lease]).stop == {begun.lease: "cancelled"}
    assert carried.site.report([]) == {}
    assert carried.site.lease(request("b", 100)).points == ()


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flip(data: bytes) -> bytes:
    at = len(data) // 3
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.fault("content damaged or forged")
@pytest.mark.parametrize("damage", [_cut, _flip, lambda data: b"", lambda data: b"no zip" * 99])
def test_damaged_bundle_is_refused_before_anything_counts(
    carried: Carried, damage: Callable[[bytes], bytes]
) -> None:
    path = carried.out(3)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadBundle, match=r"out\.zip"):
        carried.land(path)
    assert carried.site.lease(request()).points == ()


def test_bundle_for_another_site_or_side_or_release_is_refused(carried: Carried) -> None:
    path = carried.out(1)
    with Bundle(path) as bundle, pytest.raises(BadBundle, match="expected a bundle of site reef"):
        import_points(bundle, carried.island, "reef")
    with Bundle(path) as bundle, pytest.raises(BadBundle, match="expected a bundle of results"):
        carried.connected().take(bundle)
    newer = carried.home / "newer.zip"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(newer, "w") as new:
        head = json.loads(old.read(MANIFEST)) | {"version": 2}
        new.writestr(MANIFEST, json.dumps(head))
        new.writestr(CONTENTS, old.read(CONTENTS))
    with pytest.raises(BadBundle, match="expected harvester-bundle 1"):
        Bundle(newer)


def test_file_name_that_leads_outside_is_refused(carried: Carried) -> None:
    path = carried.home / "evil.zip"
    with zipfile.ZipFile(carried.out(1)) as old, zipfile.ZipFile(path, "w") as new:
        head = json.loads(old.read(MANIFEST)) | {"files": [{"sha256": "../../x", "size": 1}]}
        new.writestr(MANIFEST, json.dumps(head))
        new.writestr(CONTENTS, old.read(CONTENTS))
        new.writestr("files/../../x", b"x")
    with pytest.raises(BadBundle, match="expected a SHA-256 in hex"):
        carried.land(path)


def test_contents_of_another_form_are_refused(carried: Carried) -> None:
    path = carried.home / "odd.zip"
    head = {"kind": "points", "site": SITE, "bundle": "b", "created": "now"}
    write_bundle(path, head, {"points": [{"lease": 1}], "payloads": []}, {})
    with pytest.raises(BadBundle, match=r"contents\.json"):
        carried.land(path)


def test_bundle_holds_no_token(carried: Carried) -> None:
    path = carried.out(6)
    assert path.stat().st_mode & 0o777 == 0o600
    tokens = [file.read_bytes().strip() for file in carried.home.glob("*.token")]
    assert tokens
    with zipfile.ZipFile(path) as archive:
        everything = b"".join(archive.read(name) for name in archive.namelist())
    assert not [token for token in tokens if token in everything]


def test_input_file_that_never_came_is_waited_for(carried: Carried, tmp_path: Path) -> None:
    with pytest.raises(CentralUnavailable, match="came with no bundle"):
        carried.site.fetch_input("0" * 64, tmp_path / "target")
    assert not (tmp_path / "target").exists()
    assert carried.site.renew([LeaseId("1.1.1")]).gone == ()


@pytest.mark.timeout(300)
def test_whole_search_on_a_site_that_only_bundles_reach(tmp_path: Path) -> None:
    """The service on the mainland; daemon, batch system and payloads on the island."""
    island_site = "extends: local\nname: island\ncentral: {kind: bundles}\n"
    with (
        Stack(tmp_path / "mainland", "extends: local\nname: island\n") as mainland,
        Stack(tmp_path / "island", island_site) as island,
    ):
        mainland.start_central()
        task = mainland.submit(_search(tmp_path))
        client = mainland.client()
        mainland.wait(lambda: client.show(task)["points"]["waiting"] >= 4, 60, "points wait")
        site, over, back = "site.yaml", str(tmp_path / "over.zip"), str(tmp_path / "back.zip")
        here, there = str(mainland.root / site), str(island.root / site)
        told = json.loads(mainland.harvester("bundle", "export", here, "--to", over, "--json"))
        assert (told["fresh"], told["outstanding"]) == (4, 4)
        island.harvester("bundle", "import", there, over)
        island.start_daemon()
        island.wait(lambda: _delivered(island) == 4, 120, "all points are evaluated")
        island.harvester("bundle", "export", there, "--to", back)
        done = json.loads(mainland.harvester("bundle", "import", here, back, "--json"))
        assert (done["told"], done["refused"], done["outstanding"]) == (4, 0, 0)
        points = client.points(task)
        assert sorted(point["loss"] for point in points) == [4.5] * 4
        refused = _harvester(island, "bundle", "renew", there)
        assert refused.returncode == 78
        assert "this one holds no leases" in refused.stderr
        wrong = _harvester(mainland, "bundle", "import", here, over)
        assert wrong.returncode == 65
        assert "expected a bundle of results" in wrong.stderr


def _search(directory: Path) -> Path:
    space = {"x": {"method": "uniform", "dimension": {"low": 0.0, "high": 1.0}}}
    (directory / "space.json").write_text(json.dumps(space))
    (directory / "evaluate.sh").write_text("cat loss.json >output.json\n")
    (directory / "loss.json").write_text('{"loss": 4.5}')
    config = {
        "evaluationExec": "sh evaluate.sh",
        "searchSpaceFile": "space.json",
        "sampler": "random",
        "maxPoints": 4,
        "nParallelEvaluation": 4,
        "payload": {"expected_minutes": 0.05},
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory / "config.json"


def _delivered(stack: Stack) -> int:
    found = [json.loads(path.read_text()) for path in stack.site.bundles.glob("out/*.json")]
    return sum(len(item["results"]) for item in found)


def _harvester(stack: Stack, *words: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "harvester", *words)
    environ = {**os.environ, **stack.environment}
    return subprocess.run(
        command, env=environ, cwd=stack.root, capture_output=True, text=True, check=False
    )
