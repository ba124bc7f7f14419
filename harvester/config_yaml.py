"""YAML as plain values that remember the file and line of every key.

Scalars follow the YAML 1.2 core rules: ``02:00:00`` and ``on`` are text, not a number and a truth.
Loads pyyaml, so only the compiling child process imports this.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from harvester.errors import ConfigurationError, Problem

FILE_LIMIT_BYTES = 1_000_000
NODE_LIMIT = 20_000  # aliases of aliases multiply
DEPTH_LIMIT = 30

Key = tuple[str | int, ...]

_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a key stands."""

    file: str
    line: int


@dataclass(slots=True)
class Layer:
    """The values of one file, or of several laid over one another, and their marks.

    ``problems``: what is wrong with the text itself, to be told together with the rest.
    """

    values: dict[str, Any]
    marks: dict[Key, Mark] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


class _CoreLoader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  # pyyaml's own

    def fetch_flow_collection_start(self, token_class: type[yaml.Token]) -> None:
        # The scanner's time grows with the square of the depth: minutes for a file of brackets.
        if self.flow_level > DEPTH_LIMIT:
            raise yaml.YAMLError("nested too deeply")
        super().fetch_flow_collection_start(token_class)


for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
):
    _CoreLoader.add_implicit_resolver(f"{_TAG}{_name}", re.compile(f"(?:{_pattern})$"), _first)


def read_layer(path: Path, text: bytes, what: str = "a site file") -> Layer:
    """One file's values and marks. Of a key that stands there twice the first one counts.

    Raises:
        ConfigurationError: not UTF-8, not YAML, not a mapping, or far too large.
    """
    node = _compose(path, text)
    if not isinstance(node, yaml.MappingNode):
        raise _problem(path, 1, "", f"expected `key: value` lines at the top level of {what}")
    layer = Layer({})
    layer.values = _Reader(path, layer).mapping(node, ())
    return layer


def lay_over(base: Layer, top: Layer) -> Layer:
    """``top`` over ``base``: mappings merge key by key, everything else is replaced whole."""
    marks = dict(base.marks)
    values = _merge(base.values, top.values, marks, ())
    return Layer(values, {**marks, **top.marks}, [*base.problems, *top.problems])


def _merge(base: Any, top: Any, marks: dict[Key, Mark], key: Key) -> Any:
    if isinstance(base, dict) and isinstance(top, dict):
        merged = dict(base)
        for name, value in top.items():
            merged[name] = _merge(base.get(name), value, marks, (*key, name))
        return merged
    for mark in [mark for mark in marks if mark[: len(key)] == key]:
        del marks[mark]  # of what is replaced
    return top


def _compose(path: Path, text: bytes) -> yaml.Node | None:
    if len(text) > FILE_LIMIT_BYTES:
        raise _problem(path, None, f"{len(text)} bytes", f"expected at most {FILE_LIMIT_BYTES}")
    try:
        return yaml.compose(text.decode(), Loader=_CoreLoader)
    except UnicodeDecodeError as error:
        raise _problem(path, None, "", f"expected UTF-8 text; byte {error.start} is not") from None
    except yaml.MarkedYAMLError as error:
        line = None if error.problem_mark is None else error.problem_mark.line + 1
        raise _problem(path, line, "", f"not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        words = " ".join(str(error).split())
        raise _problem(path, None, "", f"not valid YAML: {words}") from None
    except RecursionError:
        raise _problem(path, None, "", "not valid YAML: nested too deeply") from None


class _Reader:
    """Turns nodes into values, noting where each key stands."""

    def __init__(self, path: Path, layer: Layer) -> None:
        self._path = path
        self._layer = layer
        self._seen = 0

    def mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name_node, value_node in node.value:
            line = name_node.start_mark.line + 1
            name = name_node.value
            if not isinstance(name, str):
                raise _problem(self._path, line, "", "expected a plain word as key")
            if name in values:
                words = ".".join(map(str, (*key, name)))
                sentence = "this key stands here twice; keep one"
                self._layer.problems.append(Problem(str(self._path), words, "", sentence, line))
                continue
            self._layer.marks[(*key, name)] = Mark(str(self._path), line)
            values[name] = self._value(value_node, (*key, name))
        return values

    def _value(self, node: yaml.Node, key: Key) -> Any:
        self._seen += 1
        if self._seen > NODE_LIMIT or len(key) > DEPTH_LIMIT:
            line = node.start_mark.line + 1
            raise _problem(self._path, line, "", "too large or too deep for such a file")
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, key)
        if isinstance(node, yaml.SequenceNode):
            return [self._item(item, (*key, index)) for index, item in enumerate(node.value)]
        return self._scalar(node)

    def _item(self, node: yaml.Node, key: Key) -> Any:
        self._layer.marks[key] = Mark(str(self._path), node.start_mark.line + 1)
        return self._value(node, key)

    def _scalar(self, node: yaml.Node) -> Any:
        text: str = node.value
        match node.tag.removeprefix(_TAG):
            case "str":
                return text
            case "int":
                return int(text) if len(text) < 20 else text
            case "float":
                return float(text)
            case "bool":
                return text.lower() == "true"
            case "null":
                return None
        line = node.start_mark.line + 1
        raise _problem(self._path, line, node.tag, "expected a plain value without a YAML tag")


def _problem(path: Path, line: int | None, value: str, expected: str) -> ConfigurationError:
    return ConfigurationError(Problem(str(path), "", value, expected, line))
