"""Bearer tokens: who calls, and what it may do.

A token is a JWT signed with the service's own key (HS256). It carries ``preferred_username``,
``name`` and ``groups``, which the PanDA clients decode, and one role. The service keeps only the
SHA-256 of the tokens it has seen.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import jwt

from harvester.errors import CredentialsRefused, InputError, Problem, StorageUnavailable
from harvester.paths import state_home as default_state_home
from payload_runner.files import RealFiles

KEY_NAME = "central.key"
_ALGORITHM = "HS256"
_KEY_BYTES = 32
_NAME_LIMIT = 200


class Role(Enum):
    """What a token's bearer may do."""

    SUBMIT = "submit"  #: its own tasks
    EVALUATE = "evaluate"  #: lease and evaluate its own user's points
    ADMIN = "admin"  #: everything, for every user, but evaluate others' bare payloads


class Forbidden(CredentialsRefused):
    """The token is good, but not for this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who calls."""

    user: str
    role: Role
    expires_at: float
    token_sha256: str = ""

    def require(self, *roles: Role) -> None:
        """Let pass admins and the given roles.

        Raises:
            Forbidden: the role is another.
        """
        if self.role is not Role.ADMIN and self.role not in roles:
            names = " or ".join(role.value for role in roles) or Role.ADMIN.value
            raise Forbidden(
                f"this call needs a token of role {names}; yours has role {self.role.value}"
            )

    def require_owner(self, owner: str, what: str) -> None:
        """Let pass admins and the owner.

        Raises:
            Forbidden: it belongs to somebody else.
        """
        if self.role is not Role.ADMIN and self.user != owner:
            raise Forbidden(f"{what} belongs to another user than {self.user}")


def create_token(
    user: str,
    role: str,
    days: float,
    *,
    state_home: Path | None = None,
    groups: Sequence[str] = (),
) -> str:
    """A new token that is good for ``days`` days, signed with the key of this state directory.

    Raises:
        InputError: an empty user, an unknown role, or no lifetime.
        StorageUnavailable: the key can neither be read nor made.
    """
    _check_request(user, role, days)
    now = int(time.time())
    claims = {
        "sub": user,
        "name": user,
        "preferred_username": user,
        "groups": list(groups),
        "role": role,
        "iat": now,
        "exp": now + int(days * 86_400),
        "jti": secrets.token_hex(8),
    }
    key = signing_key(state_home or default_state_home(os.environ))
    return jwt.encode(claims, key, algorithm=_ALGORITHM)


def _check_request(user: str, role: str, days: float) -> None:
    problems = []
    if not user or len(user) > _NAME_LIMIT or not user.isprintable():
        problems.append(Problem("token", "user", repr(user)[:80], "expected a user name"))
    if role not in {known.value for known in Role}:
        problems.append(Problem("token", "role", role[:80], "expected submit, evaluate or admin"))
    if not 0 < days <= 3650:
        problems.append(Problem("token", "days", str(days), "expected more than 0, at most 3650"))
    if problems:
        raise InputError(problems)


def signing_key(directory: Path) -> bytes:
    """The service's signing key, made at first need.

    Raises:
        StorageUnavailable: it can neither be read nor made.
    """
    path = directory / KEY_NAME
    files = RealFiles()
    try:
        files.make_dir(directory)
        with contextlib.suppress(FileExistsError):
            files.create_exclusive(path, secrets.token_hex(_KEY_BYTES).encode())
        key = files.read(path, 0, 1024).strip()
    except OSError as error:
        raise StorageUnavailable(f"cannot keep the signing key {path}: {error}") from error
    if len(key) < _KEY_BYTES:
        raise StorageUnavailable(f"the signing key {path} is damaged; remove it for a new one")
    return key


def read_token(token: str, key: bytes) -> Principal:
    """Who bears this token.

    Raises:
        CredentialsRefused: it is not one of ours, is damaged or has expired.
    """
    try:
        claims = jwt.decode(
            token,
            key,
            algorithms=[_ALGORITHM],
            options={"require": ["exp", "preferred_username", "role"]},
        )
        return Principal(
            user=str(claims["preferred_username"]),
            role=Role(claims["role"]),
            expires_at=float(claims["exp"]),
            token_sha256=hashlib.sha256(token.encode()).hexdigest(),
        )
    except jwt.ExpiredSignatureError:
        raise CredentialsRefused(
            "the token has expired; make a new one with: harvester central token create"
        ) from None
    except (jwt.PyJWTError, ValueError):
        raise CredentialsRefused(
            "the token is not one of this service; use the token file that central.json names, "
            "or make one with: harvester central token create"
        ) from None
