"""All that makes a site on another host look like one on this: files, commands, large files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

from harvester.central.port import CentralService
from harvester.clock import SystemClock
from harvester.errors import BatchUnavailable
from harvester.remote.carrier import Carrier, CarryingCentral
from harvester.remote.channel import Channel
from harvester.remote.commands import RemoteExecutor
from harvester.remote.files import RemoteFiles, SiteFiles
from harvester.remote.link import Link, link_directory
from harvester.site import Remote, Site
from harvester.spool.runner_archive import build_runner_archive, runner_archive_path
from payload_runner.files import RealFiles
from payload_runner.protocol import SpoolPaths

_ON_THE_WAY = "on-the-way"


class RemoteSite:
    """One site and one connection to it. Connects when it is first used."""

    def __init__(self, site: Site, remote: Remote, environ: Mapping[str, str]) -> None:
        clock = SystemClock()
        spool = SpoolPaths(site.spool)
        archive = build_runner_archive()
        self.site = site
        self._now: Callable[[], float] = clock.now
        self.link = Link(remote, link_directory(environ), clock.now)
        self.executor = RemoteExecutor(self.link)
        self._channel = Channel(
            self.link,
            site.spool,
            runner_archive_path(spool, archive),
            lambda: archive,
            clock.monotonic,
        )
        far = RemoteFiles(self._channel, site.spool)
        self.files = SiteFiles(RealFiles(), far, site.spool, spool.status, site.status_file)

    def carrying(self, central: CentralService) -> CentralService:
        """The central service as this site's daemon is to use it."""
        stop: Path = self.site.state_dir / _ON_THE_WAY
        return CarryingCentral(central, Carrier(self.link), self.files, self.site.spool, stop)

    def discard(self, path: Path) -> None:
        """Remove a directory of the spool with all that is in it; what cannot be removed stays."""
        with contextlib.suppress(BatchUnavailable):
            self.executor(
                ("rm", "-rf", "--", str(path)),
                timeout_s=self.site.budgets.command_timeout_s,
                environment={},
            )

    def close(self) -> None:
        """End the session; the connection stays open for others."""
        self._channel.close()

    def trouble(self) -> tuple[str, str] | None:
        """What is wrong with the connection, or soon will be, and the cure. Never blocks."""
        remote, name = self.link.remote, self.site.name
        if self._channel.failure is not None:
            cure = f"run: harvester site connect {name}" if remote.second_factor else _BY_ITSELF
            return f"no connection to {remote.host}: {self._channel.failure}", cure
        opened = self.link.opened()
        warning = opened and opened.warning(self._now(), remote.warn_before_s)
        if not warning:
            return None
        cure = f"before then run: harvester site connect --renew {name}"
        return f"the connection to {remote.host} {warning}", cure


_BY_ITSELF = "it is opened again by itself; see whether the host and the key are still good"
