"""Images on their real way: from a registry or a file to a site, and into a payload's container."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harvester.cli.root import run
from payload_runner.protocol import Container
from tests.container_image import NAME, Podman, make_root
from tests.node_agent import AgentProcess, make_plan
from tests.support import wait_until

pytestmark = pytest.mark.live
RUNTIMES = ("bwrap", "charliecloud", "podman")
SITE = """\
extends: local
name: {name}
containers: {{runtime: {runtime}, image_dir: {directory}}}
"""


@dataclass(frozen=True)
class Source:
    """The same image in a file and in a registry."""

    archive: Path
    image: str
    environment: dict[str, str]


@pytest.fixture(scope="module")
def builder() -> Iterator[Podman]:
    with contextlib.closing(Podman()) as made:
        yield made


@pytest.fixture
def without_images() -> Iterator[Podman]:
    with contextlib.closing(Podman()) as made:
        yield made


@pytest.fixture(scope="module")
def source(builder: Podman, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    missing = [name for name in ("podman", "skopeo", "docker-registry") if not shutil.which(name)]
    if missing:
        pytest.skip(f"{', '.join(missing)} missing; run scripts/testbed/install")
    place = tmp_path_factory.mktemp("source")
    builder.add(make_root(place / "root"), NAME)
    archive = place / "tiny.tar"
    builder.run("save", "--quiet", "--output", str(archive), NAME)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    registries = place / ".config" / "containers" / "registries.conf"
    registries.parent.mkdir(parents=True)
    registries.write_text(f'[[registry]]\nlocation = "{address}"\ninsecure = true\n')
    # Podman looks at the variable, skopeo below the home directory.
    environment = {"CONTAINERS_REGISTRIES_CONF": str(registries), "HOME": str(place)}
    with _registry(place, address):
        image = f"docker://{address}/{NAME}"
        _push(archive, image, environment)
        yield Source(archive, image, environment)


def _registry(place: Path, address: str) -> subprocess.Popen[bytes]:
    config = place / "registry.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n"
        f"storage: {{filesystem: {{rootdirectory: {place}/registry}}}}\n"
        f"http: {{addr: {address}}}\n"
    )
    started = _Killed(
        ["docker-registry", "serve", str(config)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: _answers(f"http://{address}/v2/"), 30)
    return started


class _Killed(subprocess.Popen[bytes]):
    """Ends with its block."""

    def __exit__(self, *details: object) -> None:
        self.kill()
        super().__exit__(None, None, None)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.URLError:
        return False


def _push(archive: Path, image: str, environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["skopeo", "copy", "--quiet", f"docker-archive:{archive}", image],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(params=RUNTIMES)
def site(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    source: Source,
    without_images: Podman,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A site file; Podman starts without any image."""
    for name, value in (*source.environment.items(), ("XDG_CACHE_HOME", str(tmp_path / "cache"))):
        monkeypatch.setenv(name, value)
    for name, value in without_images.environment.items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "here.yaml"
    file.write_text(SITE.format(name="here", runtime=request.param, directory=tmp_path / "images"))
    return file


def runs(site: Path, image: str) -> bool:
    """Whether a payload of this site finds its shell in the image."""
    runtime = site.read_text().split("runtime: ")[1].split(",")[0]
    directory = str(site.parent / "images")
    plan = make_plan(container_runtime=runtime, image_dir=directory)
    with AgentProcess(site.parent, plan) as agent:
        ended = agent.run("""echo '{"loss": 1}' > output.json""", container=Container(image))
    assert ended.state == "succeeded", ended.reason
    return True


@pytest.mark.slow
def test_image_of_a_registry_is_pulled_and_runs(site: Path, source: Source) -> None:
    assert run(["image", "pull", source.image, "--site", str(site)]) == 0
    assert run(["image", "list", "--site", str(site)]) == 0
    assert runs(site, source.image)


def test_image_in_a_file_is_imported_and_runs(
    site: Path, source: Source, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "docker://brought/by-hand:2"
    words = ["image", "import", str(source.archive), "--name", name, "--site", str(site)]
    assert run(words) == 0
    capsys.readouterr()
    assert run(["image", "list", "--site", str(site), "--json"]) == 0
    assert "by-hand" in capsys.readouterr().out
    assert runs(site, name)


@pytest.mark.slow
def test_pull_of_what_no_registry_has_is_told(
    site: Path, source: Source, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = source.image.replace("tiny", "nosuch")
    assert run(["image", "pull", missing, "--site", str(site)]) == 69
    assert "failed with exit code" in capsys.readouterr().err
    directory = site.parent / "images"
    assert not directory.exists() or not any(directory.iterdir())
