"""The spool directory itself: made, checked and named once."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from harvester import ids
from harvester.errors import ConfigurationError, Problem, StorageUnavailable
from payload_runner.files import Files
from payload_runner.protocol import BadRecord, SpoolPaths, dump_json, load_json

SPOOL_VERSION = 1
_READ_LIMIT = 64 * 1024


@dataclass(frozen=True)
class SpoolIdentity:
    """``spool.json``."""

    version: int
    spool_id: str


def prepare_spool(files: Files, root: Path, rng: random.Random) -> str:
    """Make the spool's directories where they are missing and answer its id.

    Raises:
        ConfigurationError: another version of the spool, or no spool.json of ours.
        StorageUnavailable: the file system refuses.
    """
    spool = SpoolPaths(root)
    try:
        for path in (
            root,
            spool.leases,
            spool.runner_dir,
            spool.inputs,
            spool.work,
            spool.allocations,
        ):
            files.make_dir(path)
        return _identity(files, spool, rng).spool_id
    except OSError as error:
        raise StorageUnavailable(f"the spool {root}: {error}") from error


def _identity(files: Files, spool: SpoolPaths, rng: random.Random) -> SpoolIdentity:
    if not files.exists(spool.identity):
        fresh = SpoolIdentity(SPOOL_VERSION, ids.new_spool_id(rng))
        try:
            files.create_exclusive(spool.identity, dump_json(fresh))
        except FileExistsError:
            pass  # another driver of the same minute was first
        else:
            return fresh
    try:
        found = load_json(files.read(spool.identity, 0, _READ_LIMIT), SpoolIdentity)
    except BadRecord as error:
        raise _refused(spool, str(error), "a spool.json of this program") from None
    if found.version != SPOOL_VERSION:
        raise _refused(spool, str(found.version), f"version {SPOOL_VERSION}; use another spool")
    return found


def _refused(spool: SpoolPaths, value: str, expected: str) -> ConfigurationError:
    return ConfigurationError(Problem(str(spool.identity), "", value, f"expected {expected}"))
