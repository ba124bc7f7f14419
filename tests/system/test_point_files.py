"""``harvester point files`` against a real central service: list, bring home, never overwrite."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harvester.central.port import ResultFile
from harvester.cli.root import run
from harvester.model import LeasedPoint
from tests.central_service import RunningService, failure, request, result, running_service, sha256
from tests.published import validate

METRICS, METADATA = b"archive " * 1000, b'{"epochs": 3}'


@dataclasses.dataclass
class Told:
    """What one command said."""

    code: int
    out: str
    err: str


Cli = Callable[..., Told]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with running_service(tmp_path_factory.mktemp("home")) as service:
        yield service


@pytest.fixture
def cli(
    service: RunningService, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Cli:
    monkeypatch.setenv("HARVESTER_CENTRAL", service.url)
    monkeypatch.setenv("HARVESTER_TOKEN_FILE", str(service.token_file()))

    def call(*arguments: str) -> Told:
        capsys.readouterr()
        code = run(arguments)
        return Told(code, *capsys.readouterr())

    return call


@pytest.fixture
def point(service: RunningService) -> LeasedPoint:
    """A leased point of a task of its own."""
    task = service.submit_and_ask(config_maxPoints=1, config_nParallelEvaluation=1)
    (found,) = service.harvester().lease(request(f"for-{task}", 1)).points
    assert found.task == task
    return found


def file(role: str, name: str, content: bytes) -> ResultFile:
    return ResultFile(role=role, name=name, size=len(content), sha256=sha256(content))


def upload(service: RunningService, *contents: bytes) -> None:
    for content in contents:
        path = service.home / sha256(content)
        path.write_bytes(content)
        service.harvester().upload(path, sha256(content), len(content))


def settle(service: RunningService, point: LeasedPoint, *files: ResultFile) -> None:
    (receipt,) = service.harvester().deliver([result(point, files=files)])
    assert receipt.verdict == "counted"


@pytest.fixture
def name(service: RunningService, point: LeasedPoint) -> str:
    """A point with a metrics archive and a metadata file."""
    upload(service, METRICS, METADATA)
    settle(service, point, file("metrics", "m.tgz", METRICS), file("metadata", "d.json", METADATA))
    return f"{point.task}.{point.point}"


def brought(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_files_are_listed_with_size_and_hash(cli: Cli, name: str) -> None:
    told = cli("point", "files", name)
    assert told.code == 0
    assert f"metrics   m.tgz    8000  {sha256(METRICS)}" in told.out
    listed: Any = json.loads(cli("point", "files", name, "--json").out)
    validate(listed, "files.schema.json")
    assert [(item["name"], item["path"]) for item in listed["files"]] == [
        ("d.json", None),
        ("m.tgz", None),
    ]


def test_files_come_home_once_and_are_left_when_they_are_there(
    cli: Cli, name: str, tmp_path: Path
) -> None:
    home = tmp_path / "new" / "home"
    told = cli("point", "files", name, "--to", str(home), "--json")
    assert (told.code, told.err) == (0, "files brought: 2, there already: 0\n")
    assert brought(home) == {"m.tgz": METRICS, "d.json": METADATA}
    assert [item["path"] for item in json.loads(told.out)["files"]] == [
        str(home / "d.json"),
        str(home / "m.tgz"),
    ]
    assert (
        "files brought: 0, there already: 2" in cli("point", "files", name, "--to", str(home)).err
    )


def test_a_file_of_other_content_is_never_overwritten(cli: Cli, name: str, tmp_path: Path) -> None:
    (tmp_path / "m.tgz").write_bytes(b"mine")
    told = cli("point", "files", name, "--to", str(tmp_path))
    assert told.code == 65
    assert f"{tmp_path / 'm.tgz'}: is there with other content" in told.err
    assert brought(tmp_path) == {"m.tgz": b"mine"}


def test_a_transfer_that_broke_off_goes_on(cli: Cli, name: str, tmp_path: Path) -> None:
    part = tmp_path / f".{sha256(METRICS)}.arriving.part"
    part.write_bytes(METRICS[:3000])
    assert cli("point", "files", name, "--to", str(tmp_path)).code == 0
    assert brought(tmp_path) == {"m.tgz": METRICS, "d.json": METADATA}


def test_a_name_that_leaves_the_directory_is_replaced(
    cli: Cli, service: RunningService, point: LeasedPoint, tmp_path: Path
) -> None:
    upload(service, METRICS, METADATA)
    files = (file("metrics", "../../x.tgz", METRICS), file("metadata", ".bashrc", METADATA))
    settle(service, point, *files)
    home = tmp_path / "home"
    assert cli("point", "files", f"{point.task}.{point.point}", "--to", str(home)).code == 0
    assert brought(tmp_path) == {
        f"home/metrics-{sha256(METRICS)[:16]}": METRICS,
        f"home/metadata-{sha256(METADATA)[:16]}": METADATA,
    }


def test_older_attempts_files_of_the_same_name_lie_apart(
    cli: Cli, service: RunningService, point: LeasedPoint, tmp_path: Path
) -> None:
    upload(service, b"first", b"second")
    bad = failure(point, final=False, blame="node", files=(file("metrics", "m.tgz", b"first"),))
    service.harvester().deliver([bad])
    files = (file("metrics", "m.tgz", b"second"),)
    service.harvester().deliver([result(point, 2, files=files)])
    assert cli("point", "files", f"{point.task}.{point.point}", "--to", str(tmp_path)).code == 0
    assert brought(tmp_path) == {"m.tgz": b"second", "attempt-1/m.tgz": b"first"}


def test_a_file_that_never_arrived_is_66(
    cli: Cli, service: RunningService, point: LeasedPoint, tmp_path: Path
) -> None:
    settle(service, point, file("metrics", "lost.tgz", b"never uploaded"))
    told = cli("point", "files", f"{point.task}.{point.point}", "--to", str(tmp_path))
    assert told.code == 66
    assert "lost.tgz of attempt 1" in told.err
    assert brought(tmp_path) == {}


@pytest.mark.parametrize("serial", ["2", "0", "x", "007", "99999999999999999999"])
def test_a_point_that_is_not_there_is_66(cli: Cli, name: str, serial: str) -> None:
    told = cli("point", "files", f"{name.partition('.')[0]}.{serial}")
    assert (told.code, told.out) == (66, "")
    assert f"has no point {serial}" in told.err


def test_a_point_without_files_says_so(cli: Cli, point: LeasedPoint, tmp_path: Path) -> None:
    told = cli("point", "files", f"{point.task}.{point.point}", "--to", str(tmp_path))
    assert (told.code, told.out) == (0, "No files.\n")
