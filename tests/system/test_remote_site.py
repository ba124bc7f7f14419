"""A site on another host over real ssh on loopback: connection, commands, files, and their end."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harvester.batch.slurm import Slurm
from harvester.config import load_site
from harvester.errors import BatchUnavailable
from harvester.remote.carrier import Carrier
from harvester.remote.channel import Channel
from harvester.remote.files import RemoteFiles
from harvester.remote.link import Link, NoConnection, link_directory
from harvester.remote.site import RemoteSite
from harvester.site import Site
from harvester.spool.runner_archive import build_runner_archive, runner_archive_path
from payload_runner.fileserver import Frame
from payload_runner.protocol import SpoolPaths
from tests.fakes.cluster import FakeCluster
from tests.loopback import LoginNode, login_node, why_no_ssh
from tests.support import wait_until

_SITE = """
name: far
batch_system: slurm
node: {{gpus: 2, cores: 2, memory: 1GB}}
queues: [{{name: batch, bins: [{{nodes: 1-2, walltime: 1h}}]}}]
spool: {{path: {spool}}}
runner: {{launcher: [srun]}}
remote:
  host: far
  ssh_config: {config}
  python: {python}
  prologue: ["PATH={programs}:$PATH", "echo Welcome to the cluster"]
  session: 90m
  session_warning: {warning}
  second_factor: {second_factor}
  timeout: 20s
