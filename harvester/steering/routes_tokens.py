"""``/tokens``: which tokens have been used, and an end to one of them (admins only)."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from harvester.steering.service import principal_of, service_of
from harvester.steering.uploads import check_sha256
from harvester.steering.web import StrictRoute, json_response

ROUTER = APIRouter(tags=["tokens"], route_class=StrictRoute)


@ROUTER.get("/tokens")
def list_tokens(request: Request) -> Response:
    """Tokens by their SHA-256, with user, role and expiry."""
    principal_of(request).require()
    return json_response({"tokens": service_of(request).tokens.listing()})


@ROUTER.delete("/tokens/{sha256}")
def revoke_token(request: Request, sha256: str) -> Response:
    """Refuse a token from now on."""
    principal_of(request).require()
    check_sha256(sha256)
    service_of(request).tokens.revoke(sha256)
    return json_response({})
