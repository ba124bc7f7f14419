"""What the routes of the central service work with, and who may call them."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from sqlalchemy import insert, select, update
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from harvester.clock import Clock, iso
from harvester.errors import CredentialsRefused, HarvesterError, NotFound
from harvester.steering.asking import Asker
from harvester.steering.database import Database
from harvester.steering.tables import TOKENS
from harvester.steering.tokens import Principal, read_token
from harvester.steering.uploads import FileStore
from harvester.steering.web import error_response

_OPEN_PATHS = frozenset({"/api/v1/openapi.json"})


@dataclass(slots=True)
class TokenBook:
    """The tokens that have been used here, by their SHA-256."""

    database: Database
    clock: Clock
    _revoked: dict[str, bool] = field(default_factory=dict)

    def admit(self, principal: Principal) -> None:
        """Note a token at its first use.

        Raises:
            CredentialsRefused: it has been revoked.
        """
        revoked = self._revoked.get(principal.token_sha256)
        if revoked is None:
            revoked = self._revoked[principal.token_sha256] = self._meet(principal)
        if revoked:
            raise CredentialsRefused(
                "the token has been revoked; make a new one with: harvester central token create"
            )

    def revoke(self, sha256: str) -> None:
        """Refuse a token from now on.

        Raises:
            NotFound: no such token has been used.
        """
        with self.database.write() as connection:
            changed = connection.execute(
                update(TOKENS)
                .where(TOKENS.c.sha256 == sha256)
                .values(revoked_at=self.clock.now())
                .returning(TOKENS.c.sha256)
            ).all()
        if not changed:
            raise NotFound(f"no token with SHA-256 {sha256[:80]} has been used")
        self._revoked[sha256] = True

    def listing(self) -> list[dict[str, Any]]:
        """The tokens that have been used, the newest last."""
        with self.database.read() as connection:
            rows = connection.execute(select(TOKENS).order_by(TOKENS.c.first_seen_at)).all()
        return [
            {
                "sha256": row.sha256,
                "user": row.owner,
                "role": row.role,
                "expires": iso(row.expires_at),
                "first_seen": iso(row.first_seen_at),
                "revoked": None if row.revoked_at is None else iso(row.revoked_at),
            }
            for row in rows
        ]

    def _meet(self, principal: Principal) -> bool:
        query = select(TOKENS.c.revoked_at).where(TOKENS.c.sha256 == principal.token_sha256)
        with self.database.write() as connection:
            row = connection.execute(query).one_or_none()
            if row is not None:
                return row.revoked_at is not None
            connection.execute(
                insert(TOKENS).values(
                    sha256=principal.token_sha256,
                    owner=principal.user,
                    role=principal.role.value,
                    expires_at=principal.expires_at,
                    first_seen_at=self.clock.now(),
                )
            )
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One running central service."""

    database: Database
    files: FileStore
    asker: Asker
    clock: Clock
    key: bytes
    tokens: TokenBook
    stopping: threading.Event = field(default_factory=threading.Event)

    def admit(self, authorization: str) -> Principal:
        """Who calls, by the value of the Authorization header.

        Raises:
            CredentialsRefused: nobody we know.
        """
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise CredentialsRefused(
                "this service wants a token: send the header 'Authorization: Bearer TOKEN'; "
                "central.json names the file that holds one"
            )
        principal = read_token(token.strip(), self.key)
        self.tokens.admit(principal)
        return principal


class Authenticate:
    """Lets no request in without a token, before a byte of its body is read."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        header = next((v for name, v in scope["headers"] if name == b"authorization"), b"")
        try:
            principal = await run_in_threadpool(self._service.admit, header.decode("latin-1"))
        except HarvesterError as error:
            await error_response(error)(scope, receive, send)
            return
        scope.setdefault("state", {})["principal"] = principal
        await self._app(scope, receive, send)


def service_of(request: Request) -> Service:
    """The service that a request came to."""
    service: Service = request.app.state.service
    return service


def principal_of(request: Request) -> Principal:
    """Who made a request."""
    principal: Principal = request.state.principal
    return principal
