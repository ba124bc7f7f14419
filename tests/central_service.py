"""A real central service for tests: its own application on a real socket, in this process."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import uvicorn

from harvester.central.native import NativeCentral
from harvester.central.port import LeaseRequest, Result
from harvester.central.tasks import TaskClient
from harvester.clock import FakeClock
from harvester.model import AttemptId, LeasedPoint
from harvester.steering.app import make_app
from harvester.steering.books import discrepancies
from harvester.steering.database import Database, parse_database_url
from harvester.steering.serve import open_service
from harvester.steering.service import Service
from harvester.steering.tokens import create_token
from tests.support import wait_until

SPACE = {"x": {"method": "uniform", "dimension": {"low": 0.0, "high": 1.0}}}


class RunningService:
    """One service with a clock that tests move."""

    def __init__(self, service: Service, url: str, home: Path, clock: FakeClock) -> None:
        self.service = service
        self.url = url
        self.home = home
        self.clock = clock

    def token_file(self, user: str = "alice", role: str = "admin") -> Path:
        """A new token's file."""
        path = self.home / f"{user}.{role}.token"
        path.write_text(create_token(user, role, 1, state_home=self.home))
        path.chmod(0o600)
        return path

    def tasks(self, user: str = "alice", role: str = "admin") -> TaskClient:
        """A client for people."""
        return TaskClient(self.url, self.token_file(user, role), timeout_s=10)

    def harvester(
        self, name: str = "edge", user: str = "alice", role: str = "admin"
    ) -> NativeCentral:
        """A client for harvesters."""
        return NativeCentral(self.url, self.token_file(user, role), timeout_s=10, harvester=name)

    def submit(self, user: str = "alice", **changes: Any) -> str:
        """Enter a task of :func:`document`; its id."""
        return self.tasks(user).submit(document(**changes), {}).task

    def submit_and_ask(self, user: str = "alice", **changes: Any) -> str:
        """Enter a task and wait until its first points are there."""
        task = self.submit(user, **changes)
        wait_until(lambda: self.points(task)["waiting"])
        return task

    def points(self, task: str) -> Mapping[str, int]:
        """A task's counts."""
        counts: Mapping[str, int] = self.tasks().show(task)["points"]
        return counts

    def check_books(self) -> None:
        """The counts kept are the counts counted."""
        with self.service.database.read() as connection:
            assert discrepancies(connection) == []


@contextlib.contextmanager
def running_service(home: Path, database_url: str | None = None) -> Iterator[RunningService]:
    """Start a service, and stop it with its threads; the books must be right at the end."""
    clock = FakeClock()
    database = Database(parse_database_url(database_url, home / "central.db"))
    service = open_service(home, database, clock)
    config = uvicorn.Config(
        make_app(service),
        port=0,
        log_config=None,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    service.asker.start()
    try:
        wait_until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        running = RunningService(service, f"http://127.0.0.1:{port}", home, clock)
        yield running
        running.check_books()
    finally:
        service.stopping.set()
        server.should_exit = True
        thread.join(timeout=60)
        service.asker.stop()
        database.close()


def document(**changes: Any) -> dict[str, Any]:
    """A task document; ``config_*`` changes a key of its configuration, others a key of its own."""
    config: dict[str, Any] = {
        "evaluationExec": "true",
        "nParallelEvaluation": 6,
        "maxPoints": 6,
        "maxEvaluationJobs": 100,
    }
    found: dict[str, Any] = {
        "name": "search",
        "config": config,
        "search_space": SPACE,
        "segments": None,
        "payload": None,
        "sampler": {"name": "random", "options": {}},
        "seed": 7,
        "files": [],
        "site": None,
    }
    for key, value in changes.items():
        if key.startswith("config_"):
            config[key.removeprefix("config_")] = value
        else:
            found[key] = value
    return found


def request(key: str = "k1", points: int = 100, **changes: Any) -> LeaseRequest:
    """A lease request of the harvester ``edge``."""
    fields: dict[str, Any] = {"harvester": "edge", "site": "local"}
    return LeaseRequest(key=key, points=points, **(fields | changes))


def result(point: LeasedPoint, number: int = 1, **changes: Any) -> Result:
    """A success of a leased point, unless ``changes`` say otherwise."""
    fields: dict[str, Any] = {"state": "succeeded", "final": True, "loss": 0.5}
    attempt = AttemptId(f"{point.lease}.{number}")
    return Result(attempt=attempt, lease=point.lease, **(fields | changes))


def failure(point: LeasedPoint, number: int = 1, blame: str = "point", **changes: Any) -> Result:
    """A failure of a leased point."""
    fields: dict[str, Any] = {"state": "failed", "blame": blame, "reason": "exit code 1"}
    return result(point, number, loss=None, **(fields | changes))


def sha256(content: bytes) -> str:
    """The name that the service knows some content by."""
    return hashlib.sha256(content).hexdigest()
