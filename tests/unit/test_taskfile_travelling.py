"""Which files travel, and what is said once of those that cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harvester.errors import InputError, Problem
from harvester.steering.taskfile import TaskDefinition, load_task
from harvester.steering.travelling import linked_directories
from tests.search_files import problems_of, write_search


def test_more_than_ten_megabytes_do_not_travel(tmp_path: Path) -> None:
    """The script, left out behind them, is not missed."""
    path = write_search(tmp_path)
    (tmp_path / "large.json").write_bytes(b" " * 10_000_001)
    found = problems_of(path)
    assert list(found) == ["large.json"]
    assert "more than 10 MB" in found["large.json"]


def test_more_than_two_thousand_files_do_not_travel(tmp_path: Path) -> None:
    path = write_search(tmp_path)
    for index in range(2000):
        (tmp_path / f"a{index}.json").touch()
    [sentence] = problems_of(path).values()
    assert "more than 10 MB or 2000 files; move large data away" in sentence


def test_a_script_that_cannot_travel_is_told_once(tmp_path: Path) -> None:
    path = write_search(tmp_path)
    (tmp_path / "run.sh").unlink()
    (tmp_path / "run.sh").symlink_to("nowhere")
    assert list(problems_of(path)) == ["run.sh"]


@pytest.mark.parametrize("segments", [{}, [{"name": "a/b"}], []])
def test_bad_segments_are_not_told_as_missing(tmp_path: Path, segments: Any) -> None:
    path = write_search(
        tmp_path, evaluationExec="./run.sh %SEGMENT_NAME", segmentSpecFile="segments.json"
    )
    (tmp_path / "segments.json").write_text(str(segments).replace("'", '"'))
    with pytest.raises(InputError) as caught:
        load_task(path)
    assert {problem.file for problem in caught.value.problems} == {"segments.json"}


def test_bad_files_of_a_document_are_told_once(tmp_path: Path) -> None:
    document = load_task(write_search(tmp_path)).to_document()
    with pytest.raises(InputError) as caught:
        TaskDefinition.from_document({**document, "files": [{"name": "run.sh"}]})
    assert [problem.key for problem in caught.value.problems] == ["files[0]"]


def test_a_name_with_a_line_end_keeps_its_sentence_on_one_line(tmp_path: Path) -> None:
    path = write_search(tmp_path)
    (tmp_path / "new\nline.py").touch()
    [sentence] = problems_of(path).values()
    assert sentence == "config.json: new\\nline.py: has a name that cannot travel"
    assert str(Problem("\x1b[31m.json", "", "", "é is fine")) == "\\x1b[31m.json: é is fine"


def test_linked_directories_stay_at_home_and_are_known(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "model.py").touch()
    search = tmp_path / "search"
    search.mkdir()
    path = write_search(search)
    (search / "data").mkdir()
    (search / "data" / "lib").symlink_to(tmp_path / "elsewhere")
    (search / ".cache").symlink_to(tmp_path / "elsewhere")
    assert "data/lib/model.py" not in [file.name for file in load_task(path).files]
    assert linked_directories(search) == ["data/lib"]
