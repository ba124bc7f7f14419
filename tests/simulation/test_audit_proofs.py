"""Every delivered loss is proven back to the runner's record; what was changed since shows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from harvester.audit import Entry, Report, audit, compare
from harvester.simulation.world import World
from payload_runner.logfile import decode_line, encode_record
from tests.simulation.daemon_world import DAY_S, small_world


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = small_world(tmp_path)
    daemon = world.daemon()
    world.run(daemon, world.is_over, limit_s=DAY_S)
    daemon.close()
    return world


def report_of(world: World) -> Report:
    site = world.scenario.site
    report = audit(world.login, site.spool, site.state_dir, world.central.task, site.index.parent)
    assert report is not None
    return report


def doubts(report: Report) -> dict[str, str]:
    return {entry.attempt: entry.doubt for entry in report.entries if entry.doubt}


def a_success(report: Report) -> Entry:
    return next(entry for entry in report.entries if entry.state == "succeeded")


def central_points(world: World) -> list[dict[str, Any]]:
    """As the central service shows them."""
    shown = [
        {"point": point.point, "state": point.state, "loss": point.loss, "attempts": []}
        for point in world.central.points.values()
    ]
    by_point = {point["point"]: point for point in shown}
    for result in world.central.books.results.values():
        attempt = {"attempt": result.attempt, "loss": result.loss}
        by_point[result.attempt.split(".")[1]]["attempts"].append(attempt)
    return shown


def rewrite(world: World, path: Path, at: int, **changes: Any) -> None:
    """Change fields of the record at an offset, with a checksum and a length that are right."""
    data = world.login.read(path, 0, 1 << 30)
    end = data.index(b"\n", at) + 1
    fields = decode_line(data[at : end - 1])
    assert fields is not None
    seq, kind, when = fields.pop("seq"), fields.pop("kind"), fields.pop("at")
    line = encode_record(seq, kind, when, {**fields, **changes})
    world.login.replace(path, data[:at] + line + data[end:])


def test_every_delivered_outcome_is_proven(world: World) -> None:
    report = compare(report_of(world), central_points(world))
    assert report.is_proven
    assert doubts(report) == {}
    told = world.central.books.results
    assert {entry.attempt: entry.loss for entry in report.entries} == {
        name: result.loss for name, result in told.items()
    }
    assert report.waiting == 0
    assert (report.central, report.strangers) == (len(told), 0)
    with_loss = [entry for entry in report.entries if entry.loss is not None]
    assert len(with_loss) >= 7
    assert all(entry.event and entry.judged for entry in with_loss)


def test_a_loss_changed_in_a_runners_log_shows_though_its_checksum_is_right(world: World) -> None:
    victim = a_success(report_of(world))
    assert victim.event is not None
    rewrite(world, world.spool.root / victim.event.log, victim.event.offset, loss=0.0)
    found = doubts(report_of(world))
    assert "is not the record that was judged" in found[victim.attempt]


def test_a_loss_changed_in_the_ledger_shows(world: World) -> None:
    victim = a_success(report_of(world))
    assert victim.judged is not None
    path = world.scenario.site.state_dir / victim.judged.log
    line = world.login.read(path, victim.judged.offset, 1 << 16).partition(b"\n")[0]
    fields = decode_line(line)
    assert fields is not None
    summary = {**fields["summary"], "loss": 0.0}
    rewrite(world, path, victim.judged.offset, summary=summary)
    found = doubts(report_of(world))
    assert list(found) == [victim.attempt]
    assert re.search(r"says loss .*, the ledger 0\.0", found[victim.attempt])


def test_a_loss_changed_at_the_central_service_shows(world: World) -> None:
    report = report_of(world)
    victim = a_success(report)
    points = central_points(world)
    for point in points:
        for attempt in point["attempts"]:
            if attempt["attempt"] == victim.attempt:
                attempt["loss"] = point["loss"] = -1.0
    assert doubts(compare(report, points)) == {victim.attempt: "the central service has loss -1.0"}


def test_a_point_whose_loss_none_of_its_attempts_had_shows(world: World) -> None:
    points = central_points(world)
    points[0]["loss"] = -1.0
    report = compare(report_of(world), points)
    assert report.odd_points == (points[0]["point"],)
    assert not report.is_proven


def test_a_delivery_that_the_central_service_forgot_shows(world: World) -> None:
    report = report_of(world)
    victim = a_success(report)
    points = central_points(world)
    for point in points:
        if point["point"] == victim.point:
            point.update(state="waiting", loss=None, attempts=[])
    assert victim.attempt in doubts(compare(report, points))


def test_a_runners_log_that_is_gone_shows(world: World) -> None:
    victim = a_success(report_of(world))
    assert victim.event is not None
    world.login.remove(world.spool.root / victim.event.log)
    assert "cannot be read" in doubts(report_of(world))[victim.attempt]


def test_a_judgement_lost_with_a_zeroed_block_shows_and_is_counted(world: World) -> None:
    victim = a_success(report_of(world))
    assert victim.judged is not None
    path = world.scenario.site.state_dir / victim.judged.log
    data = world.login.read(path, 0, 1 << 30)
    end = data.index(b"\n", victim.judged.offset)
    zeroed = data[: victim.judged.offset] + bytes(end - victim.judged.offset) + data[end:]
    world.login.replace(path, zeroed)
    report = report_of(world)
    assert report.damaged == {victim.judged.log: 1}
    assert "no judgement" in doubts(report)[victim.attempt]


def test_an_event_named_outside_the_spool_is_not_read(world: World) -> None:
    victim = a_success(report_of(world))
    assert victim.judged is not None
    path = world.scenario.site.state_dir / victim.judged.log
    fields = decode_line(world.login.read(path, victim.judged.offset, 1 << 16).partition(b"\n")[0])
    assert fields is not None
    proof = {**fields["summary"]["proof"], "log": "../../etc/passwd"}
    rewrite(world, path, victim.judged.offset, summary={**fields["summary"], "proof": proof})
    assert "outside the spool" in doubts(report_of(world))[victim.attempt]


def test_a_task_that_no_ledger_knows_is_none(world: World) -> None:
    site = world.scenario.site
    assert audit(world.login, site.spool, site.state_dir, "99", site.index.parent) is None


def test_the_report_is_json(world: World) -> None:
    import dataclasses

    from harvester.views.audit import audit_json, audit_screen

    shown = dataclasses.asdict(report_of(world))
    assert json.loads(json.dumps(audit_json(shown)))["task"] == world.central.task
    assert "delivered outcomes proven" in audit_screen(shown)
