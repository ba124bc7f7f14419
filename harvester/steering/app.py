"""The central service as an ASGI application: routes, errors and limits put together."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from harvester import __version__
from harvester.errors import HarvesterError, Problem
from harvester.steering import routes_evaluation, routes_files, routes_tasks, routes_tokens
from harvester.steering.service import Authenticate, Service
from harvester.steering.uploads import CHUNK_LIMIT_BYTES, OffsetMismatch
from harvester.steering.web import (
    JSON_LIMIT_BYTES,
    BodyLimit,
    error_response,
    invalid,
    json_response,
)

PREFIX = "/api/v1"

_log = logging.getLogger(__name__)


def make_app(service: Service) -> FastAPI:
    """The application of one service. The caller starts and stops the service's asker."""
    app = FastAPI(
        title="Edge harvester: central service",
        version=__version__,
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.service = service
    for routes in (routes_tasks, routes_evaluation, routes_files, routes_tokens):
        app.include_router(routes.ROUTER, prefix=PREFIX)
    app.add_exception_handler(HarvesterError, _expected)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _unknown_route)
    app.add_exception_handler(Exception, _unexpected)
    limits = {f"{PREFIX}/files/": CHUNK_LIMIT_BYTES, "": JSON_LIMIT_BYTES}
    app.add_middleware(BodyLimit, limits=limits)
    # Added last, so it is the first to see a request.
    app.add_middleware(Authenticate, service=service)
    return app


async def _expected(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HarvesterError)
    if isinstance(error, OffsetMismatch):
        body = {"field": "offset", "value": error.problems[0].value, "message": str(error)}
        return json_response({"have": error.have, "error": body}, 409)
    return error_response(error)


async def _invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(invalid(error.errors()))


async def _unknown_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path[:200]}: {error.detail}"
    problem = Problem("request", "", "", message)
    body = {"field": problem.key, "value": problem.value, "message": problem.expected}
    return json_response({"error": body}, error.status_code, **dict(error.headers or {}))


async def _unexpected(request: Request, error: Exception) -> Response:
    _log.error("Request failed method=%s path=%s", request.method, request.url.path, exc_info=error)
    message = "the service made a mistake, which its log shows; nothing was changed"
    return json_response({"error": {"field": "", "value": "", "message": message}}, 500)
