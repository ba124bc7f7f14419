"""Starts and stops the whole system on this machine, as separate processes, for demo, benchmarks
and tests: the central service, the daemon and the local batch system, all under one directory.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from harvester.batch.local import LocalBatch
from harvester.central.tasks import TaskClient
from harvester.config import load_site
from harvester.site import Site
from harvester.wiring import make_batch

T = TypeVar("T")
TOP = Path(__file__).resolve().parents[1]


class StackFailed(RuntimeError):
    """A part of the system did not start or died; the message holds the end of its log."""


class Stack:
    """One central service and at most one daemon, with all state under ``root``.

    ``site`` is the text of a site file; it usually extends ``local``. Leaving the context stops
    everything that was started, batch jobs included.
    """

    def __init__(self, root: Path, site: str) -> None:
        self.root = root
        self.logs = root / "logs"
        self.state_home = root / "state"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.state_home.mkdir(mode=0o700, exist_ok=True)
        self.site_file = root / "site.yaml"
        self.site_file.write_text(site)
        self.environment = self._environment()
        self._central: subprocess.Popen[bytes] | None = None
        self._daemon: subprocess.Popen[bytes] | None = None
        self._loaded: Site | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def site(self) -> Site:
        """The site as the daemon sees it."""
        if self._loaded is None:
            self._loaded = load_site(str(self.site_file), environ=self.environment)
        return self._loaded

    @property
    def daemon_pid(self) -> int:
        """Process id of the running daemon."""
        if self._daemon is None:
            raise StackFailed("the daemon was not started")
        return self._daemon.pid

    def start_central(self, *arguments: str) -> None:
        """Start the central service on a free port and wait until it listens."""
        announcement = self.state_home / "harvester" / "central.json"
        announcement.unlink(missing_ok=True)
        command = ("central", "serve", "--port", "0", *arguments)
        self._central = self._start("central", command)
        self.wait(announcement.exists, 30, "the central service did not announce itself", "central")

    def client(self) -> TaskClient:
        """A client with the rights of the service's first (admin) token."""
        text = (self.state_home / "harvester" / "central.json").read_text()
        found = json.loads(text)
        return TaskClient(found["url"], Path(found["token_file"]))

    def submit(self, config: Path, *arguments: str) -> str:
        """Submit a search as a user would; returns the task's id."""
        answer = self.harvester("task", "submit", "--loadJson", str(config), "--json", *arguments)
        return str(json.loads(answer)["task"])

    def start_daemon(self, *arguments: str) -> None:
        """Start ``harvester run`` for the site."""
        self._daemon = self._start("daemon", ("run", "--site", str(self.site_file), *arguments))

    def harvester(self, *arguments: str, timeout: float = 120) -> str:
        """Run one command to its end and return its output; StackFailed if it fails."""
        done = subprocess.run(
            (sys.executable, "-m", "harvester", *arguments),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode != 0:
            raise StackFailed(f"harvester {' '.join(arguments)}: {done.stderr or done.stdout}")
        return done.stdout

    def status(self) -> Mapping[str, Any]:
        """The daemon's published status, or an empty mapping before there is one."""
        try:
            found: Mapping[str, Any] = json.loads((self.site.spool / "status.json").read_text())
        except FileNotFoundError:
            return {}
        return found

    def wait(self, predicate: Callable[[], T], timeout: float, failure: str, *parts: str) -> T:
        """Wait for a true value; StackFailed with the logs' ends when it does not come."""
        until = time.monotonic() + timeout
        while not (value := predicate()):
            self._check_alive()
            if time.monotonic() > until:
                raise StackFailed(f"{failure}\n{self.log_ends(*parts)}")
            time.sleep(0.02)
        return value

    def stop_daemon(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the daemon; jobs that run go on."""
        self._daemon = _end(self._daemon, how)

    def stop_central(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the central service."""
        self._central = _end(self._central, how)

    def stop(self) -> None:
        """End everything, batch jobs included. Calling twice is safe."""
        self.stop_daemon()
        if self._loaded is not None:
            batch = make_batch(self._loaded)
            if isinstance(batch, LocalBatch):
                batch.shut_down()
            else:
                batch.cancel([job.job_id for job in batch.observe().jobs])
        self.stop_central()

    def log_ends(self, *parts: str) -> str:
        """The last lines of the parts' logs, all parts when none is named."""
        names: Sequence[str] = parts or ("central", "daemon")
        ends = []
        for name in names:
            path = self.logs / f"{name}.log"
            if path.exists():
                ends.append(f"--- {path}\n" + "".join(path.open().readlines()[-15:]))
        return "\n".join(ends)

    def _start(self, name: str, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        with (self.logs / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                (sys.executable, "-m", "harvester", *arguments),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if "HARVESTER" not in name}
        bin_dir = str(Path(sys.executable).parent)
        return {
            **kept,
            "PATH": f"{bin_dir}{os.pathsep}{kept.get('PATH', '/usr/bin:/bin')}",
            "XDG_STATE_HOME": str(self.state_home),
            "XDG_CONFIG_HOME": str(self.root / "config"),
            "XDG_CACHE_HOME": str(self.root / "cache"),
        }

    def _check_alive(self) -> None:
        for name, process in (("central", self._central), ("daemon", self._daemon)):
            if process is not None and process.poll() is not None:
                raise StackFailed(
                    f"the {name} ended with exit code {process.returncode}\n{self.log_ends(name)}"
                )


def _end(process: subprocess.Popen[bytes] | None, how: signal.Signals) -> None:
    if process is None:
        return
    process.send_signal(how)
    try:
        process.wait(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
