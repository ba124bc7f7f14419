"""How the central service is chosen, and found again."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harvester.batch.local import LocalBatch
from harvester.batch.slurm import Slurm
from harvester.central.discovered import DiscoveredCentral
from harvester.central.port import CentralService
from harvester.clock import FakeClock
from harvester.config import load_site
from harvester.errors import CentralUnavailable, ConfigurationError, NotFound
from harvester.simulation.central import SimulatedCentral
from harvester.site import Site
from harvester.wiring import CentralOverrides, make_batch, make_central
from payload_runner.protocol import PayloadSpec


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}


@pytest.fixture
def site(environ: dict[str, str]) -> Site:
    return load_site("local", environ)


def test_batch_system_is_the_one_that_the_site_names(site: Site) -> None:
    assert isinstance(make_batch(site), LocalBatch)
    assert isinstance(make_batch(replace(site, batch_system="slurm")), Slurm)


def test_service_that_is_not_there_yet_is_unavailable_not_fatal(
    site: Site, environ: dict[str, str]
) -> None:
    central = make_central(site, None, environ)
    with pytest.raises(CentralUnavailable, match="harvester central serve"):
        central.tasks()


def test_wrong_url_is_refused_at_once(site: Site, environ: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="expected a URL"):
        make_central(site, CentralOverrides(url="not a url"), environ)


def test_token_file_that_is_missing_is_refused_at_once(
    site: Site, environ: dict[str, str], tmp_path: Path
) -> None:
    overrides = CentralOverrides(url="http://127.0.0.1:1", token_file=tmp_path / "gone")
    with pytest.raises(ConfigurationError, match="gone"):
        make_central(site, overrides, environ)


def test_service_that_stopped_is_named_unavailable(
    site: Site, environ: dict[str, str], tmp_path: Path
) -> None:
    state = tmp_path / ".local/state/harvester"
    state.mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (state / "token").write_text("t")
    (state / "token").chmod(0o600)
    found = {"url": f"http://127.0.0.1:{port}", "token_file": str(state / "token")}
    (state / "central.json").write_text(json.dumps(found))
    with pytest.raises(CentralUnavailable):
        make_central(site, None, environ).tasks()


class Movable:
    """A service that may be nowhere, or at a new place."""

    def __init__(self) -> None:
        self.place: tuple[str, Path] | None = None
        self.connections: list[str] = []

    def discover(self) -> tuple[str, Path]:
        if self.place is None:
            raise NotFound("no central service is known")
        return self.place

    def connect(self, url: str, token_file: Path) -> CentralService:
        self.connections.append(url)
        return SimulatedCentral(FakeClock(), PayloadSpec("p", "true"), ())


@pytest.fixture
def movable() -> tuple[Movable, Callable[[], DiscoveredCentral]]:
    where = Movable()
    return where, lambda: DiscoveredCentral(where.discover, where.connect)


def test_client_follows_a_service_that_moves_and_keeps_one_that_stays(
    movable: tuple[Movable, Callable[[], DiscoveredCentral]],
) -> None:
    where, make = movable
    central = make()
    with pytest.raises(CentralUnavailable, match="no central service is known"):
        central.renew([])
    where.place = ("http://a", Path("t"))
    central.renew([])
    central.renew([])
    where.place = ("http://b", Path("t"))
    central.renew([])
    assert where.connections == ["http://a", "http://b"]
