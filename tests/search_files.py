"""A small search on disk, and what is said of it when it is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harvester.errors import InputError
from harvester.steering.taskfile import load_task

SPACE = {"lr": {"method": "loguniform", "dimension": {"low": 1e-4, "high": 1}}}
CONFIG = {"evaluationExec": "bash ./run.sh", "searchSpaceFile": "space.json"}


def write_search(directory: Path, config: dict[str, Any] | None = None, **more: Any) -> Path:
    (directory / "space.json").write_text(json.dumps(SPACE))
    (directory / "run.sh").write_text("#!/bin/sh\npython train.py\n")
    (directory / "train.py").write_text("print()\n")
    path = directory / "config.json"
    path.write_text(json.dumps({**(CONFIG if config is None else config), **more}))
    return path


def problems_of(path: Path, overrides: dict[str, Any] | None = None) -> dict[str, str]:
    with pytest.raises(InputError) as caught:
        load_task(path, overrides)
    assert caught.value.exit_code == 65
    return {problem.key: str(problem) for problem in caught.value.problems}
