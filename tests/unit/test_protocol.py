"""Names, paths and records of the on-disk contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from payload_runner import protocol
from payload_runner.protocol import BadRecord, FileRef, Order, PayloadSpec, SpoolPaths


@pytest.mark.parametrize("tag", ["h12345-abcdef", "habcde-abcde", "../x", "habcde-abcdef\n", ""])
def test_a_name_that_is_no_tag_becomes_no_path(tag: str) -> None:
    with pytest.raises(BadRecord):
        SpoolPaths(Path("/spool")).allocation(tag)


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "a/../../b", ""])
def test_a_committed_file_cannot_lie_outside_the_spool(path: str) -> None:
    with pytest.raises(BadRecord, match="leaves the spool"):
        SpoolPaths(Path("/spool")).committed(FileRef(path, 1, "0" * 64))


def test_a_job_id_cannot_name_a_path() -> None:
    allocation = SpoolPaths(Path("/spool")).allocation("habcde-abcdef")
    assert allocation.incarnation("12[3]/../x.pbs", 2).name == "12_3_____x_pbs.2"


def test_incarnations_are_listed_in_the_order_of_their_restarts() -> None:
    allocation = SpoolPaths(Path("/spool")).allocation("habcde-abcdef")
    names = ("77.10", "77.2", "batch.sh", "orders.1.log", "claim")
    assert [item.name for item in allocation.incarnations(names)] == ["77.2", "77.10"]


def test_an_order_comes_back_from_its_fields_as_it_was() -> None:
    order = Order("1.2.3.4", "1", "2", "p", {"lr": 0.1}, checkpoint=FileRef("a/b", 3, "f" * 64))
    assert protocol.from_fields(Order, protocol.to_fields(order)) == order


def test_unknown_fields_of_newer_writers_are_ignored() -> None:
    fields = {"payload_id": "p", "command": "true", "from_the_future": 1}
    assert protocol.from_fields(PayloadSpec, fields) == PayloadSpec("p", "true")


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"command": "true"}, "payload_id"),
        ({"payload_id": 3, "command": "true"}, "PayloadSpec.payload_id: expected str"),
        ({"payload_id": "p", "command": "x", "files": {}}, "files: expected a list"),
        ({"payload_id": "p", "command": "x", "kill_s": True}, "kill_s: expected float"),
        ([], "expected an object"),
    ],
)
def test_a_wrong_field_is_refused_by_name(fields: object, complaint: str) -> None:
    with pytest.raises(BadRecord, match=complaint):
        protocol.from_fields(PayloadSpec, fields)


def test_an_event_of_an_unknown_kind_is_none_not_an_error() -> None:
    assert protocol.parse_event("from_the_future", {}) is None


def test_an_event_of_a_known_kind_must_have_its_fields() -> None:
    with pytest.raises(BadRecord, match="AttemptStarted"):
        protocol.parse_event("attempt_started", {"attempt": "1.1.1.1"})


@pytest.mark.parametrize("attempt", ["1.2.3", "1.2.3.4.5", "1.2.3.", "1/2.3.4.5", "1.2.3.4\n"])
def test_a_name_that_is_no_attempt_is_refused(attempt: str) -> None:
    with pytest.raises(BadRecord):
        protocol.check_attempt(attempt)
