"""The payload runner as one zipapp, built from the installed package, the same bytes each time."""

from __future__ import annotations

import hashlib
import io
import zipfile
from importlib import resources
from pathlib import Path

from harvester.errors import StorageUnavailable
from payload_runner.files import Files
from payload_runner.protocol import SpoolPaths

_PACKAGE = "payload_runner"
# Loads under interpreters that are too old for the package, so as to say so in a sentence.
_MAIN = b"""\
import sys

if sys.version_info < (3, 9):
    sys.stderr.write(
        "payload-runner: %s is Python %d.%d; 3.9 or newer is needed, name one in runner.python\\n"
        % ((sys.executable,) + sys.version_info[:2])
    )
    sys.exit(78)

from payload_runner.__main__ import main

sys.exit(main())
"""
# The oldest instant that a zip file can hold: the same sources give the same archive.
_INSTANT = (1980, 1, 1, 0, 0, 0)


def build_runner_archive() -> bytes:
    """The zipapp's bytes: the package's own modules and an entry point, nothing else."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(_member("__main__.py"), _MAIN)
        for name, data in _modules():
            archive.writestr(_member(f"{_PACKAGE}/{name}"), data)
    return buffer.getvalue()


def runner_archive_path(spool: SpoolPaths, data: bytes) -> Path:
    """Where a zipapp of these bytes lies in a spool."""
    digest = hashlib.sha256(data).hexdigest()[:12]
    return spool.runner_dir / f"payload_runner-{digest}.pyz"


def ensure_runner_archive(files: Files, spool: SpoolPaths) -> Path:
    """Put the runner into the spool unless this very one lies there; answers its path.

    Older ones stay: allocations in flight run them (rule 22). Raises StorageUnavailable.
    """
    data = build_runner_archive()
    path = runner_archive_path(spool, data)
    try:
        if not files.exists(path):
            files.replace(path, data)
    except OSError as error:
        raise StorageUnavailable(f"{path}: {error}") from error
    return path


def _modules() -> list[tuple[str, bytes]]:
    root = resources.files(_PACKAGE)
    found = [(item.name, item.read_bytes()) for item in root.iterdir() if item.name.endswith(".py")]
    return sorted(found)


def _member(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name, _INSTANT)
    member.compress_type = zipfile.ZIP_DEFLATED
    member.external_attr = 0o644 << 16
    return member