"""


_LIMITS: Any = {"timeout_s": 20.0, "environment": {}}


@dataclass
class Bench:
    """A login node with a fake Slurm, and a harvester's host with its own state."""

    node: LoginNode
    home: Path
    opened: list[RemoteSite] = field(default_factory=list)

    @property
    def spool(self) -> Path:
        return self.home / "scratch" / "spool"

    @property
    def environ(self) -> Mapping[str, str]:
        own = {f"XDG_{name}_HOME": str(self.home / name) for name in ("STATE", "CACHE", "CONFIG")}
        return {**os.environ, **own}

    def site(self, *, second_factor: bool = False, warning: str = "1h") -> Site:
        text = _SITE.format(
            spool=self.spool,
            config=self.node.ssh_config,
            python=sys.executable,
            programs=self.home / "cluster" / "bin",
            second_factor=str(second_factor).lower(),
            warning=warning,
        )
        (self.home / "far.yaml").write_text(text)
        return load_site(str(self.home / "far.yaml"), self.environ)

    def remote(self, site: Site) -> RemoteSite:
        assert site.remote is not None
        found = RemoteSite(site, site.remote, self.environ)
        self.opened.append(found)
        return found

    def harvester(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = (sys.executable, "-m", "harvester", *words)
        return subprocess.run(
            command, env=self.environ, cwd=self.home, capture_output=True, text=True, check=False
        )


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    reason = why_no_ssh()
    if reason:
        pytest.skip(reason)
    with login_node() as node, FakeCluster(tmp_path / "cluster"):
        bench = Bench(node, tmp_path)
        yield bench
        for far in bench.opened:
            far.close()


def test_commands_of_the_batch_system_run_on_the_login_node(bench: Bench) -> None:
    far = bench.remote(bench.site())
    done = far.executor(["sh", "-c", "echo $0; exit 4"], **_LIMITS)
    assert (done.returncode, done.stdout, done.stderr) == (4, "sh\n", "Welcome to the cluster\n")
    with pytest.raises(BatchUnavailable, match="cannot be started on far; is the batch system"):
        far.executor(["sinfo-is-not-here"], **_LIMITS)
    # Only the prologue's PATH has the commands of this Slurm.
    slurm = Slurm(timeout_s=20.0, execute=far.executor, environment={})
    assert slurm.observe().jobs == ()


def test_second_factor_is_never_tried_without_a_person(bench: Bench) -> None:
    site = bench.site(second_factor=True)
    far = bench.remote(site)
    with pytest.raises(OSError, match="only a person can open it"):
        far.files.exists(bench.spool)
    with pytest.raises(BatchUnavailable, match="only a person can open it"):
        far.executor(["true"], **_LIMITS)
    assert "Accepted" not in (bench.node.home / "log").read_text()
    trouble = far.trouble()
    assert trouble is not None
    assert trouble[1] == "run: harvester site connect far"


def test_person_opens_looks_renews_and_closes(bench: Bench) -> None:
    bench.site(second_factor=True)
    absent = bench.harvester("site", "connect", "--check", "far")
    assert absent.returncode == 75
    assert "run: harvester site connect far" in absent.stderr
    opened = bench.harvester("site", "connect", "far", "--json")
    assert opened.returncode == 0, opened.stderr
    told = json.loads(opened.stdout)
    assert (told["state"], told["host"]) == ("open", "far")
    assert told["until"] > told["since"]
    assert bench.harvester("site", "connect", "--renew", "far").returncode == 0
    assert bench.harvester("site", "connect", "--check", "far").returncode == 0
    # STOP lies where runners look for it.
    assert bench.harvester("stop", "--site", "far", "--reason", "test").returncode == 0
    assert "test" in (bench.spool / "STOP").read_text()
    assert bench.harvester("start", "--site", "far").returncode == 0
    assert not (bench.spool / "STOP").exists()
    assert "is closed" in bench.harvester("site", "connect", "--close", "far").stdout
    assert bench.harvester("site", "connect", "--check", "far").returncode == 75


def test_end_of_the_session_is_announced(bench: Bench) -> None:
    far = bench.remote(bench.site(warning="2h"))
    far.files.exists(bench.spool)
    trouble = far.trouble()
    assert trouble is not None
    assert trouble[0].startswith("the connection to far ends at ")
    assert trouble[1] == "before then run: harvester site connect --renew far"
    assert bench.remote(bench.site(warning="10m")).trouble() is None


def test_site_that_lets_nobody_in_says_what_ssh_says(bench: Bench) -> None:
    bench.node.refuse_keys()
    link = bench.remote(bench.site()).link
    # On a clock that stands still: the second attempt is always too early.
    files = RemoteFiles(
        Channel(link, bench.spool, bench.spool / "runner", bytes, lambda: 0.0), bench.spool
    )
    with pytest.raises(OSError, match="Permission denied"):
        files.exists(bench.spool)
    # The next one does not try at once: a centre locks out who knocks too often.
    before = (bench.node.home / "log").read_text().count("Connection from")
    with pytest.raises(OSError, match="Permission denied"):
        files.exists(bench.spool)
    assert (bench.node.home / "log").read_text().count("Connection from") == before


@pytest.mark.fault("connection to the site cut")
def test_connection_that_dies_is_a_file_system_that_stalls(bench: Bench) -> None:
    site = bench.site()
    far = bench.remote(site)
    log_path = bench.spool / "orders.1.log"
    far.files.make_dir(bench.spool)
    log = far.files.create_log(log_path)
    log.write(b"one\n")
    bench.node.kill_connection(far.link.socket)
    with pytest.raises(OSError, match="session ended"):
        log.write(b"two\n")
    assert far.trouble() is not None

    def wrote_again() -> bool:
        try:
            log.write(b"three\n")
        except OSError:
            return False
        return True

    wait_until(wrote_again, 60)
    assert far.trouble() is None
    assert log_path.read_bytes() == b"one\nthree\n"


class _LosesAnswers(Channel):
    """A session that is cut after the work and before its answer, once."""

    cut = True

    def request(self, head: Mapping[str, Any], body: bytes = b"") -> Frame:
        answer = super().request(head, body)
        if self.cut:
            self.cut = False
            raise OSError(errno.ENOTCONN, "cut")
        return answer


@pytest.mark.fault("connection to the site cut")
@pytest.mark.parametrize("kind", ["log", "claim"])
def test_creation_whose_answer_was_lost_is_ours_when_tried_again(bench: Bench, kind: str) -> None:
    far = bench.remote(bench.site())
    far.files.make_dir(bench.spool)
    archive = build_runner_archive()
    place = runner_archive_path(SpoolPaths(bench.spool), archive)
    channel = _LosesAnswers(far.link, bench.spool, place, lambda: archive, time.monotonic)
    files, path = RemoteFiles(channel, bench.spool), bench.spool / "1"

    def create(data: bytes = b"me") -> object:
        return files.create_log(path) if kind == "log" else files.create_exclusive(path, data)

    with pytest.raises(OSError, match="cut"):
        create()
    create()
    with pytest.raises(FileExistsError):
        create()
    channel.cut = True
    path.unlink()
    with pytest.raises(OSError, match="cut"):
        create()
    path.write_bytes(b"somebody else")
    with pytest.raises(FileExistsError):
        create()
    channel.close()


def test_large_file_goes_over_and_comes_back_whole(bench: Bench, tmp_path: Path) -> None:
    far = bench.remote(bench.site())
    far.files.make_dir(bench.spool)
    data = os.urandom(3_000_000)
    source, there = tmp_path / "source", bench.spool / f"{hashlib.sha256(data).hexdigest()} 'x"
    source.write_bytes(data)
    carrier = Carrier(far.link)
    carrier.send(source, there)
    assert there.read_bytes() == data
    assert there.stat().st_mode & 0o777 == 0o600
    back = tmp_path / "back"
    back.write_bytes(data[:1_000_000])  # of a transfer that was cut off
    carrier.fetch(there, back)
    assert back.read_bytes() == data
    with pytest.raises(OSError, match="rsync failed"):
        carrier.fetch(bench.spool / "missing", back)


def test_directory_is_removed_over_there(bench: Bench) -> None:
    far = bench.remote(bench.site())
    probe = bench.spool / "probes" / "it's one"
    far.files.make_dir(probe)
    far.files.replace(probe / "report.json", b"{}")
    far.discard(probe)
    assert list((bench.spool / "probes").iterdir()) == []


def test_server_serves_nothing_beside_the_spool(bench: Bench) -> None:
    far = bench.remote(bench.site())
    far.files.make_dir(bench.spool)
    for path in (bench.spool / ".." / "far.yaml", bench.spool / "a" / ".." / ".." / "x"):
        with pytest.raises(PermissionError):
            far.files.read(path, 0, 10)


def test_socket_lies_in_a_private_directory_and_its_path_fits(bench: Bench, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    found = link_directory({"XDG_STATE_HOME": str(deep), "HOME": "/"})
    assert found.stat().st_mode & 0o777 == 0o700
    assert len(str(found)) < 60
    site = bench.site()
    assert site.remote is not None
    link = Link(site.remote, found, time.time)
    link.ensure()
    assert link.is_open()
    assert link.close()
    bench.node.stop()
    with pytest.raises(NoConnection, match="cannot connect to"):
        link.ensure()
