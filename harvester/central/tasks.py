"""The client of a central service for people: submit, list, show and act on tasks."""

from __future__ import annotations

import json
import socket
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from harvester.central.http import Http, Rejected, encode, expect_object
from harvester.errors import (
    CentralUnavailable,
    ConfigurationError,
    InputError,
    NotFound,
    Problem,
)
from harvester.paths import state_home as default_state_home
from harvester.processes import is_running

DISCOVERY_NAME = "central.json"
_PAGE = 1_000


@dataclass(frozen=True, slots=True)
class SubmitReply:
    """A task's id, and what its submitter should know."""

    task: str
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Changes:
    """A stretch of the change feed; ask again from ``next``."""

    changes: tuple[Mapping[str, Any], ...]
    next: int


class TaskClient:
    """Tasks of one central service.

    Raises ``NotFound``, ``InputError`` (what the service finds wrong), ``CentralUnavailable``,
    ``CentralRefused`` and ``CredentialsRefused``.
    """

    def __init__(
        self, url: str, token_file: Path, ca_file: Path | None = None, timeout_s: float = 30.0
    ) -> None:
        self._http = Http(url, token_file, ca_file, timeout_s)

    def ping(self) -> Mapping[str, Any]:
        """The service's name, version and protocol."""
        return self._call("GET", "/ping")

    def submit(
        self, document: Mapping[str, Any], files: Mapping[str, Path], key: str | None = None
    ) -> SubmitReply:
        """Upload a task's files (by SHA-256) and enter it; ``key`` makes repeating harmless."""
        for sha256, path in files.items():
            self._http.upload(path, sha256, path.stat().st_size)
        answer = self._call(
            "POST", "/tasks", document, {"Idempotency-Key": key or uuid.uuid4().hex}
        )
        if not isinstance(answer.get("task"), str):
            raise CentralUnavailable(f"{self._http.url} does not say which task it made")
        return SubmitReply(answer["task"], tuple(map(str, answer.get("warnings", ()))))

    def list(
        self, state: str | None = None, owner: str | None = None
    ) -> Sequence[Mapping[str, Any]]:
        """Summaries of the tasks that one may see."""
        given = {"state": state, "owner": owner}
        params = {name: value for name, value in given.items() if value is not None}
        return _objects(self._call("GET", "/tasks", params=params), "tasks")

    def show(self, task: str) -> Mapping[str, Any]:
        """One task's summary, definition, segments and log."""
        return self._call("GET", f"/tasks/{_part(task)}")

    def points(self, task: str) -> Iterator[Mapping[str, Any]]:
        """Every point of a task, in order, fetched in pages as they are needed."""
        offset = 0
        while True:
            params = {"offset": str(offset), "limit": str(_PAGE)}
            answer = self._call("GET", f"/tasks/{_part(task)}/points", params=params)
            page = _objects(answer, "points")
            yield from page
            if len(page) < _PAGE:
                return
            offset += len(page)

    def point(self, task: str, point: str) -> Mapping[str, Any]:
        """One point of a task; ``NotFound`` says how to list those that there are."""
        # Points are numbered from 1 in the order of the pages.
        number = int(point) if point.isascii() and point.isdecimal() and len(point) < 10 else 0
        if number:
            params = {"offset": str(number - 1), "limit": "1"}
            answer = self._call("GET", f"/tasks/{_part(task)}/points", params=params)
            for found in _objects(answer, "points"):
                if found.get("point") == point:
                    return found
        raise NotFound(
            f"task {task} has no point {point}; `harvester task points {task}` lists them"
        )

    def download(self, sha256: str, target: Path) -> None:
        """Bring a file to ``target``, checked; a transfer that broke off is resumed."""
        try:
            self._http.download(sha256, target)
        except Rejected as error:
            raise _missing(error) or error from error

    def results(self, task: str, limit: int = _PAGE) -> Sequence[Mapping[str, Any]]:
        """Up to 1,000 points that have a loss, the best first."""
        params = {"limit": str(min(limit, _PAGE))}
        return _objects(self._call("GET", f"/tasks/{_part(task)}/results", params=params), "points")

    def act(self, task: str, action: str) -> Mapping[str, Any]:
        """``pause``, ``resume``, ``finish``, ``kill`` or ``retry`` a task; its summary."""
        return self._call("POST", f"/tasks/{_part(task)}/{_part(action)}", {})

    def delete(self, task: str) -> None:
        """Delete a task that has ended."""
        self._call("DELETE", f"/tasks/{_part(task)}")

    def changes(self, since: int = 0, limit: int = _PAGE, wait_s: float = 0.0) -> Changes:
        """What changed after ``since``; waits up to ``wait_s`` (30 at most) for something."""
        params = {"since": str(since), "limit": str(limit), "wait_s": str(wait_s)}
        answer = self._call("GET", "/changes", params=params, extra_s=wait_s)
        return Changes(tuple(_objects(answer, "changes")), int(answer.get("next", since)))

    def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        params: Mapping[str, str] | None = None,
        extra_s: float = 0.0,
    ) -> dict[str, Any]:
        try:
            answer = self._http.call(
                method,
                path,
                body=None if body is None else encode(body),
                params=params,
                headers=headers,
                extra_s=extra_s,
            )
        except Rejected as error:
            missing = _missing(error)
            if missing is not None:
                raise missing from error
            if error.status in (400, 413, 422) and error.problems:
                raise InputError(error.problems) from error
            raise
        return expect_object(answer, self._http.url)


