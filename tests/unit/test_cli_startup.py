"""What the command line may import before a command is chosen: start-up is what people feel."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ["alembic", "fastapi", "nevergrad", "numpy", "psutil", "pydantic", "requests", "rich"]
HEAVY += ["skopt", "sqlalchemy", "sqlite3", "uvicorn", "yaml"]
# Dataclasses by the dozen cost 20 ms: not before a command needs a site or a task. The rest are
# modules of the standard library that came in by way of a convenience and cost 2 to 5 ms each.
SLOW = ["dataclasses", "harvester.model", "harvester.site", "payload_runner.protocol"]
SLOW += ["logging", "lzma", "shutil", "subprocess", "tempfile"]
# Modules at the end of each command; a bare interpreter has 34 and click brings 62. The
# bounds leave room for another Python or click, not for another library.
AT_MOST = {"--help": 120, "--version": 120, "status": 140}

_PROBE = """
import sys
sys.argv = ["harvester", *sys.argv[1:]]
from harvester.cli.root import run
run()
print(" ".join(sys.modules), file=sys.stderr)
"""


def modules_after(*arguments: str) -> set[str]:
    """What an interpreter has imported when a command is through."""
    done = subprocess.run(
        (sys.executable, "-c", _PROBE, *arguments),
        capture_output=True,
        text=True,
        check=True,
        env={"HOME": "/nonexistent", "LC_ALL": "C.UTF-8"},
    )
    return set(done.stderr.split())


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["status"], ["task", "--help"]])
def test_quick_commands_import_nothing_heavy(arguments: list[str]) -> None:
    loaded = modules_after(*arguments)
    assert "click" in loaded
    assert sorted(loaded & {*HEAVY, *SLOW}) == []


@pytest.mark.parametrize("command", AT_MOST)
def test_quick_commands_import_few_modules(command: str) -> None:
    loaded = modules_after(command)
    assert len(loaded) <= AT_MOST[command], sorted(loaded)


@pytest.mark.parametrize("columns", ["30", "60", "200", "no number"])
def test_help_is_as_wide_as_the_terminal_but_no_wider_than_a_page(columns: str) -> None:
    command = (sys.executable, "-m", "harvester", "status", "--help")
    printed = subprocess.run(
        command, capture_output=True, text=True, check=True, env={"COLUMNS": columns}
    ).stdout
    widest = max(len(line) for line in printed.splitlines())
    assert widest <= (int(columns) if columns == "60" else 80)
