"""Pipes and devices are refused where a file is named: nobody waits for their writers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harvester.bundles.archive import Bundle
from harvester.config import list_sites, load_site
from harvester.errors import ConfigurationError, InputError
from harvester.reading import read_regular
from harvester.steering.serve import serve
from harvester.steering.taskfile import load_task

REFUSAL = "cannot be read: it is no regular file but a pipe or device"


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    path = tmp_path / "pipe.yaml"
    os.mkfifo(path)
    return path


def test_a_file_is_read_up_to_the_limit(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"0123456789")
    assert read_regular(file) == b"0123456789"
    assert read_regular(file, 4) == b"0123"


def test_a_directory_and_a_missing_file_are_told_as_ever(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        read_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "absent")


def test_a_configuration_that_is_a_pipe_is_refused(pipe: Path) -> None:
    with pytest.raises(InputError, match=f"{pipe}: {REFUSAL}"):
        load_task(pipe)


def test_a_site_file_that_is_a_pipe_is_refused(pipe: Path, tmp_path: Path) -> None:
    environ = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    with pytest.raises(ConfigurationError, match=f"{pipe}: {REFUSAL}"):
        load_site(str(pipe), environ)


def test_a_site_file_that_became_a_pipe_is_read_anew_and_refused(tmp_path: Path) -> None:
    environ = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    file = tmp_path / "small.yaml"
    file.write_text("extends: local\n")
    load_site(str(file), environ)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ConfigurationError, match=REFUSAL):
        load_site(str(file), environ)


def test_a_pipe_among_the_site_files_is_passed_over(tmp_path: Path) -> None:
    sites = tmp_path / "harvester" / "sites"
    sites.mkdir(parents=True)
    os.mkfifo(sites / "pipe.yaml")
    assert "pipe" not in dict(list_sites({"XDG_CONFIG_HOME": str(tmp_path)}))


def test_a_bundle_that_is_a_pipe_is_refused(pipe: Path) -> None:
    with pytest.raises(InputError, match="expected a bundle, which is a regular file"):
        Bundle(pipe)


def test_a_certificate_that_is_a_pipe_is_refused(pipe: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--tls-cert"):
        serve(tls_cert=pipe, tls_key=pipe, state_home=tmp_path / "state")
