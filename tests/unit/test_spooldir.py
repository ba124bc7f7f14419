"""The spool directory and the runner that lies in it."""

from __future__ import annotations

import random
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from harvester import ids
from harvester.errors import ConfigurationError, StorageUnavailable
from harvester.model import AttemptId, LeaseId, Tag
from harvester.spool.runner_archive import build_runner_archive, ensure_runner_archive
from harvester.spool.spooldir import prepare_spool
from payload_runner.files import RealFiles
from payload_runner.protocol import SpoolPaths, check_tag


def test_a_spool_is_named_once_and_private(tmp_path: Path) -> None:
    root = tmp_path / "spool"
    first = prepare_spool(RealFiles(), root, random.Random(1))
    assert prepare_spool(RealFiles(), root, random.Random(2)) == first
    for path in (root, root / "allocations", root / "leases", root / "inputs"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE((root / "spool.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("text", ['{"version": 2, "spool_id": "x"}', "{}", "rubbish"])
def test_a_spool_of_another_kind_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "spool.json").write_text(text)
    with pytest.raises(ConfigurationError, match=r"spool\.json"):
        prepare_spool(RealFiles(), tmp_path, random.Random(1))


def test_a_spool_that_cannot_be_made_is_tried_again_later(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageUnavailable, match="file"):
        prepare_spool(RealFiles(), tmp_path / "file" / "spool", random.Random(1))


def test_the_runner_archive_is_the_same_bytes_each_time_and_runs(tmp_path: Path) -> None:
    assert build_runner_archive() == build_runner_archive()
    spool = SpoolPaths(tmp_path)
    RealFiles().make_dir(spool.runner_dir)
    path = ensure_runner_archive(RealFiles(), spool)
    assert re.fullmatch(r"payload_runner-[0-9a-f]{12}\.pyz", path.name)
    before = path.stat().st_mtime_ns
    assert ensure_runner_archive(RealFiles(), spool) == path
    assert path.stat().st_mtime_ns == before
    # Isolated: what it needs lies in it or in the standard library.
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(path), "--version"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_tags_are_well_formed_and_never_repeat() -> None:
    rng = random.Random(7)
    spool_id = ids.new_spool_id(rng)
    taken: set[Tag] = set()
    for _ in range(500):
        tag = ids.new_tag(spool_id, rng, taken.__contains__)
        assert check_tag(tag) == tag
        assert tag.startswith(ids.tag_prefix(spool_id))
        assert tag not in taken
        taken.add(tag)


def test_an_attempt_id_tells_its_try() -> None:
    assert ids.attempt_id(LeaseId("1.2.3"), 4) == "1.2.3.4"
    assert ids.try_of(AttemptId("1.2.3.14")) == 14
