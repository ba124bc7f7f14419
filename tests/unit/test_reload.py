"""SIGHUP: what cannot be read, or would be another site, leaves the daemon as it is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from harvester.cli.run import _reloaded
from harvester.config import load_site
from harvester.errors import HarvesterError

SITE = "extends: {}\nname: mine\nspool: {{path: {}/spool}}\n"


def site_file(tmp_path: Path, base: str = "local") -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(SITE.format(base, tmp_path))
    return str(path)


def test_reload_survives_that_no_site_file_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    site = load_site(name := site_file(tmp_path))
    site_file(tmp_path, "slurm")  # not what the cache holds
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(HarvesterError, match="is the installation whole"):
        load_site(name)
    assert _reloaded(name, site) is site
    monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))
    assert _reloaded(name, site) is site


def test_reload_keeps_to_the_batch_system_that_knows_the_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    site = load_site(name := site_file(tmp_path))
    site_file(tmp_path, "slurm")
    assert _reloaded(name, site) is site
    assert "batch system need a restart" in caplog.text
