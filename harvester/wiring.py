"""The one module that knows every adapter, and picks them as the configuration says.

Each adapter is imported when it is chosen, so that a daemon holds only what its site needs.
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from harvester import paths
from harvester.errors import ConfigurationError, NotFound, Problem

if TYPE_CHECKING:
    from harvester.batch.port import BatchJob, BatchSystem
    from harvester.bundles.connected import ConnectedSide
    from harvester.central.port import CentralService
    from harvester.central.tasks import TaskClient
    from harvester.daemon import Daemon
    from harvester.remote.link import Link
    from harvester.remote.site import RemoteSite
    from harvester.site import Site
    from payload_runner.files import Files

Environment = Mapping[str, str]
MakeBatch = Callable[..., "BatchSystem"]  # takes what runs its commands, where that is chosen

_EXAMPLE_TAG = "haaaaa-aaaaaa"
_JOIN_NAME = "harvester-join"  # of a user's own job; not one of our tags

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CentralOverrides:
    """What the command line says of the central service; it wins over site file and environment."""

    url: str | None = None
    token_file: Path | None = None


def make_batch(site: Site) -> BatchSystem:
    """The batch system of a site. Starts nothing and asks nothing yet."""
    batch = _BATCH_SYSTEMS[site.batch_system](site)
    if site.remote is not None:
        # Their environment is the login node's: nothing of this host's goes over.
        return batch(execute=_remote_site(site).executor, environment={})
    return batch()


def make_files(site: Site) -> Files:
    """The files of a site, wherever its spool lies. Connects to nothing yet."""
    from payload_runner.files import RealFiles

    return RealFiles() if site.remote is None else _remote_site(site).files


def make_discard(site: Site) -> Callable[[Path], None]:
    """What removes a directory of a site's spool with all that is in it; failing is no error."""
    if site.remote is not None:
        return _remote_site(site).discard
    import shutil

    return lambda path: shutil.rmtree(path, ignore_errors=True)


def make_link(site: Site) -> Link | None:
    """The connection to a site on another host; None for one on this. Connects to nothing yet."""
    return None if site.remote is None else _remote_site(site).link


def make_central(
    site: Site,
    overrides: CentralOverrides | None = None,
    environ: Environment = os.environ,
    *,
    has_run: bool = False,
) -> CentralService:
    """The client of a site's central service. Connects to nothing yet.

    A service that announces itself on this machine may also come later, or move. So may the token
    of one that ``has_run`` with these settings before: somebody is about to replace it.

    Raises:
        ConfigurationError: what names the service or its token is wrong.
    """
    if site.central.kind == "bundles":
        from harvester.bundles.offline import BundleCentral

        return BundleCentral(site.bundles)

    from harvester.central.discovered import DiscoveredCentral
    from harvester.central.native import NativeCentral
    from harvester.central.tasks import discover

    choice, overrides = site.central, overrides or CentralOverrides()
    # Flag, then environment, then site file, then what announced itself here.
    url = overrides.url or environ.get("HARVESTER_CENTRAL") or choice.url
    with_token = _with_token(environ, overrides, choice.token_file, must_be=not has_run)

    def find() -> tuple[str, Path]:
        return discover(url, with_token, _home(environ))

    def connect(url: str, token_file: Path) -> CentralService:
        return NativeCentral(
            url,
            token_file,
            ca_file=choice.ca_file,
            timeout_s=choice.timeout_s,
            harvester=harvester_name(site),
            use_proxy=not site.network.unset_proxy,
        )

    try:
        find()
    except NotFound as error:
        log.warning("Finds no central service yet and goes on looking. reason=%s", error)
    return DiscoveredCentral(find, connect)


@contextlib.contextmanager
def connected_side(
    site: Site, overrides: CentralOverrides | None = None
) -> Iterator[ConnectedSide]:
    """The side of a site's bundles that reaches the central service; one process at a time.

    Raises:
        ConfigurationError, StorageUnavailable: as they say.
    """
    from harvester.alone import held_alone
    from harvester.bundles.connected import ConnectedSide
    from harvester.bundles.offline import BundlePlaces

    BundlePlaces(site.bundles)
    with held_alone(site.bundles / "lock"):
        central = make_central(site, overrides)
        yield ConnectedSide(site.bundles, site.name, harvester_name(site), central)


def make_task_client(
    overrides: CentralOverrides | None = None, environ: Environment = os.environ
) -> TaskClient:
    """The client for submitting and looking at tasks. Connects to nothing yet.

    Raises:
        ConfigurationError: no service is named, and none has announced itself on this machine.
    """
    from harvester.central.tasks import TaskClient, discover

    overrides = overrides or CentralOverrides()
    url, token_file = discover(overrides.url, _with_token(environ, overrides, None), _home(environ))
    return TaskClient(url, token_file)


