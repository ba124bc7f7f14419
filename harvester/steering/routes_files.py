"""``/files``: content-addressed files up in chunks and down with ranges.

Whoever has a token and knows a file's SHA-256 may read it: nobody can guess one.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse

from harvester.errors import NotFound
from harvester.steering.service import principal_of, service_of
from harvester.steering.uploads import FILE_LIMIT_BYTES
from harvester.steering.web import StrictRoute, json_response, read_body

ROUTER = APIRouter(tags=["files"], route_class=StrictRoute)
_Bytes = Annotated[int, Query(ge=0, le=FILE_LIMIT_BYTES)]


@ROUTER.put("/files/{sha256}")
async def put_chunk(request: Request, sha256: str, offset: _Bytes, size: _Bytes) -> Response:
    """Append one chunk of at most 8 MiB."""
    service = service_of(request)
    chunk = await read_body(request)
    have, complete = await run_in_threadpool(
        service.files.add,
        sha256,
        offset,
        size,
        chunk,
        principal_of(request).user,
        service.clock.now(),
    )
    return json_response({"have": have, "complete": complete})


@ROUTER.head("/files/{sha256}")
def head_file(request: Request, sha256: str) -> Response:
    """How much of a file has arrived, in ``X-Have``."""
    have = service_of(request).files.have(sha256)
    if have is None:
        raise NotFound(f"nothing of file {sha256} has arrived")
    return Response(headers={"X-Have": str(have)})


@ROUTER.get("/files/{sha256}")
def get_file(request: Request, sha256: str) -> FileResponse:
    """The content of a complete file; takes ``Range``."""
    path = service_of(request).files.find(sha256)
    return FileResponse(path, media_type="application/octet-stream")
