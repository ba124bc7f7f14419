"""A fake batch system for tests: commands on a PATH of its own, faults on request."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shlex
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType


class FakeCluster:
    """Two nodes of two GPUs and two cores in a directory; all its jobs end when it is left.

    ``dialect`` names the module whose commands it has: ``tests/fakes/DIALECT_dialect.py``.
    """

    def __init__(self, directory: Path, dialect: str = "slurm") -> None:
        self.directory = directory
        self._bin = directory / "bin"
        self._bin.mkdir(parents=True)
        root = str(Path(__file__).parents[2])
        for name in importlib.import_module(f"tests.fakes.{dialect}_dialect").PROGRAMS:
            python = ["env", f"PYTHONPATH={root}", sys.executable, "-S"]
            words = [*python, "-m", "tests.fakes.command", dialect, str(directory), name]
            path = self._bin / name
            path.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
            path.chmod(0o700)

    def __enter__(self) -> FakeCluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(FileNotFoundError):
            for job in json.loads((self.directory / "jobs.json").read_text()):
                if job["pid"] and job["exit"] is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(job["pid"], signal.SIGKILL)

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """``base`` with the fake commands in front of its PATH."""
        return {**base, "PATH": f"{self._bin}:{base.get('PATH', '/usr/bin:/bin')}"}

    def plant(self, **job: object) -> None:
        """A job that is none of ours: user, account, and what the dialect shows of it."""
        path = self.directory / "jobs.json"
        jobs = json.loads(path.read_text()) if path.exists() else []
        usual = {"name": "theirs", "queue": "batch", "nodes": 1, "gpus": 0, "cpus": 0, "slots": 1}
        state = {"state": "held", "exit": None, "on": [], "pid": 0, "restarts": 0, "exclude": []}
        known = {"id": str(len(jobs) + 1), "account": "", "walltime": "00:01:00"}
        path.write_text(json.dumps([*jobs, {**usual, **state, **known, **job}]))

    def fault(self, **faults: str) -> None:
        """From now on these commands misbehave.

        down, hang, slow, empty, garbage, partial, stale (the last answer again), lost (done, but
        reported as unanswered). Of programs with subcommands the subcommand is named.
        """
        (self.directory / "faults.json").write_text(json.dumps(faults))
