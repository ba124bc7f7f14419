"""``harvester run``: drives a site, as a loop or for one round."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harvester.cli.options import central_options, refuse_second, site_option

if TYPE_CHECKING:
    from harvester.daemon import Daemon
    from harvester.notify import ServiceManager
    from harvester.site import Site
    from harvester.wiring import CentralOverrides

ROUND_LIMIT_S = 240.0  # cron calls every 5 minutes

log = logging.getLogger(__name__)


@click.command()
@site_option
@click.option("--once", is_flag=True, help="One round, then leave: for cron and scrontab.")
@central_options
@click.pass_context
def run(
    context: click.Context, site: str, once: bool, central: str | None, token_file: Path | None
) -> None:
    """Drive a site: lease points, submit allocations, give orders, relay results.

    SIGTERM and Ctrl-C finish the step in hand and leave; batch jobs go on without the daemon.
    SIGHUP reads the site file and the token anew. A second instance refuses, naming the first.
    """
    from harvester.cli.logs import set_up_logs
    from harvester.config import load_site
    from harvester.wiring import CentralOverrides

    set_up_logs(context.obj.verbose, os.environ)
    loaded = load_site(site, os.environ)
    overrides = CentralOverrides(url=central, token_file=token_file)
    _leave_pointer(loaded, site)
    refuse_second(loaded)
    _drive(site, loaded, overrides, once=once)


class Wishes:
    """What signals ask for; the daemon's loop asks it before each step.

    Being asked is the sign of life that feeds the service manager's watchdog: a loop that hangs
    does not ask.
    """

    def __init__(self, manager: ServiceManager) -> None:
        self.leave = False
        self.reload = False
        self._manager = manager
        self._wake: Callable[[], None] = _nothing

    def is_set(self) -> bool:
        """Whether to finish the step in hand and come back."""
        self._manager.alive()
        return self.leave or self.reload

    def catch_signals(self) -> None:
        """Take SIGTERM, SIGINT and SIGHUP from now on."""
        signal.signal(signal.SIGTERM, self._leave)
        signal.signal(signal.SIGINT, self._leave)
        signal.signal(signal.SIGHUP, self._reload)

    def wake_with(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` when a signal has come, so that nobody sleeps over it."""
        self._wake = wake

    def _leave(self, *_: object) -> None:
        self.leave = True
        self._wake()

    def _reload(self, *_: object) -> None:
        self.reload = True
        self._wake()


def _nothing() -> None:
    return None


def _drive(name: str, site: Site, overrides: CentralOverrides, *, once: bool) -> None:
    from harvester.notify import MANAGERS_VARIABLES, ServiceManager
    from harvester.wiring import make_daemon

    manager = ServiceManager(os.environ, os.getpid(), time.monotonic)
    for variable in MANAGERS_VARIABLES:
        os.environ.pop(variable, None)  # meant for us, not for schedulers' commands and jobs
    wishes = Wishes(manager)
    wishes.catch_signals()
    daemon = make_daemon(site, overrides)
    if once:
        wishes.wake_with(daemon.wake)
        daemon.run_once(ROUND_LIMIT_S, wishes)
        return
    while not wishes.leave:
        wishes.wake_with(daemon.wake)
        manager.ready(f"Drives {site.name}")
        daemon.run(wishes)
        if wishes.reload and not wishes.leave:
            manager.reloading()
            wishes.reload = False
            site, daemon = _renewed(name, site, overrides)
    manager.stopping()


def _renewed(name: str, site: Site, overrides: CentralOverrides) -> tuple[Site, Daemon]:
    """Site and daemon after a reload, which never ends what runs."""
    from harvester.errors import HarvesterError
    from harvester.wiring import make_daemon

    fresh = _reloaded(name, site)
    try:
        return fresh, make_daemon(fresh, overrides)
    except HarvesterError as error:
        log.error("Keeps the old settings, mend the new ones and reload. problems=%s", error)  # noqa: TRY400
        return site, make_daemon(site, overrides, has_run=True)


def _reloaded(name: str, site: Site) -> Site:
    from harvester.config import load_site
    from harvester.errors import HarvesterError

    try:
        fresh = load_site(name, os.environ)
    except (HarvesterError, OSError) as error:  # no process or no time to read it in, too
        # The sentences say it all; a traceback would only hide them.
        log.error("Keeps the old site file, mend the new one and reload. problems=%s", error)  # noqa: TRY400
        return site
    if _identity(fresh) != _identity(site):
        log.error(
            "Keeps the old site file: name, state, spool and batch system need a restart. site=%s",
            site.name,
        )
        return site
    log.info("Reloads the site file. site=%s", fresh.name)
    return fresh


def _identity(site: Site) -> tuple[object, ...]:
    """What stays as long as a daemon runs; another batch system would not know the jobs of this."""
    return site.name, site.state_dir, site.spool, site.batch_system


def _leave_pointer(site: Site, given: str) -> None:
    from harvester.paths import site_states
    from harvester.views.site_states import leave_pointer

    is_path = "/" in given or given.endswith((".yaml", ".yml"))
    site_file = str(Path(given).absolute()) if is_path else given
    usual = site_states(os.environ) / site.name
    leave_pointer(site.name, site_file, site.state_dir, site.spool, usual)
