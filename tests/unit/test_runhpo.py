"""What is written for PanDA's runHPO, and what is read of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from payload_runner import runhpo
from payload_runner.protocol import CheckpointRule, Order

ORDER = Order("31-337.2.5.1", "31-337", "2", "p", {"lr": 0.1}, number=1)


def test_one_entry_serves_both_layouts() -> None:
    (job,) = runhpo.events(ORDER, "/w/31_337_2").items()
    assert job[0] == runhpo.variables(ORDER)["PandaID"]
    (entry,) = job[1]
    (nested,) = entry["eventRanges"]
    assert {name: entry[name] for name in nested} == nested
    assert nested["hp_point"] == {"id": "2", "loss": None, "parameters": {"lr": 0.1}}
    assert nested["checkpoint"] == "/w/31_337_2"
    assert nested["eventRangeID"].split("-")[3] == "2"


def test_checkpoint_is_the_one_file_that_runhpo_makes() -> None:
    rule = runhpo.checkpoint_rule(ORDER, CheckpointRule(("a", "b"), load_as="x", interval_s=60.0))
    assert rule == CheckpointRule(("workDir/31_337_2",), None, 60.0)


@pytest.mark.parametrize("name", runhpo.DUMP_FILES)
def test_announcement_is_taken_so_that_the_next_can_come(tmp_path: Path, name: str) -> None:
    hint = tmp_path / "hint"
    (tmp_path / name).write_text(json.dumps({"777": [{"type": "checkpoint", "path": "/w/x"}]}))
    assert runhpo.take_announcement(tmp_path, hint)
    assert not (tmp_path / name).exists()
    assert hint.exists()
    assert not runhpo.take_announcement(tmp_path, hint)


@pytest.mark.parametrize("name", [*runhpo.DUMP_FILES, "hint"])
def test_loss_is_read_from_whatever_dump_there_is(tmp_path: Path, name: str) -> None:
    word = {"eventRangeID": "31_337-9-0-2-1", "eventStatus": "finished", "loss": 0.5}
    (tmp_path / name).write_text(json.dumps({"777": [word]}))
    assert not runhpo.take_announcement(tmp_path, tmp_path / "hint")
    assert runhpo.output_of(tmp_path, tmp_path / "hint") == b'{"loss": 0.5}'


@pytest.mark.parametrize("content", ["", "{", "[]", '{"7": 3}', '{"7": [3]}', '{"7": [{}]}'])
def test_rubbish_in_a_dump_is_no_word(tmp_path: Path, content: Any) -> None:
    (tmp_path / "event_status.dump").write_text(content)
    assert not runhpo.take_announcement(tmp_path, tmp_path / "hint")
    assert runhpo.output_of(tmp_path, tmp_path / "hint") is None


def test_dump_that_is_a_link_out_of_the_directory_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "dump").write_text('{"7": [{"eventStatus": "finished", "loss": 1}]}')
    (tmp_path / "work" / "event_status.dump").symlink_to(tmp_path / "dump")
    assert runhpo.output_of(tmp_path / "work", tmp_path / "work" / "hint") is None


def test_metadata_comes_from_the_job_report(tmp_path: Path) -> None:
    assert runhpo.metadata_of(tmp_path) is None
    (tmp_path / "jobReport.json").write_text('{"user_job_metadata": {"a": 1}, "files": {}}')
    assert runhpo.metadata_of(tmp_path) == b'{"a": 1}'
