"""The files of a point's results: which there are, and how they come home.

Owns the names under which they are kept. The bytes travel by ``TaskClient.download``, which
checks and resumes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from harvester.errors import CentralUnavailable, InputError, NotFound, Problem

_NAME_MAX_BYTES = 200  # leaves room for the name of a transfer under way


@dataclass(frozen=True, slots=True, kw_only=True)
class PointFile:
    """One file of one attempt, as the service lists it."""

    attempt: int  # the point's own count
    role: str  # metrics | metadata | ...
    name: str
    size: int
    sha256: str


class Downloads(Protocol):
    """Where the content comes from (``central.tasks.TaskClient``)."""

    def download(self, sha256: str, target: Path) -> None:
        """Bring a file to ``target``, checked; raises ``NotFound`` if it never arrived there."""


def files_of(point: Mapping[str, Any]) -> tuple[PointFile, ...]:
    """The files of a point as the service shows it, the newest attempt first.

    Raises:
        CentralUnavailable: they make no sense.
    """
    try:
        numbers = {item["attempt"]: int(item["n"]) for item in point["attempts"]}
        found = [
            PointFile(
                attempt=numbers[item["attempt"]],
                role=str(item["role"]),
                name=str(item["name"]),
                size=int(item["size"]),
                sha256=str(item["sha256"]),
            )
            for item in point["files"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise CentralUnavailable(f"the service lists a point's files wrongly: {error!r}") from error
    return tuple(sorted(found, key=lambda file: (-file.attempt, file.role, file.name)))


def places(files: Iterable[PointFile], directory: Path) -> dict[PointFile, Path]:
    """Where each file goes. Pure.

    The newest attempt's files lie in ``directory`` itself, under their names; a file of an older
    attempt whose name is taken lies in ``attempt-N``. A name that is no plain file name, which
    only a faulty harvester sends, is replaced by role and hash.
    """
    found: dict[PointFile, Path] = {}
    for file in sorted(files, key=lambda file: -file.attempt):
        name = file.name if _is_plain(file.name) else f"{_word(file.role)}-{_word(file.sha256)}"
        for place in (directory / name, directory / f"attempt-{file.attempt}" / name):
            if place not in found.values():
                found[file] = place
                break
        else:
            found[file] = directory / f"attempt-{file.attempt}" / f"{_word(file.role)}-{name}"
    return found


def fetch(client: Downloads, placed: Mapping[PointFile, Path]) -> tuple[PointFile, ...]:
    """Bring the files to their places; what lies there already with that content is left.

    Returns:
        The files that were brought.

    Raises:
        InputError: something else lies at one of the places; nothing was brought then.
        NotFound: the service was told of a file that it never received.
        OSError: a place cannot be written.
    """
    wanted = {file: path for file, path in placed.items() if not _is_there(file, path)}
    taken = [path for path in wanted.values() if path.is_symlink() or path.exists()]
    if taken:
        expected = "is there with other content; move it away, or give another directory with --to"
        raise InputError([Problem(str(path), "", "", expected) for path in taken])
    for file, path in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Under its hash, so that a transfer that broke off is taken up and nobody's file is hit.
        arriving = path.with_name(f".{file.sha256}.arriving")
        try:
            client.download(file.sha256, arriving)
        except NotFound as error:
            raise NotFound(
                f"{file.name} of attempt {file.attempt} was named in the result but never reached "
                "the central service"
            ) from error
        _put(arriving, path)
    return tuple(wanted)


def _is_there(file: PointFile, path: Path) -> bool:
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256


def _put(arrived: Path, path: Path) -> None:
    try:
        # Unlike a rename it refuses a file that somebody made in the meantime.
        os.link(arrived, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        arrived.rename(path)
        return
    arrived.unlink()


def _is_plain(name: str) -> bool:
    sound = name.isprintable() and not name.startswith(".") and "/" not in name
    return bool(name) and sound and len(name.encode("utf-8", "replace")) <= _NAME_MAX_BYTES


def _word(text: str) -> str:
    """At most 16 letters and digits of a text from elsewhere."""
    return "".join(letter for letter in text if letter.isascii() and letter.isalnum())[:16]
