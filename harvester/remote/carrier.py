"""Brings large files over the open connection with rsync, and the central service's along.

Input files and results are whole files that never change once they are there; rsync resumes what
was cut off. The small files of the spool's contract go through ``files``.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harvester.batch.commands import run_command
from harvester.central.port import (
    CentralService,
    LeaseReply,
    LeaseRequest,
    LeaseStanding,
    Receipt,
    Report,
    Result,
)
from harvester.errors import BatchUnavailable
from harvester.model import LeaseId
from harvester.remote.link import Link, NoConnection
from harvester.remote.login import session_words
from payload_runner.files import Files

# A checkpoint's or archive's 100 MB at 1 MB/s, with room; the staging lane waits for it alone.
_LIMIT_S = 500.0
_SILENT_S = 60  # of the transfer, before rsync gives up
_WORDS = 500


class Carrier:
    """rsync between this host and the login node. Blocks; for worker threads."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def fetch(self, source: Path, target: Path) -> None:
        """Bring the login node's ``source`` to ``target``, going on where it was cut off.

        Raises:
            OSError: it cannot be brought now.
        """
        self._rsync(f"{self._link.remote.host}:{source}", str(target))

    def send(self, source: Path, target: Path) -> None:
        """Bring ``source`` to the login node's ``target``. Raises OSError."""
        self._rsync(str(source), f"{self._link.remote.host}:{target}")

    def _rsync(self, source: str, target: str) -> None:
        try:
            self._link.ensure()
            done = run_command(
                rsync_command(self._link, source, target),
                timeout_s=_LIMIT_S,
                environment=os.environ,
            )
        except (NoConnection, BatchUnavailable) as error:
            raise OSError(errno.ENOTCONN, str(error)) from error
        if done.returncode != 0:
            words = " ".join(done.stderr.split())[-_WORDS:]
            raise OSError(errno.EIO, f"rsync failed (exit {done.returncode}): {words}", source)


def rsync_command(link: Link, source: str, target: str) -> tuple[str, ...]:
    """Copies one file; one of the two is ``host:path``, whatever the path holds. Pure."""
    over = shlex.join(session_words(link.remote, link.socket))
    return (
        "rsync",
        "--partial",
        "--inplace",
        "--protect-args",
        "--chmod=F600",
        f"--timeout={_SILENT_S}",
        "-e",
        over,
        "--",
        source,
        target,
    )


class CarryingCentral:
    """Implements ``CentralService`` for a spool on another host: files make a stop on this one."""

    def __init__(
        self, central: CentralService, carrier: Carrier, files: Files, spool: Path, stop: Path
    ) -> None:
        """``stop``: the directory of this host where files on their way lie."""
        self._central = central
        self._carrier = carrier
        self._files = files
        self._spool = spool
        self._stop = stop

    def lease(self, request: LeaseRequest) -> LeaseReply:
        return self._central.lease(request)

    def renew(self, leases: Sequence[LeaseId]) -> LeaseStanding:
        return self._central.renew(leases)

    def deliver(self, results: Sequence[Result]) -> tuple[Receipt, ...]:
        return self._central.deliver(results)

    def report(self, reports: Sequence[Report]) -> Mapping[LeaseId, str]:
        return self._central.report(reports)

    def tasks(self) -> Sequence[Mapping[str, Any]]:
        return self._central.tasks()

    def fetch_input(self, sha256: str, target: Path) -> None:
        """From the service to this host, checked, and on to ``target`` in the spool."""
        here = self._here(sha256)
        if not here.exists() or not _is(here, sha256):
            here.unlink(missing_ok=True)
            self._central.fetch_input(sha256, here)
        self._carrier.send(here, target)
        here.unlink()

    def upload(self, path: Path, sha256: str, size: int) -> None:
        """From the spool to this host, checked, and on to the service."""
        if not self._files.exists(path):
            raise FileNotFoundError(errno.ENOENT, "the file is not in the spool", str(path))
        here = self._here(sha256)
        if not here.exists() or not _is(here, sha256):
            self._carrier.fetch(path, here)
            if not _is(here, sha256):
                here.unlink()
                raise OSError(errno.EIO, "it came over with another checksum", str(path))
        self._central.upload(here, sha256, size)
        here.unlink()

    def _here(self, sha256: str) -> Path:
        self._files.make_dir(self._stop)
        return self._stop / sha256


def _is(path: Path, sha256: str) -> bool:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256
