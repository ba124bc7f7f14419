"""The user's files that travel into every working directory.

As with phpo these are the ``*.json *.sh *.py *.yaml`` files below the configuration's directory,
at most 10 MB together. Hidden ones stay at home, and so do files that a payload reads or writes
under a name of its own (a forgotten ``output.json`` would count as a result).
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from harvester.steering.problems import Problems
from payload_runner.protocol import BadRecord, InputFile, from_fields

SUFFIXES = (".json", ".sh", ".py", ".yaml")
TOTAL_MAX_BYTES = 10_000_000
FILES_MAX = 2_000
_ENTRIES_MAX = 200_000  # looked at below the directory: more is not a search's directory
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\\]")


def collect_files(
    problems: Problems, directory: Path, keep_home: Collection[str]
) -> tuple[InputFile, ...]:
    """The files that travel, by name, with their SHA-256. Reads every one of them."""
    found: list[InputFile] = []
    total = 0
    for path in _candidates(problems, directory):
        name = path.relative_to(directory).as_posix()
        if name in keep_home or not _may_travel(problems, directory, path, name):
            continue
        total += path.stat().st_size
        if total > TOTAL_MAX_BYTES or len(found) == FILES_MAX:
            problems.tell(
                name,
                f"the {', '.join(SUFFIXES)} files below {directory} are more than "
                f"{TOTAL_MAX_BYTES // 1_000_000} MB or {FILES_MAX} files; move large data away",
            )
            break
        found.append(_describe(path, name))
    return tuple(sorted(found, key=lambda item: item.name))


def linked_directories(directory: Path) -> list[str]:
    """Links to directories, by name: nothing below them travels. Hidden ones never would."""
    found: list[str] = []
    for root, directories, _ in os.walk(directory):
        directories[:] = [name for name in directories if not name.startswith(".")]
        paths = (Path(root, name) for name in directories)
        found += [path.relative_to(directory).as_posix() for path in paths if path.is_symlink()]
    return sorted(found)


def read_files(problems: Problems, given: Any) -> tuple[InputFile, ...]:
    """The ``files`` of a task document, checked as strictly as those found on disk."""
    if not isinstance(given, list) or len(given) > FILES_MAX:
        problems.add("files", given, f"expected a list of at most {FILES_MAX} files")
        return ()
    found: dict[str, InputFile] = {}
    for index, item in enumerate(given):
        file = _read_file(problems, f"files[{index}]", item)
        if file is not None and file.name in found:
            problems.add(f"files[{index}].name", file.name, "is there twice")
        elif file is not None:
            found[file.name] = file
    total = sum(file.size for file in found.values())
    if total > TOTAL_MAX_BYTES:
        problems.add("files", total, f"expected at most {TOTAL_MAX_BYTES} bytes together")
    _refuse_files_as_directories(problems, found)
    return tuple(sorted(found.values(), key=lambda item: item.name))


def input_paths(files: Collection[InputFile], directory: Path) -> dict[str, Path]:
    """SHA-256 to local path, for the upload."""
    return {file.sha256: directory / file.name for file in files}


def is_inside(name: str) -> bool:
    """Whether ``name`` is a plain relative path that stays in the working directory."""
    parts = name.split("/")
    if len(parts) > 20 or _CONTROL.search(name):
        return False
    try:
        return all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in parts)
    except UnicodeEncodeError:
        return False


def _candidates(problems: Problems, directory: Path) -> Iterator[Path]:
    looked_at = 0
    for root, directories, names in os.walk(directory, onerror=_note(problems)):
        directories[:] = sorted(item for item in directories if not item.startswith("."))
        looked_at += len(directories) + len(names)
        if looked_at > _ENTRIES_MAX:
            problems.tell(
                "", f"{directory} holds more than {_ENTRIES_MAX} files; use one of its own"
            )
            return
        for name in sorted(names):
            if name.endswith(SUFFIXES) and not name.startswith("."):
                yield Path(root, name)


def _note(problems: Problems) -> Any:
    def note(error: OSError) -> None:
        problems.tell(str(error.filename), f"cannot be read: {error.strerror}")

    return note


def _may_travel(problems: Problems, directory: Path, path: Path, name: str) -> bool:
    try:
        resolved = path.resolve(strict=True)
        mode = resolved.stat().st_mode
    except (OSError, RuntimeError) as error:
        problems.tell(name, f"cannot be read: {error}")
        return False
    if not resolved.is_relative_to(directory.resolve()):
        problems.add(name, str(resolved), "is a link that leaves the configuration's directory")
    elif not stat.S_ISREG(mode):
        problems.tell(name, "is not a plain file")
    elif not is_inside(name):
        problems.tell(name, "has a name that cannot travel")
    elif not os.access(resolved, os.R_OK):
        problems.tell(name, "cannot be read: permission denied")
    else:
        return True
    return False


def _describe(path: Path, name: str) -> InputFile:
    data = path.read_bytes()
    executable = bool(path.stat().st_mode & stat.S_IXUSR)
    return InputFile(name, hashlib.sha256(data).hexdigest(), len(data), executable)


def _read_file(problems: Problems, key: str, item: Any) -> InputFile | None:
    try:
        file = from_fields(InputFile, item)
    except BadRecord as error:
        problems.add(key, item, f"expected name, sha256 and size: {error}")
        return None
    sound = True
    if not is_inside(file.name) or not file.name.endswith(SUFFIXES):
        problems.add(f"{key}.name", file.name, f"expected a relative path, one of {SUFFIXES}")
        sound = False
    if not _SHA256.fullmatch(file.sha256):
        problems.add(f"{key}.sha256", file.sha256, "expected 64 hexadecimal digits")
        sound = False
    if file.size < 0:
        problems.add(f"{key}.size", file.size, "expected bytes, 0 or more")
        sound = False
    return file if sound else None


def _refuse_files_as_directories(problems: Problems, files: Mapping[str, InputFile]) -> None:
    for name in files:
        for parent in Path(name).parents:
            if parent.as_posix() in files:
                problems.add("files", name, f"{parent.as_posix()} is a file as well")
