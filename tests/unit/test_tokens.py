"""Tokens: what is signed, what is refused, and how the key is kept."""

from __future__ import annotations

import os
from pathlib import Path

import jwt
import pytest

from harvester.errors import CredentialsRefused, InputError
from harvester.steering.tokens import (
    KEY_NAME,
    Forbidden,
    Principal,
    Role,
    create_token,
    read_token,
    signing_key,
)


def test_a_token_says_who_bears_it(tmp_path: Path) -> None:
    token = create_token("alice", "submit", 2, state_home=tmp_path, groups=("atlas",))
    principal = read_token(token, signing_key(tmp_path))
    assert (principal.user, principal.role) == ("alice", Role.SUBMIT)


def test_the_panda_clients_find_what_they_decode(tmp_path: Path) -> None:
    token = create_token("alice", "submit", 2, state_home=tmp_path, groups=("atlas",))
    claims = jwt.decode(token, options={"verify_signature": False})
    expected = {"name": "alice", "preferred_username": "alice", "groups": ["atlas"]}
    assert {key: claims[key] for key in expected} == expected


def test_the_key_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        signing_key(tmp_path / "state")
    finally:
        os.umask(before)
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "state" / KEY_NAME).stat().st_mode & 0o777 == 0o600


@pytest.mark.fault("token wrong, expired or unsafe")
def test_a_token_of_another_service_is_refused(tmp_path: Path) -> None:
    token = create_token("alice", "admin", 2, state_home=tmp_path / "one")
    with pytest.raises(CredentialsRefused, match="not one of this service"):
        read_token(token, signing_key(tmp_path / "two"))


@pytest.mark.fault("token wrong, expired or unsafe")
def test_a_token_without_a_signature_is_refused(tmp_path: Path) -> None:
    claims = {"preferred_username": "eve", "role": "admin", "exp": 4_000_000_000}
    forged = jwt.encode(claims, None, algorithm="none")
    with pytest.raises(CredentialsRefused, match="not one of this service"):
        read_token(forged, signing_key(tmp_path))


@pytest.mark.fault("token wrong, expired or unsafe")
def test_an_expired_token_says_so(tmp_path: Path) -> None:
    key = signing_key(tmp_path)
    claims = {"preferred_username": "alice", "role": "admin", "exp": 1_000_000_000}
    with pytest.raises(CredentialsRefused, match="has expired"):
        read_token(jwt.encode(claims, key, algorithm="HS256"), key)


def test_everything_wrong_with_a_request_for_a_token_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        create_token("", "king", 0, state_home=tmp_path)
    assert [problem.key for problem in raised.value.problems] == ["user", "role", "days"]


def test_a_role_bounds_what_its_bearer_may_do() -> None:
    bearer = Principal(user="alice", role=Role.SUBMIT, expires_at=0)
    bearer.require(Role.SUBMIT)
    bearer.require_owner("alice", "task 1")
    with pytest.raises(Forbidden, match="role evaluate"):
        bearer.require(Role.EVALUATE)
    with pytest.raises(Forbidden, match="task 1 belongs to another"):
        bearer.require_owner("bob", "task 1")
