"""A bundle file whose bytes changed on their way is refused, whichever they are."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from harvester.bundles.archive import BadBundle, Bundle, write_bundle

CONTENTS = {"points": [], "why": "an object like any other"}
FILE = b"an input file " * 20
SHA256 = hashlib.sha256(FILE).hexdigest()


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a thousand times nothing
    (tmp_path / "input").write_bytes(FILE)
    path = tmp_path / "whole.zip"
    head = {"kind": "points", "site": "reef", "bundle": "b", "created": "now"}
    write_bundle(path, head, CONTENTS, {SHA256: tmp_path / "input"})
    return path.read_bytes()


def opened(data: bytes, directory: Path) -> tuple[object, bytes] | None:
    """What a bundle of these bytes holds; None if it is refused."""
    (directory / "carried.zip").write_bytes(data)
    try:
        with Bundle(directory / "carried.zip") as bundle:
            contents = bundle.contents()
            for member in bundle.manifest.files:
                bundle.take(member, directory / "taken")
    except BadBundle:
        return None
    return contents, (directory / "taken").read_bytes()


@pytest.mark.fault("content damaged or forged")
@pytest.mark.parametrize("bits", [0x01, 0x80])
def test_any_byte_that_changed_is_noticed_or_means_nothing(
    whole: bytes, tmp_path: Path, bits: int
) -> None:
    assert opened(whole, tmp_path) == (CONTENTS, FILE)
    seen = []
    for at, byte in enumerate(whole):
        seen.append(opened(whole[:at] + bytes([byte ^ bits]) + whole[at + 1 :], tmp_path))
    assert [found for found in seen if found not in (None, (CONTENTS, FILE))] == []
    assert seen.count(None) > len(whole) / 3


@pytest.mark.fault("content damaged or forged")
def test_bundle_that_was_cut_off_anywhere_is_refused(whole: bytes, tmp_path: Path) -> None:
    assert [end for end in range(len(whole)) if opened(whole[:end], tmp_path)] == []
