"""Every command that README and guides show is run here, in their order."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import wait_until

TOP = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^( *)```sh\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
# What a test of the guides must not do: these have tests of their own, or are this very run.
NOT_HERE = ("scripts/", '. "$(scripts/venv')


def commands(guide: str) -> list[str]:
    """The command lines of a guide's shell blocks."""
    lines = [
        line.strip()
        for _, block in BLOCK.findall((TOP / guide).read_text())
        for line in block.replace("\\\n", " ").splitlines()
    ]
    return [line for line in lines if line and not line.startswith(("#", *NOT_HERE))]


class Shell:
    """A user's shell with a state of its own; commands that end in ``&`` stay until the end."""

    def __init__(self, home: Path) -> None:
        kept = {name: value for name, value in os.environ.items() if "HARVESTER" not in name}
        self.environment = {
            **kept,
            "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}",
            "HOME": str(home),
            "XDG_STATE_HOME": str(home / "state"),
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_CACHE_HOME": str(home / "cache"),
        }
        self._background: list[subprocess.Popen[bytes]] = []

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        if command.endswith("&"):
            self._start(command[:-1])
            return subprocess.CompletedProcess(command, 0, "", "")
        return subprocess.run(
            ["bash", "-c", command],
            cwd=TOP,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def close(self) -> None:
        for process in reversed(self._background):
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=60)

    def _start(self, command: str) -> None:
        self._background.append(
            subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                cwd=TOP,
                env=self.environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        )


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    opened = Shell(tmp_path)
    yield opened
    opened.run("harvester alloc cancel all --site local")
    opened.close()


def follow(shell: Shell, guide: str) -> None:
    for command in commands(guide):
        done = shell.run(command)
        assert done.returncode == 0, f"{guide}: {command}\n{done.stdout}{done.stderr}"
        if "central serve" in command:
            ready = Path(shell.environment["XDG_STATE_HOME"]) / "harvester" / "central.json"
            wait_until(ready.exists)
        if "harvester run" in command:
            wait_until(lambda: has_result(shell), 120)


def has_result(shell: Shell) -> bool:
    time.sleep(0.5)  # each look is a process
    return '"loss"' in shell.run("harvester task results 1 --json").stdout


@pytest.mark.timeout(600)
def test_readme_and_the_physicists_guide_work_as_they_say(shell: Shell) -> None:
    follow(shell, "README.md")
    follow(shell, "docs/physicist.md")


@pytest.mark.parametrize("guide", ["docs/operator.md", "docs/site-admin.md"])
def test_the_guide_works_as_it_says(shell: Shell, guide: str) -> None:
    follow(shell, guide)


def test_each_link_of_the_guides_leads_somewhere() -> None:
    for guide in (TOP / "README.md", *(TOP / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", guide.read_text()):
            assert (guide.parent / target).exists(), f"{guide.name}: {target}"
