"""The JSON Schemas that the package publishes, for tests of what commands print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
from referencing import Registry, Resource

import harvester

SCHEMAS = Path(harvester.__file__).parent / "schemas"


def read(name: str) -> dict[str, Any]:
    """A published schema by its file name."""
    found: dict[str, Any] = json.loads((SCHEMAS / name).read_text())
    return found


def validate(value: Any, name: str) -> None:
    """Check a value against a published schema, which may refer to others by file name."""
    paths = SCHEMAS.glob("*.json")
    known = [(path.name, Resource.from_contents(read(path.name))) for path in paths]
    registry: Registry[Any] = Registry().with_resources(known)
    jsonschema.Draft202012Validator(read(name), registry=registry).validate(value)
