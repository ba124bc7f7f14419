"""Which files a search may name as its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harvester.steering.taskfile import load_task
from tests.search_files import problems_of, write_search


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"checkPointToSave": "output.json"}, "output.json is the evaluationOutput"),
        ({"checkPointToSave": "model.pt,./output.json"}, "output.json is the evaluationOutput"),
        ({"checkPointToSave": "input.json"}, "input.json is the evaluationInput"),
        ({"checkPointToSave": "input_ds.json"}, "is the evaluationTrainingData"),
        ({"checkPointToSave": "m.json", "evaluationMeta": "m.json"}, "is the evaluationMeta"),
        ({"checkPointToSave": "m.tgz", "evaluationMetrics": "m.tgz"}, "is the evaluationMetrics"),
        ({"checkPointToSave": "metrics.jsonl"}, "metrics.jsonl is the file of the metrics lines"),
        (
            {"checkPointToSave": "out", "evaluationOutput": "out/result.json"},
            "out/result.json is the evaluationOutput",
        ),
        ({"checkPointToSave": "run.sh"}, "run.sh is a travelling file of every attempt"),
    ],
)
def test_a_checkpoint_never_holds_what_an_attempt_is_given_or_judged_by(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    """Restored, it would stand in front of the next attempt as a result of its own."""
    found = problems_of(write_search(tmp_path, **changes))
    assert list(found) == ["checkPointToSave"]
    assert words in found["checkPointToSave"]
    assert "expected files that hold the training's state alone" in found["checkPointToSave"]


def test_an_archive_is_not_delivered_under_a_name_of_the_contract(tmp_path: Path) -> None:
    path = write_search(tmp_path, checkPointToSave="m.pt", checkPointToLoad="output.json")
    assert "output.json is the evaluationOutput" in problems_of(path)["checkPointToLoad"]


def test_files_that_travel_may_lie_in_a_checkpoint_directory(tmp_path: Path) -> None:
    """They are the same in every attempt, and a tried training leaves some there."""
    path = write_search(tmp_path, checkPointToSave="logs")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "arguments.json").write_text("{}")
    task = load_task(path)
    assert task.checkpoint is not None
    assert task.checkpoint.paths == ("logs",)
