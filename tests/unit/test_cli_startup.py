"""What the command line may import before a command is chosen: start-up is what people feel."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ["alembic", "fastapi", "nevergrad", "numpy", "psutil", "pydantic", "requests", "rich"]
HEAVY += ["skopt", "sqlalchemy", "sqlite3", "uvicorn", "yaml"]
# Dataclasses by the dozen cost 20 ms: not before a command needs a site or a task.
SLOW_OF_OURS = ["harvester.model", "harvester.site", "payload_runner.protocol"]

_PROBE = """
import sys
sys.argv = ["harvester", *sys.argv[1:]]
from harvester.cli.root import run
run()
print(" ".join(sys.modules), file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["status"], ["task", "--help"]])
def test_quick_commands_import_nothing_heavy(arguments: list[str]) -> None:
    done = subprocess.run(
        (sys.executable, "-c", _PROBE, *arguments),
        capture_output=True,
        text=True,
        check=True,
        env={"HOME": "/nonexistent", "LC_ALL": "C.UTF-8"},
    )
    loaded = set(done.stderr.split())
    assert "click" in loaded
    assert sorted(loaded & {*HEAVY, *SLOW_OF_OURS}) == []
