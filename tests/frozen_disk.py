"""A small disk whose file system can stall, as a shared one does: writes and syncs then hang."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


class FrozenDisk:
    """An ext4 file system in a file, mounted at ``root``."""

    def __init__(self, place: Path) -> None:
        """Skips the test, saying why, where it cannot be mounted."""
        self.root = place / "disk"
        self._image = place / "disk.image"
        self.root.mkdir(parents=True)
        self._image.touch()
        with open(self._image, "r+b") as image:
            image.truncate(64 * 1024 * 1024)
        for words in (
            ("mkfs.ext4", "-q", str(self._image)),
            ("mount", "-o", "loop", str(self._image), str(self.root)),
        ):
            done = _run(words)
            if done.returncode != 0:
                pytest.skip(f"no file system that can stall: {words[0]}: {done.stderr.strip()}")

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Whoever writes meanwhile hangs until the end of this."""
        done = _run(("fsfreeze", "--freeze", str(self.root)))
        if done.returncode != 0:
            pytest.skip(f"fsfreeze: {done.stderr.strip()}")
        try:
            yield
        finally:
            _run(("fsfreeze", "--unfreeze", str(self.root)))

    def close(self) -> None:
        _run(("umount", "--lazy", str(self.root)))


def _run(words: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(words, capture_output=True, text=True)
    except FileNotFoundError as error:
        return subprocess.CompletedProcess(words, 127, "", str(error))