def discover(
    central: str | None, environ: Mapping[str, str], state_home: Path | None = None
) -> tuple[str, Path]:
    """The URL and token file of the central service to talk to.

    ``central`` (the option) wins over ``HARVESTER_CENTRAL``, which wins over what the service
    itself wrote to ``central.json`` in the state directory; ``HARVESTER_TOKEN_FILE`` wins over
    the token file named there.

    Args:
        state_home: ``$XDG_STATE_HOME/harvester``; None: as ``environ`` says.

    Raises:
        NotFound: no service is named and none has written where it is.
        ConfigurationError: a URL that is none, or no token file for it.
    """
    directory = state_home or default_state_home(environ)
    url = central or environ.get("HARVESTER_CENTRAL") or None
    where = "--central" if central else "HARVESTER_CENTRAL"
    token = environ.get("HARVESTER_TOKEN_FILE")
    if url is not None:
        _check_url(url, where)
    found = _read_discovery(directory)
    if url is None:
        url = _running(found, directory)
    # The local service's token goes to the local service only.
    if token is None and found is not None and found["url"].rstrip("/") == url.rstrip("/"):
        token = found["token_file"]
    if token is None:
        expected = f"names no token file for {url}; set it to the path of one (mode 0600)"
        raise ConfigurationError(Problem("environment", "HARVESTER_TOKEN_FILE", "", expected))
    return url, Path(token)


def _check_url(url: str, where: str) -> None:
    if not _is_url(url):
        expected = "expected a URL such as http://127.0.0.1:8080"
        raise ConfigurationError(Problem("central service", where, repr(url[:200]), expected))


def _is_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        host.encode("idna")  # refuses empty and endless parts of a name
        with_port = parts.port is None or parts.port > 0  # reading it checks it
    except ValueError:
        return False
    sound = url.isprintable() and " " not in url
    return sound and with_port and bool(host) and parts.scheme in ("http", "https")


def _read_discovery(directory: Path) -> dict[str, Any] | None:
    path = directory / DISCOVERY_NAME
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        expected = f"cannot be read ({error}); start the service again: harvester central serve"
        raise ConfigurationError(Problem(str(path), "", "", expected)) from error
    wanted = ("url", "token_file")
    if not isinstance(value, dict) or not all(isinstance(value.get(key), str) for key in wanted):
        expected = "lacks url and token_file; start the service again: harvester central serve"
        raise ConfigurationError(Problem(str(path), "", "", expected))
    return value


def _running(found: Mapping[str, Any] | None, directory: Path) -> str:
    if found is None:
        raise NotFound(
            f"no central service is known ({directory / DISCOVERY_NAME} does not exist); start one "
            "with: harvester central serve, or name one with --central or HARVESTER_CENTRAL"
        )
    pid = found.get("pid")
    if found.get("host") == socket.gethostname() and isinstance(pid, int) and not is_running(pid):
        raise NotFound(
            f"the central service of {directory / DISCOVERY_NAME} does not run any more "
            f"(process {pid} is gone); start it again with: harvester central serve"
        )
    return str(found["url"])


def _objects(answer: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    value = answer.get(name)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise CentralUnavailable(f"the service answers without a list of {name}")
    return value


def _part(text: str) -> str:
    return quote(text, safe="")


def _missing(error: Rejected) -> NotFound | None:
    if error.status != 404:
        return None
    messages = [problem.expected for problem in error.problems]
    return NotFound(messages[0] if messages else str(error))
