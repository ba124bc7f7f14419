"""Starts and stops the whole system on this machine, as separate processes, for demo, benchmarks
and tests: the central service, the daemon and the local batch system, all under one directory.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from harvester.batch.local import LocalBatch
from harvester.central.tasks import TaskClient
from harvester.config import load_site
from harvester.site import Site
from harvester.wiring import make_batch
from payload_runner.protocol import SpoolPaths

T = TypeVar("T")
TOP = Path(__file__).resolve().parents[1]


class StackFailed(RuntimeError):
    """A part of the system did not start or died; the message holds the end of its log."""


@dataclass(frozen=True, slots=True)
class Account:
    """As whom, with which interpreter and with which code the processes of a stack run."""

    user: str | None = None  # None: whoever runs this; root may name any other
    python: Path = Path(sys.executable)
    code: Path | None = None  # a checkout that goes before what the interpreter has installed
    enter: tuple[str, ...] = ()  # in front of every command, to run it elsewhere: nsenter ...

    def command(self, *arguments: str) -> tuple[str, ...]:
        """``harvester`` with these arguments."""
        return self.run(str(self.python), "-m", "harvester", *arguments)

    def run(self, *command: str) -> tuple[str, ...]:
        """Any command as that user."""
        return (*self._switch(), *command)

    def environment(self) -> dict[str, str]:
        """What differs from the environment of whoever runs this."""
        found = {} if self.code is None else {"PYTHONPATH": str(self.code)}
        if self.user is not None:
            home = pwd.getpwnam(self.user).pw_dir
            found |= {"HOME": home, "USER": self.user, "LOGNAME": self.user}
        return found

    def own(self, *paths: Path) -> None:
        """Give paths to the user."""
        if self.user is not None:
            owner = pwd.getpwnam(self.user)
            for path in paths:
                os.chown(path, owner.pw_uid, owner.pw_gid)

    def _switch(self) -> tuple[str, ...]:
        if self.user is None:
            return self.enter
        return (
            *self.enter,
            "setpriv",
            f"--reuid={self.user}",
            f"--regid={self.user}",
            "--init-groups",
        )


class Stack:
    """One central service and at most one daemon, with all state under ``root``.

    ``site`` is the text of a site file; it usually extends ``local``. Leaving the context stops
    everything that was started, batch jobs included. ``undisturbed`` makes a context in which no
    signal handler raises: between the start of a process and the note of whom to stop.
    """

    def __init__(
        self,
        root: Path,
        site: str,
        account: Account | None = None,
        undisturbed: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self._undisturbed = undisturbed
        self.root = root.absolute()
        self.account = account or Account()
        self.logs = root / "logs"
        self.state_home = root / "state"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.state_home.mkdir(mode=0o700, exist_ok=True)
        self.site_file = root / "site.yaml"
        self.site_file.write_text(site)
        self.account.own(root, self.state_home)
        self.environment = self._environment()
        self._central: subprocess.Popen[bytes] | None = None
        self._daemon: subprocess.Popen[bytes] | None = None
        self._loaded: Site | None = None
        self._may_have_jobs = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def site(self) -> Site:
        """The site as the daemon sees it."""
        if self._loaded is None:
            # A cache of its own: what this process writes, the account's user may not read.
            environ = {**self.environment, "XDG_CACHE_HOME": str(self.root / "own-cache")}
            self._loaded = load_site(str(self.site_file), environ=environ)
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
        with self._undisturbed():
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
        self._may_have_jobs = True
        with self._undisturbed():
            self._daemon = self._start("daemon", ("run", "--site", str(self.site_file), *arguments))

    def harvester(self, *arguments: str, timeout: float = 120) -> str:
        """Run one command to its end and return its output; StackFailed if it fails."""
        done = subprocess.run(
            self.account.command(*arguments),
            env=self.environment,
            cwd=self.root,
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
            found: Mapping[str, Any] = json.loads(self.site.status_file.read_text())
        except FileNotFoundError:
            return {}
        return found

    def tags(self) -> frozenset[str]:
        """Tags of all allocations that lie in the spool."""
        allocations = SpoolPaths(self.site.spool).allocations
        return frozenset(os.listdir(allocations)) if allocations.exists() else frozenset()

    def wait(self, predicate: Callable[[], T], timeout: float, failure: str, *parts: str) -> T:
        """Wait for a true value; StackFailed with the logs' ends when it does not come."""
        until = time.monotonic() + timeout
        while not (value := predicate()):
            self._check_alive()
            if time.monotonic() > until:
                raise StackFailed(f"{failure}\n{self.log_ends(*parts)}")
            time.sleep(0.02)
        return value

    def wait_for_daemon(self, timeout: float) -> int:
        """Wait until the daemon ends by itself or by a signal (negative); its exit code."""
        daemon, self._daemon = self._daemon, None
        if daemon is None:
            raise StackFailed("the daemon was not started")
        return daemon.wait(timeout)

    def stop_daemon(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the daemon; jobs that run go on."""
        daemon, self._daemon = self._daemon, None
        _end(daemon, how)

    def stop_central(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the central service."""
        central, self._central = self._central, None
        _end(central, how)

    def stop(self) -> None:
        """End everything, batch jobs included. Calling twice is safe."""
        with contextlib.ExitStack() as whatever_happens:
            whatever_happens.callback(self.stop_central)
            if self._may_have_jobs:
                whatever_happens.callback(self._stop_jobs)
            self.stop_daemon()

    def jobs_have_ended(self) -> None:
        """The batch jobs were ended by other means: :meth:`stop` need not."""
        self._may_have_jobs = False

    def _stop_jobs(self) -> None:
        batch = make_batch(self.site)
        if isinstance(batch, LocalBatch):
            batch.shut_down()
        else:
            ours = self.tags()
            jobs = batch.observe().jobs
            batch.cancel([job.job_id for job in jobs if job.name in ours])
        self._may_have_jobs = False

    def log_ends(self, *parts: str) -> str:
        """The last lines of the parts' logs, all parts when none is named."""
        names: Sequence[str] = parts or ("central", "daemon")
        ends = []
        for name in names:
            path = self.logs / f"{name}.log"
            if path.exists():
                lines = path.read_text(errors="replace").splitlines(keepends=True)
                ends.append(f"--- {path}\n" + "".join(lines[-15:]))
        return "\n".join(ends)

    def _start(self, name: str, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        with (self.logs / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                self.account.command(*arguments),
                env=self.environment,
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if "HARVESTER" not in name}
        bin_dir = str(self.account.python.parent)
        return {
            **kept,
            **self.account.environment(),
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
