"""Names that the harvester gives: spool ids, allocation tags and attempt ids."""

from __future__ import annotations

import random
from collections.abc import Callable

from harvester.model import AttemptId, LeaseId, Tag

_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"
SPOOL_ID_LENGTH = 13  # 65 bits: two spools that meet in one batch system stay apart
_TAG_SPOOL_PART = 5


def new_spool_id(rng: random.Random) -> str:
    """A random spool id in lower-case base32."""
    return _letters(rng, SPOOL_ID_LENGTH)


def new_tag(spool_id: str, rng: random.Random, taken: Callable[[Tag], bool]) -> Tag:
    """An allocation tag that was never used: ``h``, 5 characters of the spool id, ``-``, 6 more."""
    while True:
        tag = Tag(f"{tag_prefix(spool_id)}{_letters(rng, 6)}")
        if not taken(tag):
            return tag


def tag_prefix(spool_id: str) -> str:
    """What every tag of a spool begins with."""
    return f"h{spool_id[:_TAG_SPOOL_PART]}-"


def attempt_id(lease: LeaseId, try_number: int) -> AttemptId:
    """The id of the lease's n-th attempt, from 1."""
    return AttemptId(f"{lease}.{try_number}")


def try_of(attempt: AttemptId) -> int:
    """Which try of its lease an attempt is."""
    return int(attempt.rsplit(".", 1)[1])


def _letters(rng: random.Random, count: int) -> str:
    return "".join(rng.choice(_BASE32) for _ in range(count))
