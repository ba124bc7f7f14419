"""Where each value of a site file comes from: its document and date, or the file that sets it.

Pure. A file's ``sources`` name keys (``node.gpus``) or whole parts (``node``), queues by their
name (``queues.batch.queued_max``); the longest name wins. A value that a file above has replaced
no longer has the source that the file below gave it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harvester.config_yaml import Key, Layer

# What describes the file itself.
_UNSOURCED_KEYS = frozenset({"description", "extends", "name", "sources"})
# Shown as one value each.
_WHOLE = frozenset({"bins"})


def origins(layer: Layer, files: Sequence[Path]) -> list[dict[str, Any]]:
    """For each value: ``key``, ``source``, ``date``, ``file``. ``files``: the topmost first."""
    found = []
    order = {str(path): number for number, path in enumerate(files)}
    for key in value_keys(layer.values):
        name, file = key_name(layer.values, key), _file(layer, key)
        source = _source(layer, name, order, file) or {}
        entry = {"key": name, "source": source.get("source"), "date": source.get("date")}
        found.append({**entry, "file": file})
    return found


def value_keys(values: Mapping[str, Any]) -> Iterator[Key]:
    """Every value of a site file that says something about the site."""
    for key in _walk(values, ()):
        if key[0] not in _UNSOURCED_KEYS:
            yield key


def key_name(values: Any, key: Key) -> str:
    """A key with dots, where a queue stands under its name."""
    words = []
    for part in key:
        values = values[part]
        named = isinstance(part, int) and isinstance(values, Mapping)
        words.append(str(values.get("name", part) if named else part))
    return ".".join(words)


def _walk(value: Any, key: Key) -> Iterator[Key]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _walk(inner, (*key, name))
    elif isinstance(value, list) and key[-1] not in _WHOLE and _holds_mappings(value):
        for index, inner in enumerate(value):
            yield from _walk(inner, (*key, index))
    elif key[-1] != "name":
        yield key


def _holds_mappings(items: Sequence[Any]) -> bool:
    return any(isinstance(item, Mapping) for item in items)


def _source(
    layer: Layer, name: str, order: Mapping[str, int], file: str
) -> Mapping[str, Any] | None:
    words = name.split(".")
    for end in range(len(words), 0, -1):
        prefix = ".".join(words[:end])
        entry = layer.values.get("sources", {}).get(prefix)
        if entry is not None and order[_file(layer, ("sources", prefix))] <= order[file]:
            return {"source": entry} if isinstance(entry, str) else dict(entry)
    return None


def _file(layer: Layer, key: Key) -> str:
    ends = range(len(key), 0, -1)
    return next(layer.marks[key[:end]].file for end in ends if key[:end] in layer.marks)
