"""The published JSON Schemas are sound and in step with the code."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
import yaml

from harvester import paths
from harvester.config_schema import site_schema
from harvester.views.site_states import Health, SiteState
from harvester.views.status import state_json
from harvester.views.tasks import point_json
from tests.published import SCHEMAS, read, validate


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


ATTEMPT = {
    "n": 1,
    "attempt": "1.7.1.1",
    "allocation": "haaaaa-bbbbbb",
    "node": "n1",
    "state": "timed_out",
    "blame": "walltime",
    "reason": None,
    "started": "2026-01-01T00:00:00Z",
    "ended": None,
    "resumed_from": None,
}
POINT = {
    "point": "7",
    "segment": None,
    "state": "done",
    "parameters": {"lr": 0.1},
    "loss": 0.5,
    "message": None,
    "attempts": [ATTEMPT],
}


def test_results_as_the_command_prints_them_follow_their_schema() -> None:
    printed = {"task": "1", "results": [point_json(POINT)]}
    jsonschema.validate(printed, read("results.schema.json"))


def test_attempt_with_a_key_too_many_or_too_few_breaks_the_schema() -> None:
    schema = read("results.schema.json")
    for attempts in ([ATTEMPT], [{"n": 1}]):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"task": "1", "results": [{**POINT, "attempts": attempts}]}, schema)


@pytest.mark.parametrize(("used", "sound"), [(0.93, True), (1.2, False), ("most", False)])
def test_outcome_of_the_demo_is_checked(used: object, sound: bool) -> None:
    point = {"id": "7", "parameters": {"lr": 0.1}, "loss": 0.5, "attempts": [ATTEMPT]}
    allocation = {"tag": "haaaaa-bbbbbb", "nodes": 2, "slots_used_fraction": used}
    outcome = {"points": [point], "allocations": [allocation], "best": point}
    validator = jsonschema.Draft202012Validator(read("demo.schema.json"))
    assert validator.is_valid(outcome) is sound


@pytest.mark.parametrize("health", Health)
def test_a_site_without_a_status_is_printed_as_the_schema_says(health: Health) -> None:
    state = SiteState(site="x", state_dir=Path("/x"), spool=None, status=None, health=health)
    validate({"sites": [state_json(state)]}, "sites.schema.json")
    with pytest.raises(jsonschema.ValidationError):
        validate({"sites": [{**state_json(state), "status": {"version": 2}}]}, "sites.schema.json")
