"""The published JSON Schemas are sound and in step with the code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import harvester
from harvester import paths
from harvester.config_schema import site_schema

SCHEMAS = Path(harvester.__file__).parent / "schemas"


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((SCHEMAS / name).read_text())
    return found


@pytest.mark.parametrize("path", sorted(SCHEMAS.glob("*.json")), ids=lambda path: path.name)
def test_schema_is_a_valid_schema(path: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(read(path.name))


def test_site_schema_is_what_the_code_says() -> None:
    # To renew: python -m harvester.config_schema > harvester/schemas/site.schema.json
    assert read("site.schema.json") == site_schema()


@pytest.mark.parametrize("path", sorted(paths.SHIPPED_SITES.glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_sites_follow_the_schema_editors_use(path: Path) -> None:
    jsonschema.validate(yaml.safe_load(path.read_text()), read("site.schema.json"))


def test_site_schema_catches_a_misspelt_key() -> None:
    with pytest.raises(jsonschema.ValidationError, match="acount"):
        jsonschema.validate({"extends": "slurm", "acount": "x"}, read("site.schema.json"))
