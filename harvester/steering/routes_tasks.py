"""``/ping``, ``/tasks`` and ``/changes``: what users and their tools call."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from harvester import __version__
from harvester.steering import feed, points, tasks
from harvester.steering.advice import warnings
from harvester.steering.definition import TaskDefinition
from harvester.steering.progress import Action, TaskState
from harvester.steering.service import Service, principal_of, service_of
from harvester.steering.tokens import Principal, Role
from harvester.steering.web import StrictRoute, json_response

PROTOCOL = 1
PAGE_LIMIT = 1_000
CHANGES_LIMIT = 10_000
_POLL_S = 0.1
_Limit = Annotated[int, Query(ge=1, le=PAGE_LIMIT)]
_Number = Annotated[int, Query(ge=0, le=2**53)]

ROUTER = APIRouter(tags=["tasks"], route_class=StrictRoute)


@ROUTER.get("/ping")
def ping() -> Response:
    """Whether the service is there and the token is good."""
    answer = {"service": "edge-harvester", "version": __version__, "protocol": PROTOCOL}
    return json_response(answer)


@ROUTER.post("/tasks")
def submit_task(
    request: Request,
    document: Annotated[dict[str, Any], Body()],
    idempotency_key: Annotated[str | None, Header(max_length=200)] = None,
) -> Response:
    """Enter a task. With the same ``Idempotency-Key`` the same task is answered."""
    principal = principal_of(request)
    principal.require(Role.SUBMIT)
    service = service_of(request)
    definition = TaskDefinition.from_document(document)
    submission = tasks.Submission(definition, idempotency_key)
    with service.database.write() as connection:
        task = tasks.submit(connection, principal, submission, service.files, service.clock.now())
    service.asker.wake()
    return json_response({"task": str(task), "warnings": list(warnings(definition))})


@ROUTER.get("/tasks")
def list_tasks(
    request: Request,
    state: TaskState | None = None,
    owner: Annotated[str | None, Query(max_length=200)] = None,
) -> Response:
    """The tasks that the caller may see."""
    wanted = None if state is None else state.value
    with service_of(request).database.read() as connection:
        found = tasks.summaries(connection, principal_of(request), wanted, owner)
    return json_response({"tasks": found})


@ROUTER.get("/tasks/{task}")
def show_task(request: Request, task: str) -> Response:
    """One task with its definition and the newest of its log."""
    with service_of(request).database.read() as connection:
        row = tasks.find(connection, principal_of(request), task)
        return json_response(tasks.details(connection, row))


@ROUTER.get("/tasks/{task}/points")
def list_points(
    request: Request, task: str, offset: _Number = 0, limit: _Limit = PAGE_LIMIT
) -> Response:
    """A page of a task's points, in the order in which they were asked for."""
    with service_of(request).database.read() as connection:
        row = tasks.find(connection, principal_of(request), task)
        page = points.page(connection, row.id, offset, limit)
        total = points.total(connection, row.id)
    return json_response({"points": page, "total": total})


@ROUTER.get("/tasks/{task}/results")
def list_results(request: Request, task: str, limit: _Limit = PAGE_LIMIT) -> Response:
    """Points that have a loss, the best first."""
    with service_of(request).database.read() as connection:
        row = tasks.find(connection, principal_of(request), task)
        return json_response({"points": points.best(connection, row.id, limit)})


@ROUTER.post("/tasks/{task}/{action}")
def act_on_task(request: Request, task: str, action: Action) -> Response:
    """Pause, resume, finish, kill or retry a task."""
    principal = principal_of(request)
    principal.require(Role.SUBMIT)
    service = service_of(request)
    with service.database.write() as connection:
        row = tasks.find(connection, principal, task)
        now = service.clock.now()
        summary = tasks.apply(connection, row, action, principal.user, now)
    service.asker.wake()
    return json_response(summary)


@ROUTER.delete("/tasks/{task}")
def delete_task(request: Request, task: str) -> Response:
    """Delete a task that has ended."""
    principal = principal_of(request)
    principal.require(Role.SUBMIT)
    service = service_of(request)
    with service.database.write() as connection:
        row = tasks.find(connection, principal, task)
        tasks.remove(connection, row, service.clock.now())
    return json_response({})


@ROUTER.get("/changes")
async def follow_changes(
    request: Request,
    since: _Number = 0,
    limit: Annotated[int, Query(ge=1, le=CHANGES_LIMIT)] = PAGE_LIMIT,
    wait_s: Annotated[float, Query(ge=0, le=30)] = 0.0,
) -> Response:
    """What changed after ``since``; waits up to ``wait_s`` seconds for something."""
    service, principal = service_of(request), principal_of(request)
    deadline = asyncio.get_running_loop().time() + wait_s
    while True:
        commits = service.database.commits
        found = await run_in_threadpool(_changes, service, principal, since, limit)
        if found or not await _next_commit(service, commits, deadline):
            break
    last = found[-1]["seq"] if found else since
    return json_response({"changes": found, "next": last})


async def _next_commit(service: Service, commits: int, deadline: float) -> bool:
    """Wait until something was committed; False when time is up or the service stops."""
    while service.database.commits == commits:
        if asyncio.get_running_loop().time() >= deadline or service.stopping.is_set():
            return False
        await asyncio.sleep(_POLL_S)
    return True


def _changes(service: Service, principal: Principal, since: int, limit: int) -> list[Any]:
    with service.database.read() as connection:
        visible = tasks.visible(connection, principal)
        return feed.changes_after(connection, since, limit, visible)
