"""Record dataclasses to JSON and back. Driven by their annotations; knows no record by name."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import typing
from collections.abc import Mapping
from typing import Any, Callable, Tuple, Type, TypeVar, Union

_T = TypeVar("_T")
_Convert = Callable[[Any], Any]  # from JSON; Any because it is JSON
_PLAIN = frozenset((type(None), bool, int, float, str))


class BadRecord(ValueError):
    """A record or JSON file that does not have the fields of its kind."""


def to_fields(value: Any) -> Any:
    """The JSON form of a record dataclass; fields at their default are left out."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if dataclasses.is_dataclass(kind):
        out = {}
        for name, default in _defaults(kind):
            item = getattr(value, name)
            if item != default or default is dataclasses.MISSING:
                out[name] = item if type(item) in _PLAIN else to_fields(item)
        return out
    if isinstance(value, Mapping):
        return {str(key): to_fields(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_fields(item) for item in value]
    return value


def from_fields(cls: Type[_T], fields: Any) -> _T:
    """A record dataclass from its JSON form; unknown keys are ignored (newer writers).

    Raises:
        BadRecord: a missing field or one of the wrong type, by name.
    """
    if not isinstance(fields, Mapping):
        raise BadRecord(f"{cls.__name__}: expected an object, got {type(fields).__name__}")
    arguments = {}
    for name, convert in _converters(cls):  # type: ignore[arg-type]  # Type[_T] is hashable
        if name in fields:
            arguments[name] = convert(fields[name])
    try:
        return cls(**arguments)
    except TypeError as error:
        raise BadRecord(f"{cls.__name__}: {error}") from None


@functools.cache
def _converters(cls: Type[Any]) -> Tuple[Tuple[str, _Convert], ...]:
    hints = typing.get_type_hints(cls, vars(sys.modules[cls.__module__]))
    return tuple(
        (item.name, _converter(hints[item.name], f"{cls.__name__}.{item.name}"))
        for item in dataclasses.fields(cls)
    )


@functools.cache
def _defaults(cls: Type[Any]) -> Tuple[Tuple[str, Any], ...]:
    pairs = []
    for item in dataclasses.fields(cls):
        default = item.default
        if item.default_factory is not dataclasses.MISSING:
            default = item.default_factory()
        pairs.append((item.name, default))
    return tuple(pairs)


def _converter(kind: Any, where: str) -> _Convert:
    """What turns a JSON value into one of an annotated type, made once per field."""
    if kind is Any:
        return lambda value: value
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Union:
        (some,) = [item for item in inner if item is not type(None)]
        convert = _converter(some, where)
        return lambda value: None if value is None else convert(value)
    if origin is tuple:
        return _tuple_converter(_converter(inner[0], where), where)
    if origin is not None:  # Mapping[str, ...]
        return _mapping_converter(_converter(inner[1], where), where)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return functools.partial(from_fields, kind)
    return _plain_converter(kind, where)


def _tuple_converter(convert: _Convert, where: str) -> _Convert:
    def to_tuple(value: Any) -> Any:
        if not isinstance(value, list):
            raise BadRecord(f"{where}: expected a list, got {type(value).__name__}")
        return tuple(convert(item) for item in value)

    return to_tuple


def _mapping_converter(convert: _Convert, where: str) -> _Convert:
    def to_mapping(value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise BadRecord(f"{where}: expected an object, got {type(value).__name__}")
        return {str(key): convert(item) for key, item in value.items()}

    return to_mapping


def _plain_converter(kind: Any, where: str) -> _Convert:
    def to_plain(value: Any) -> Any:
        if type(value) is kind:
            return value
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise BadRecord(f"{where}: expected {kind.__name__}, got {value!r:.80}")
        return value

    return to_plain


def dump_json(value: Any) -> bytes:
    """Whole-file JSON as this project writes it: readable, finite numbers, a final newline."""
    return (json.dumps(to_fields(value), allow_nan=False, indent=1) + "\n").encode()


def load_json(data: bytes, cls: Type[_T]) -> _T:
    """A record dataclass from a whole JSON file.

    Raises:
        BadRecord: not JSON, or not of that shape.
    """
    try:
        value = json.loads(data)
    except ValueError as error:
        raise BadRecord(f"{cls.__name__}: not JSON: {error}") from None
    return from_fields(cls, value)
