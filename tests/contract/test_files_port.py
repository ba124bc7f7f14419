"""The contract of ``Files``: the operating system's, the simulated disk, and those over ssh."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harvester.clock import FakeClock
from harvester.remote.channel import Channel
from harvester.remote.files import RemoteFiles
from harvester.remote.link import Link
from harvester.simulation.memory_files import SharedDisk
from harvester.site import Remote
from harvester.spool.runner_archive import build_runner_archive, runner_archive_path
from payload_runner.files import Files, RealFiles
from payload_runner.protocol import SpoolPaths
from tests.loopback import login_node, why_no_ssh


@dataclass
class Bench:
    """An implementation with a private directory to work in."""

    files: Files
    home: Path


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Link]:
    """A connection to a login node on loopback."""
    reason = why_no_ssh()
    if reason:
        pytest.skip(reason)
    with login_node() as node:
        remote = Remote(host=node.host, ssh_config=node.ssh_config, python=sys.executable)
        yield Link(remote, tmp_path_factory.mktemp("links"), time.time)


@pytest.fixture(params=["real", "memory", "ssh"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    files: Files
    if request.param == "ssh":
        channel = make_channel(request.getfixturevalue("link"), tmp_path)
        files = RemoteFiles(channel, tmp_path)
        files.make_dir(tmp_path / "home")
        yield Bench(files, tmp_path / "home")
        channel.close()
        return
    if request.param == "real":
        files = RealFiles()
    else:
        files = SharedDisk(FakeClock().monotonic).host("login")
    home = tmp_path / "home"
    files.make_dir(home)
    yield Bench(files, home)


def make_channel(link: Link, spool: Path) -> Channel:
    archive = build_runner_archive()
    place = runner_archive_path(SpoolPaths(spool), archive)
    return Channel(link, spool, place, lambda: archive, time.monotonic)


def test_directories_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        RealFiles().make_dir(tmp_path / "a" / "b" / "c")
    finally:
        os.umask(before)
    made = [tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "c"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in made] == [0o700] * 3


class TestFilesPort:
    def test_a_log_is_created_once(self, bench: Bench) -> None:
        bench.files.create_log(bench.home / "log").close()
        with pytest.raises(FileExistsError):
            bench.files.create_log(bench.home / "log")

    def test_what_is_appended_can_be_read_from_any_offset(self, bench: Bench) -> None:
        log = bench.files.create_log(bench.home / "log")
        assert log.write(b"hello ") == 6
        log.write(b"world")
        log.sync()
        log.close()
        log.close()
        assert bench.files.read(bench.home / "log", 0, 100) == b"hello world"
        assert bench.files.read(bench.home / "log", 6, 3) == b"wor"
        assert bench.files.read(bench.home / "log", 100, 3) == b""

    def test_a_closed_log_can_be_continued(self, bench: Bench) -> None:
        log = bench.files.create_log(bench.home / "log")
        log.write(b"one ")
        log.close()
        bench.files.continue_log(bench.home / "log").write(b"two")
        assert bench.files.read(bench.home / "log", 0, 100) == b"one two"

    def test_a_missing_log_cannot_be_continued(self, bench: Bench) -> None:
        with pytest.raises(FileNotFoundError):
            bench.files.continue_log(bench.home / "log")

    def test_exclusive_creation_has_one_winner(self, bench: Bench) -> None:
        bench.files.create_exclusive(bench.home / "claim", b"first")
        with pytest.raises(FileExistsError):
            bench.files.create_exclusive(bench.home / "claim", b"second")
        assert bench.files.read(bench.home / "claim", 0, 100) == b"first"

    def test_replace_creates_and_replaces(self, bench: Bench) -> None:
        for content in (b"a longer one", b"short"):
            bench.files.replace(bench.home / "lease.json", content)
            assert bench.files.read(bench.home / "lease.json", 0, 100) == content
        assert bench.files.listdir(bench.home) == ("lease.json",)

    def test_rename_puts_a_file_in_place_of_another(self, bench: Bench) -> None:
        bench.files.replace(bench.home / "a", b"old")
        bench.files.replace(bench.home / "a.part", b"new")
        bench.files.rename(bench.home / "a.part", bench.home / "a")
        assert bench.files.listdir(bench.home) == ("a",)
        assert bench.files.read(bench.home / "a", 0, 100) == b"new"

    def test_rename_of_a_missing_file_fails(self, bench: Bench) -> None:
        with pytest.raises(FileNotFoundError):
            bench.files.rename(bench.home / "a.part", bench.home / "a")

    def test_names_are_listed_sorted_with_directories(self, bench: Bench) -> None:
        bench.files.make_dir(bench.home / "b")
        bench.files.make_dir(bench.home / "b")
        bench.files.replace(bench.home / "c", b"")
        bench.files.replace(bench.home / "a", b"")
        assert bench.files.listdir(bench.home) == ("a", "b", "c")

    def test_parents_are_made_as_well(self, bench: Bench) -> None:
        bench.files.make_dir(bench.home / "x" / "y" / "z")
        assert bench.files.listdir(bench.home / "x") == ("y",)

    def test_what_is_missing_is_said_to_be_missing(self, bench: Bench) -> None:
        assert not bench.files.exists(bench.home / "nothing")
        with pytest.raises(FileNotFoundError):
            bench.files.read(bench.home / "nothing", 0, 1)
        with pytest.raises(FileNotFoundError):
            bench.files.listdir(bench.home / "nothing")
        with pytest.raises(FileNotFoundError):
            bench.files.replace(bench.home / "nothing" / "file", b"")

    def test_removing_twice_is_fine(self, bench: Bench) -> None:
        bench.files.replace(bench.home / "a", b"")
        bench.files.remove(bench.home / "a")
        bench.files.remove(bench.home / "a")
        assert not bench.files.exists(bench.home / "a")