def require_account(site: Site) -> None:
    """Refuse to submit at a centre that wants an account when none is named (a shipped file)."""
    if site.account_required and not site.account:
        expected = "expected your project's account in a site file that extends this one"
        raise ConfigurationError(Problem(f"site {site.name}", "account", "", expected))


def require_own_directories(site: Site) -> None:
    """Refuse a spool or state directory that is a link, another's, or that others can write to.

    Raises:
        ConfigurationError: with the command that mends it.
    """
    from payload_runner.files import UnsafePath, require_own_dir

    # The spool of a site on another host is not here to be looked at.
    spool = [] if site.remote is not None else [("spool.path", site.spool)]
    for key, path in (*spool, ("state_dir", site.state_dir)):
        try:
            require_own_dir(path)
        except UnsafePath as error:
            expected = f"expected a directory that only you can write to: {error}"
            raise ConfigurationError(
                Problem(f"site {site.name}", key, str(path), expected)
            ) from None
        except OSError:
            continue  # whoever opens it says what is wrong with it


def require_capabilities(site: Site, batch: BatchSystem) -> None:
    """Refuse what a site file asks for and its batch system cannot do."""
    asked = (
        ("requeue", site.requeue, batch.capabilities.requeue),
        ("submission.held", site.submission.held, batch.capabilities.held_submission),
    )
    for key, wanted, able in asked:
        if wanted and not able:
            expected = f"expected false: {batch.name} cannot do that"
            raise ConfigurationError(Problem(f"site {site.name}", key, "true", expected))


def make_daemon(
    site: Site, overrides: CentralOverrides | None = None, *, has_run: bool = False
) -> Daemon:
    """The daemon of a site, with production's clock, files and worker threads.

    Raises:
        ConfigurationError: the centre wants an account and the site file names none, or as
            ``make_central``.
    """
    require_account(site)
    require_own_directories(site)
    batch = make_batch(site)
    require_capabilities(site, batch)
    from harvester.clock import SystemClock
    from harvester.daemon import Daemon
    from harvester.effects import ThreadEffects
    from harvester.planning.planner import plan

    clock = SystemClock()
    central = make_central(site, overrides, has_run=has_run)
    way = None if site.remote is None else _remote_site(site)
    return Daemon(
        site,
        batch=batch,
        central=central if way is None else way.carrying(central),
        files=make_files(site),
        clock=clock,
        effects=ThreadEffects(clock),
        plan=plan,
        way=way,
    )


def rebuild_index(site: Site) -> Mapping[str, int]:
    """Rebuild a site's index from its logs, under the lease; the attempts found, by state.

    Raises:
        Fenced: somebody drives the spool; says who.
        StorageUnavailable: state directory, spool or the index's disk refuses.
    """
    import random

    from harvester.clock import SystemClock
    from harvester.daemon.opening import Ports, prepare
    from harvester.effects import InlineEffects
    from harvester.recover import Sources, rebuild

    files = make_files(site)
    ports = Ports(
        site=site,
        batch=make_batch(site),
        central=make_central(site),
        files=files,
        clock=SystemClock(),
        effects=InlineEffects(),
    )
    grounds = prepare(ports, random.Random())
    while (wait_s := grounds.lease.acquire()) > 0:
        log.info("Waits for the lease of the last driver. seconds=%.0f", wait_s)
        time.sleep(wait_s)
    try:
        store = rebuild(Sources(files, grounds.spool, site.state_dir), site.index, grounds.spool_id)
        counts = store.attempts.counts()
        store.close()
    finally:
        grounds.lease.release()
    return counts


def render_job(
    site: Site, nodes: int, walltime_s: float, queue: str
) -> tuple[str, tuple[str, ...]]:
    """The batch script of an allocation and the command that would submit it, for people to see.

    The command is () where the batch system is reached without one.
    """
    from harvester.jobs import job_of
    from harvester.model import Tag
    from payload_runner.protocol import SpoolPaths

    spool, tag = SpoolPaths(site.spool), Tag(_EXAMPLE_TAG)
    job = job_of(
        site,
        tag=tag,
        nodes=nodes,
        walltime_s=walltime_s,
        queue=queue,
        runner=spool.runner_dir / "payload_runner.pyz",
    )
    return render_batch_job(site, job, spool.allocation(tag).script)


