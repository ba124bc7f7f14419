"""What every route shares: strict JSON in, JSON out, errors in the protocol's form."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from harvester.errors import (
    CredentialsRefused,
    HarvesterError,
    IllegalTransition,
    InputError,
    NotFound,
    Problem,
    Refused,
    Unavailable,
)
from harvester.steering.tokens import Forbidden

JSON_LIMIT_BYTES = 10_000_000
NESTING_LIMIT = 64
BODY_TIMEOUT_S = 30.0  # ten megabytes over the slowest line that is of use
_VALUE_SHOWN = 80


class BadBody(InputError):
    """A body that is not what the call takes."""


class BodyTooLarge(InputError):
    """A body above the limit."""


class Stalled(InputError):
    """A client that does not send what it announced."""


_STATUS: tuple[tuple[type[HarvesterError], int], ...] = (
    (BodyTooLarge, 413),
    (BadBody, 400),
    (Stalled, 408),
    (InputError, 422),
    (Forbidden, 403),
    (CredentialsRefused, 401),
    (NotFound, 404),
    (IllegalTransition, 409),
    (Refused, 409),
    (Unavailable, 503),
)


def status_of(error: HarvesterError) -> int:
    """The HTTP status that tells a client what to do about an error."""
    for kind, status in _STATUS:
        if isinstance(error, kind):
            return status
    return 500


def json_response(value: Any, status: int = 200, **headers: str) -> Response:
    """A JSON answer; encoded here, since the values are plain already."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    # A lone surrogate can have come in with an old row only; never fail an answer for it.
    data = text.encode("utf-8", "replace")
    return Response(data, status, {**headers}, media_type="application/json")


def error_response(error: HarvesterError) -> Response:
    """An error in the protocol's form; several problems of an input stand in ``problems``."""
    status = status_of(error)
    problems = error.problems if isinstance(error, InputError) else ()
    body = _error_body(problems) if problems else {"field": "", "value": "", "message": str(error)}
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    return json_response({"error": body}, status, **headers)


def _error_body(problems: Iterable[Problem]) -> dict[str, Any]:
    listed = [
        {"field": _field(item), "value": item.value, "message": item.expected} for item in problems
    ]
    return listed[0] | ({"problems": listed} if len(listed) > 1 else {})


def _field(problem: Problem) -> str:
    """The path of a field in the body; a task document names its part before the key."""
    part = problem.file.partition(": ")[2]
    dot = "." if part and problem.key and not problem.key.startswith("[") else ""
    return f"{part}{dot}{problem.key}"


def parse_json(data: bytes) -> Any:
    """JSON with finite numbers, at most 64 levels deep, and text that any database can keep.

    Raises:
        BadBody: it is something else.
    """
    try:
        value = json.loads(data, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        _refuse("", f"is nested more than {NESTING_LIMIT} levels deep")
    except ValueError as error:
        _refuse("", f"the body is not JSON: {error}")
    # Only an escape can bring a NUL or half a surrogate pair into valid UTF-8.
    _check_values(value, suspicious=b"\\u" in data)
    return value


async def read_body(request: Request) -> bytes:
    """The whole body; :class:`BodyLimit` bounds its size.

    Raises:
        Stalled: it did not arrive in time.
    """
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await request.body()
    except TimeoutError:
        expected = f"did not arrive within {BODY_TIMEOUT_S:g} s; send the request again"
        raise Stalled(Problem("request", "body", "", expected)) from None


class StrictRequest(Request):
    """A request whose JSON was read by :func:`parse_json`."""

    parsed: Any = None

    async def json(self) -> Any:
        """The body as :class:`StrictRoute` read it."""
        return self.parsed


class StrictRoute(APIRoute):
    """A route that reads JSON strictly before anything else looks at it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, with the body parsed beforehand."""
        inner = super().get_route_handler()

        async def handle(request: Request) -> Response:
            strict = StrictRequest(request.scope, request.receive)
            if self.body_field is not None:
                strict.parsed = parse_json(await read_body(strict))
            return await inner(strict)

        return handle


class BodyLimit:
    """Refuses bodies above a limit, whether announced or sent without announcement."""

    def __init__(self, app: ASGIApp, limits: Mapping[str, int]) -> None:
        self._app = app
        self._limits = limits  # by prefix of the path; "" for all others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = next(
            limit for prefix, limit in self._limits.items() if scope["path"].startswith(prefix)
        )
        if _announced(scope) > limit:
            await error_response(_too_large(limit))(scope, receive, send)
            return
        await self._app(scope, _bounded(receive, limit), send)


def _announced(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value[:18])
    return 0


def _bounded(receive: Receive, limit: int) -> Receive:
    seen = 0

    async def bounded() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise _too_large(limit)
        return message

    return bounded


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(Problem("request", "body", "", f"is larger than {limit} bytes"))


def _refuse(value: str, expected: str) -> NoReturn:
    raise BadBody(Problem("request", "body", value[:_VALUE_SHOWN], expected))


def _refuse_constant(name: str) -> NoReturn:
    _refuse(name, "is not a number of JSON; expected finite numbers only")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        _refuse(text, "is too large for a number; expected finite numbers only")
    return value


def _check_values(value: Any, *, suspicious: bool) -> None:
    level = [value]
    depth = 0
    while level:
        depth += 1
        if depth > NESTING_LIMIT:
            _refuse("", f"is nested more than {NESTING_LIMIT} levels deep")
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.values())
                if suspicious:
                    below.extend(item)
            elif isinstance(item, list):
                below.extend(item)
            elif suspicious and isinstance(item, str):
                _check_text(item)
        level = below


def _check_text(text: str) -> None:
    if "\0" in text:
        _refuse(repr(text), "holds a NUL character, which cannot be kept")
    try:
        text.encode()
    except UnicodeEncodeError:
        _refuse(repr(text), "holds half a surrogate pair, which is no character")


def invalid(errors: Iterable[Any]) -> InputError:
    """What pydantic found wrong, by the path of each field."""
    return InputError([_problem(item) for item in errors])


def _problem(item: Any) -> Problem:
    field = ""
    for part in item["loc"][1:]:  # the first says body, query or path
        field += f"[{part}]" if isinstance(part, int) else f".{part}" if field else str(part)
    value = "" if item["type"] == "missing" else repr(item["input"])[:_VALUE_SHOWN]
    message = "is missing" if item["type"] == "missing" else item["msg"]
    return Problem("request", field, value, message[0].lower() + message[1:])
