"""Makes a task from a phpo configuration and the files around it.

``load_task`` builds the task document and reads it as the service will (``definition``), so that
everything that would be refused is told before anything is submitted.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from harvester.errors import InputError, Problem
from harvester.reading import read_regular
from harvester.steering.advice import check_against_site, warnings
from harvester.steering.definition import NAMED_FILES, OWN_KEYS, Labels, TaskDefinition
from harvester.steering.options import OPTIONS, read_options
from harvester.steering.payload_section import read_payload
from harvester.steering.payloadspec import payload_spec, payload_specs
from harvester.steering.problems import Problems, unclean_numbers
from harvester.steering.samplers.registry import read_sampler
from harvester.steering.travelling import collect_files, input_paths
from payload_runner.protocol import METRICS_LINES_NAME, to_fields

__all__ = [
    "TaskDefinition",
    "check_against_site",
    "input_paths",
    "load_task",
    "payload_spec",
    "payload_specs",
    "read_json",
    "warnings",
]

_FILE_MAX_BYTES = 10_000_000
_DIGITS_MAX = 1000  # of a whole number: a double has 309, and long texts take Python long to read


def load_task(
    config_path: Path | None,
    overrides: Mapping[str, Any] | None = None,
    directory: Path | None = None,
) -> TaskDefinition:
    """The task that a configuration file defines. Reads files only; submits nothing.

    Args:
        config_path: a JSON file of phpo's keys and this project's; None where the command line
            says it all.
        overrides: options of the command line. As with phpo the file wins over them.
        directory: where relative files and those that travel lie; default: the file's own.

    Raises:
        InputError: everything that is wrong, by file and key.
    """
    config = {name: value for name, value in (overrides or {}).items() if value is not None}
    options = set(config)
    label = "command line"
    if config_path is not None:
        label = config_path.name
        given = read_json(config_path)
        if not isinstance(given, Mapping):
            raise InputError(Problem(label, "", "", "expected a JSON object of options"))
        # phpo writes null or an empty text for what nobody gave: that is no value which could win.
        wins = {k: v for k, v in given.items() if v not in (None, "") or k not in config}
        config.update(wins)
        options -= set(wins)
    directory = directory or (config_path.parent if config_path is not None else Path())
    try:
        return _load(config, label, directory)
    except InputError as error:
        raise InputError([_by_origin(item, label, options) for item in error.problems]) from None


def _by_origin(problem: Problem, label: str, options: Collection[str]) -> Problem:
    """The problem, said of the command line where the value is from there."""
    if problem.file != label or problem.key not in options:
        return problem
    return problem._replace(file="command line", key=f"--{problem.key}")


def read_json(path: Path) -> Any:
    """A JSON file of at most 10 MB.

    Raises:
        InputError: it is missing, unreadable, too large or not JSON (with the line), an object
            in it has a key twice, or a number in it is NaN or beyond a double (with its key).
    """
    try:
        data = read_regular(path, _FILE_MAX_BYTES + 1)
    except OSError as error:
        raise InputError(Problem(str(path), "", "", f"cannot be read: {error.strerror}")) from error
    if len(data) > _FILE_MAX_BYTES:
        raise InputError(Problem(str(path), "", "", "is larger than 10 MB"))
    try:
        value = json.loads(data, object_pairs_hook=_no_duplicates, parse_int=_whole_number)
    except json.JSONDecodeError as error:
        sentence = f"is not JSON: {error.msg} (column {error.colno})"
        raise InputError(Problem(path.name, "", "", sentence, line=error.lineno)) from error
    except RecursionError as error:
        raise InputError(Problem(path.name, "", "", "is nested too deeply")) from error
    except ValueError as error:
        raise InputError(Problem(path.name, "", "", f"is not JSON: {error}")) from error
    problems = Problems(path.name)
    for key, number in unclean_numbers(value):
        problems.add(key, number, "expected a finite number")
    problems.check()
    return value


def _load(config: Mapping[str, Any], label: str, directory: Path) -> TaskDefinition:
    problems = Problems(label)
    problems.unknown_keys("", config, (*OPTIONS, *OWN_KEYS))
    space, space_label = _space_of(problems, config, directory, label)
    segments = _json_beside(problems, config, "segmentSpecFile", directory)
    told = len(problems.found)
    files = collect_files(problems, directory, _own_names(config))
    all_files = len(problems.found) == told
    document = {
        "name": _default_name(config, directory),
        "config": {key: value for key, value in config.items() if key in OPTIONS},
        "search_space": space,
        "segments": segments,
        "payload": config.get("payload"),
        "sampler": config.get("sampler"),
        "seed": config.get("seed"),
        "files": to_fields(files),
        "site": _sites(config) or None,
    }
    segments_label = str(config.get("segmentSpecFile", label))
    labels = Labels(config=label, space=space_label, segments=segments_label)
    # A missing file has been told: reading on would only repeat it.
    if space is None or (segments is None and config.get("segmentSpecFile")):
        _read_config_alone(problems, document["config"], config)
        problems.check()
    try:
        definition = TaskDefinition.from_document(document, labels, all_files=all_files)
    except InputError as error:
        problems.extend(error.problems)
    problems.check()
    return definition


def _read_config_alone(
    problems: Problems, options: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
    read_options(problems, options)
    read_payload(problems, config.get("payload"))
    read_sampler(problems, config.get("sampler"))


def _space_of(
    problems: Problems, config: Mapping[str, Any], directory: Path, label: str
) -> tuple[Any, str]:
    inline, file = config.get("searchSpace"), config.get("searchSpaceFile")
    if inline is not None and file:
        problems.tell("searchSpace", "stands beside searchSpaceFile; give one of them")
    if inline is not None:
        return inline, f"{label}: searchSpace"
    if not file:
        problems.missing("searchSpaceFile", "give a file, or the space itself as searchSpace")
        return None, label
    return _json_beside(problems, config, "searchSpaceFile", directory), str(file)


def _json_beside(problems: Problems, config: Mapping[str, Any], key: str, directory: Path) -> Any:
    name = config.get(key)
    if not isinstance(name, str) or not name:
        return None
    try:
        return read_json(directory / name)
    except InputError as error:
        # Said of the key that names the file, unless the fault is in the file's own text.
        for problem in error.problems:
            if problem.line is None and not problem.key:
                problems.add(key, name, problem.expected)
            else:
                problems.extend([problem])
        return None


def _own_names(config: Mapping[str, Any]) -> set[str]:
    """Names that a payload reads or writes itself; files of that name stay at home."""
    names = {METRICS_LINES_NAME}
    for key in NAMED_FILES:
        name = config.get(key) or OPTIONS[key].default
        if isinstance(name, str):
            names.add(name)
    return names


def _default_name(config: Mapping[str, Any], directory: Path) -> Any:
    name = config.get("outDS")
    if isinstance(name, str) and name.strip("/ "):
        return name.rstrip("/ ")
    return directory.resolve().name or "search"


def _sites(config: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    for key in ("site", "includedSite"):
        given = config.get(key)
        parts = given.split(",") if isinstance(given, str) else given
        for part in parts if isinstance(parts, list) else ():
            if isinstance(part, str) and part.strip() and part.strip() not in found:
                found.append(part.strip())
    return found


def _whole_number(digits: str) -> int | float:
    """Beyond every double it is infinite, which is then told with its key."""
    return int(digits) if len(digits) <= _DIGITS_MAX else float(digits)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} is there twice")
    return found