def render_join(
    site: Site, nodes: int, walltime_s: float, queue: str
) -> tuple[str, tuple[str, ...]]:
    """A batch script for a user's own job that joins the site's spool, and the command to join.

    Prepares the spool: its runner and what the runner is to know of the site lie there then.

    Raises:
        ConfigurationError, StorageUnavailable: the spool cannot be used.
    """
    import dataclasses
    import random

    from harvester.errors import StorageUnavailable
    from harvester.jobs import job_of, join_plan
    from harvester.model import Tag
    from harvester.spool.runner_archive import ensure_runner_archive
    from harvester.spool.spooldir import prepare_spool
    from payload_runner.protocol import SpoolPaths, dump_json

    files, spool = make_files(site), SpoolPaths(site.spool)
    spool_id = prepare_spool(files, site.spool, random.Random())
    runner = ensure_runner_archive(files, spool)
    try:
        files.replace(spool.join, dump_json(join_plan(site, spool_id)))
    except OSError as error:
        raise StorageUnavailable(f"{spool.join}: {error}") from error
    command = (site.runner.python, str(runner), "join", str(site.spool))
    tag = Tag(_EXAMPLE_TAG)
    job = job_of(site, tag=tag, nodes=nodes, walltime_s=walltime_s, queue=queue, runner=runner)
    left = ("--nodes", str(nodes), "--walltime", f"{walltime_s:.0f}s")
    own = dataclasses.replace(
        job, tag=Tag(_JOIN_NAME), command=(*command, *left), directory=site.spool, held=False
    )
    return make_batch(site).render(own), command


def render_batch_job(site: Site, job: BatchJob, script: Path) -> tuple[str, tuple[str, ...]]:
    """A job's batch script, and the command that would submit it from ``script``."""
    from harvester.batch.commands import SubmitsByCommand

    batch = make_batch(site)
    command = batch.submit_command(job, script) if isinstance(batch, SubmitsByCommand) else ()
    return batch.render(job), command


def harvester_name(site: Site) -> str:
    """How this harvester calls itself to the central service: the same on every login node."""
    return f"{getpass.getuser()}@{site.name}"


def _remote_site(site: Site) -> RemoteSite:
    """The one of this process: a daemon that reloads its site file keeps its session."""
    from harvester.remote.site import RemoteSite

    assert site.remote is not None
    known = _REMOTE_SITES.get(site.name)
    if known is None or known.site != site:
        if known is not None:
            known.close()
        known = _REMOTE_SITES[site.name] = RemoteSite(site, site.remote, os.environ)
    return known


def _local(site: Site) -> MakeBatch:
    from harvester.batch.local import LocalBatch

    def make(**_: object) -> BatchSystem:
        return LocalBatch(site.state_dir / "batch", site.local.nodes, site.node, site.local.warn_s)

    return make


def _slurm(site: Site) -> MakeBatch:
    from harvester.batch.slurm import Slurm

    return partial(Slurm, timeout_s=site.budgets.command_timeout_s, project=_project(site))


def _pbs(site: Site) -> MakeBatch:
    from harvester.batch.pbs import Pbs

    return partial(Pbs, timeout_s=site.budgets.command_timeout_s, project=_project(site))


def _lsf(site: Site) -> MakeBatch:
    from harvester.batch.lsf import Lsf

    # jsrun is there where LSF hands out whole nodes, and nowhere else.
    whole_nodes = bool(site.runner.launcher) and Path(site.runner.launcher[0]).name == "jsrun"
    return partial(
        Lsf,
        whole_nodes=whole_nodes,
        timeout_s=site.budgets.command_timeout_s,
        project=_project(site),
    )


def _flux(site: Site) -> MakeBatch:
    from harvester.batch.flux import Flux

    return partial(Flux, timeout_s=site.budgets.command_timeout_s, project=_project(site))


def _gridengine(site: Site) -> MakeBatch:
    from harvester.batch.gridengine import GridEngine

    return partial(GridEngine, timeout_s=site.budgets.command_timeout_s, project=_project(site))


def _project(site: Site) -> str:
    """The account whose jobs count, whosever they are; "" where limits are each user's own."""
    shared = any(queue.limits_per == "project" for queue in site.queues)
    return site.account if shared else ""


_BATCH_SYSTEMS: Mapping[str, Callable[[Site], MakeBatch]] = {
    "local": _local,
    "slurm": _slurm,
    "pbs": _pbs,
    "lsf": _lsf,
    "flux": _flux,
    "gridengine": _gridengine,
}
_REMOTE_SITES: dict[str, RemoteSite] = {}


def _home(environ: Environment) -> Path:
    return paths.state_home(environ)


def _with_token(
    environ: Environment,
    overrides: CentralOverrides,
    configured: Path | None,
    *,
    must_be: bool = True,
) -> Environment:
    token_file = overrides.token_file or environ.get("HARVESTER_TOKEN_FILE") or configured
    if token_file is None:
        return environ
    if must_be and not Path(token_file).is_file():
        problem = Problem("token file", "", str(token_file), "expected a file that holds a token")
        raise ConfigurationError(problem)
    return {**environ, "HARVESTER_TOKEN_FILE": str(token_file)}
