"""Spool and state directory: whoever can write there is the harvester, so nobody else may."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from harvester.errors import ConfigurationError
from harvester.wiring import require_own_directories
from payload_runner.files import RealFiles
from tests.simulation.reference import reference_site


def _check(spool: Path, state: Path) -> None:
    site = reference_site(spool.parent / "index")
    require_own_directories(replace(site, spool=spool, state_dir=state))


def test_directories_that_are_private_or_missing_are_taken(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir(mode=0o700)
    _check(tmp_path / "spool", tmp_path / "state")


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
@pytest.mark.parametrize("which", ["spool", "state"])
def test_directory_that_others_can_write_is_refused(tmp_path: Path, which: str, mode: int) -> None:
    for name in ("spool", "state"):
        (tmp_path / name).mkdir(mode=0o700)
    (tmp_path / which).chmod(mode)
    with pytest.raises(ConfigurationError, match=f"chmod 700 .*{which}"):
        _check(tmp_path / "spool", tmp_path / "state")


def test_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "spool").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="a link does not count"):
        _check(tmp_path / "spool", tmp_path / "state")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir(mode=0o700)
    os.chown(tmp_path / "spool", 65534, -1)
    with pytest.raises(ConfigurationError, match="belongs to user id 65534"):
        _check(tmp_path / "spool", tmp_path / "state")


def test_what_is_made_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        files = RealFiles()
        files.make_dir(tmp_path / "a" / "b")
        files.replace(tmp_path / "a" / "b" / "whole", b"x")
        files.create_exclusive(tmp_path / "a" / "b" / "first", b"x")
        files.create_log(tmp_path / "a" / "b" / "log").close()
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "a").rglob("*")}
    assert modes == {"b": 0o700, "whole": 0o600, "first": 0o600, "log": 0o600}
