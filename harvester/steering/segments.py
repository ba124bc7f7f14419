"""Segments: independently optimised models within a task, and which search space each has.

The file that ``segmentSpecFile`` names is phpo's: ``[{"name": ..., "files": [...]}, ...]``; the
position in it is the segment's id. A search space may be one object for all segments, or iDDS's
``[{"model_id": 0, "search_space": {...}}, ...]``, where ``model_id`` is that id (or the name).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harvester.errors import InputError
from harvester.steering.problems import Problems
from harvester.steering.space import SearchSpace, parse_space

SEGMENTS_MAX = 10_000
_FILES_MAX = 100_000
# It becomes part of a shell command (%SEGMENT_NAME) and of file names.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment and its training files, as the compute nodes see them."""

    name: str
    files: tuple[str, ...] = ()


def read_segments(problems: Problems, given: Any) -> tuple[Segment, ...]:
    """The segments of a document or file; none when it is None."""
    if given is None:
        return ()
    if not isinstance(given, list) or not 0 < len(given) <= SEGMENTS_MAX:
        problems.add("", given, 'expected a list [{"name": ..., "files": [...]}, ...]')
        return ()
    found = [_read_segment(problems, f"[{index}]", item) for index, item in enumerate(given)]
    segments = tuple(segment for segment in found if segment is not None)
    seen: set[str] = set()
    for index, segment in enumerate(segments):
        if segment.name in seen:
            problems.add(f"[{index}].name", segment.name, "is there twice")
        seen.add(segment.name)
    return segments


def read_spaces(
    problems: Problems, given: Any, segments: Sequence[Segment]
) -> tuple[SearchSpace, ...]:
    """One space per segment in their order, or the only one where there are no segments."""
    if not isinstance(given, list):
        space = _read_space(problems, given, "")
        return () if space is None else (space,) * max(1, len(segments))
    if not segments:
        problems.tell("", "is a list of models, which needs a segmentSpecFile")
        return ()
    return _read_models(problems, given, segments)


def _read_segment(problems: Problems, key: str, item: Any) -> Segment | None:
    if not isinstance(item, Mapping):
        problems.add(key, item, 'expected {"name": ..., "files": [...]}')
        return None
    problems.unknown_keys(key, map(str, item), ("name", "files", "datasets", "id"))
    name = item.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        problems.add(
            f"{key}.name",
            name,
            "expected 1 to 100 letters, digits, '.', '_' or '-', no leading dot",
        )
        return None
    if item.get("datasets"):
        problems.add(
            f"{key}.datasets", item["datasets"], "is not implemented yet; list files instead"
        )
    return Segment(name, _read_files(problems, f"{key}.files", item.get("files", [])))


def _read_files(problems: Problems, key: str, files: Any) -> tuple[str, ...]:
    if not isinstance(files, list) or len(files) > _FILES_MAX:
        problems.add(key, files, f"expected a list of at most {_FILES_MAX} file names")
        return ()
    for index, file in enumerate(files):
        if not isinstance(file, str) or not file or "\0" in file:
            problems.add(f"{key}[{index}]", file, "expected a file name")
    return tuple(file for file in files if isinstance(file, str))


def _read_models(
    problems: Problems, models: list[Any], segments: Sequence[Segment]
) -> tuple[SearchSpace, ...]:
    known = {str(index): index for index in range(len(segments))}
    known |= {segment.name: index for index, segment in enumerate(segments)}
    spaces: dict[int, SearchSpace | None] = {}
    for index, model in enumerate(models):
        key = f"[{index}]"
        if not isinstance(model, Mapping):
            problems.add(key, model, 'expected {"model_id": ..., "search_space": {...}}')
            continue
        problems.unknown_keys(key, map(str, model), ("model_id", "search_space"))
        at = known.get(str(model.get("model_id")))
        if at is None:
            expected = f"expected a segment's position, 0 to {len(segments) - 1}, or its name"
            problems.add(f"{key}.model_id", model.get("model_id"), expected)
        elif at in spaces:
            problems.add(f"{key}.model_id", model.get("model_id"), "is there twice")
        else:
            spaces[at] = _read_space(problems, model.get("search_space"), f"{key}.search_space.")
    for at, segment in enumerate(segments):
        if at not in spaces:
            problems.tell("", f"has no model for segment {segment.name!r} (model_id {at})")
    return tuple(space for _, space in sorted(spaces.items()) if space is not None)


def _read_space(problems: Problems, value: Any, prefix: str) -> SearchSpace | None:
    try:
        return parse_space(value, file=problems.file)
    except InputError as error:
        for problem in error.problems:
            key = f"{prefix}{problem.key}".rstrip(".")
            problems.extend([type(problem)(problem.file, key, problem.value, problem.expected)])
        return None
