"""From the validated keys of a site file to the values of ``harvester.site``."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from harvester import paths
from harvester.config_check import problem_at
from harvester.config_schema import QueueKeys, RemoteKeys, SiteKeys
from harvester.config_sources import Sources
from harvester.config_yaml import Key, Layer
from harvester.errors import ConfigurationError, Problem
from harvester.mpi_launchers import usual_mpi_launcher
from harvester.site import (
    Budgets,
    CentralChoice,
    LocalCluster,
    Network,
    PlanningChoice,
    Queue,
    Remote,
    Reservation,
    RunnerChoice,
    Site,
    SubmissionRules,
    WalltimeBin,
)
from payload_runner.protocol import NodeShape

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_MEGABYTE = 1_000_000
# The keys whose values are paths.
_PATHS = (
    ("spool", "path"),
    ("state", "dir"),
    ("state", "index"),
    ("central", "token_file"),
    ("central", "ca_file"),
    ("containers", "image_dir"),
    ("remote", "ssh_config"),
)


class Expansion:
    """Turns validated keys into a ``Site``: expands paths and fills in what depends on the user."""

    def __init__(self, first: Path, layer: Layer, sources: Sources) -> None:
        self._first = first
        self._layer = layer
        self._sources = sources
        self._problems: list[Problem] = []

    def problems(self) -> list[Problem]:
        """What is wrong with the paths of the file, whatever else is wrong with it."""
        found = Expansion(self._first, self._layer, self._sources)
        for part, name in _PATHS:
            inside = self._layer.values.get(part)
            text = inside.get(name) if isinstance(inside, dict) else None
            if isinstance(text, str) and text:
                found._path((part, name), text)
        return found._problems

    def site(self, keys: SiteKeys) -> Site:
        """The site; ConfigurationError when a path names a variable that is not set."""
        name = keys.name or self._first.stem
        state_dir = self._state_dir(keys, name)
        local = keys.spool.filesystem == "local"
        index = self._path(("state", "index"), keys.state.index)
        spool = self._path(("spool", "path"), keys.spool.path)
        site = Site(
            name=name,
            batch_system=keys.batch_system,
            node=_node(keys),
            queues=tuple(_queue(queue, keys) for queue in keys.queues),
            spool=spool or state_dir / "spool",
            filesystem=keys.spool.filesystem,
            retention_s=keys.spool.retention,
            state_dir=state_dir,
            index=index or paths.default_index(state_dir, name, local=local, uid=os.getuid()),
            roll_bytes=keys.state.roll_size,
            description=keys.description,
            account=keys.account or "",
            requeue=keys.requeue,
            account_required=keys.account_required,
            directives=(*keys.directives, *_filesystems(keys)),
            container_runtime=keys.containers.runtime,
            image_dir=_text(self._path(("containers", "image_dir"), keys.containers.image_dir)),
            container_images=self._images(keys),
            container_options=tuple(keys.containers.options),
            containers_only=keys.containers.only,
            submission=_submission(keys),
            network=_network(keys),
            reservations=_reservations(keys),
            budgets=_budgets(keys),
            central=self._central(keys),
            runner=_runner(keys),
            planning=_planning(keys),
            local=LocalCluster(nodes=keys.local.nodes, warn_s=keys.local.warn),
            remote=None if keys.remote is None else self._remote(keys.remote),
        )
        if self._problems:
            raise ConfigurationError(self._problems)
        return site

    def _state_dir(self, keys: SiteKeys, name: str) -> Path:
        for variable in ("XDG_STATE_HOME", "HOME"):
            self._sources.variable(variable)
        default = paths.site_states(self._sources.environ) / name
        return self._path(("state", "dir"), keys.state.dir) or default

    def _central(self, keys: SiteKeys) -> CentralChoice:
        return CentralChoice(
            kind=keys.central.kind,
            url=keys.central.url,
            token_file=self._path(("central", "token_file"), keys.central.token_file),
            ca_file=self._path(("central", "ca_file"), keys.central.ca_file),
            timeout_s=keys.central.timeout,
        )

    def _images(self, keys: SiteKeys) -> dict[str, str]:
        """Where images lie by their names: paths, or what a runtime calls them."""
        found = {}
        for name, place in keys.containers.images.items():
            is_path = place.startswith(("/", "~", "$"))
            path = self._path(("containers", "images", name), place) if is_path else None
            found[name] = _text(path) or place
        return found

    def _remote(self, keys: RemoteKeys) -> Remote:
        return Remote(
            host=keys.host,
            ssh_config=self._path(("remote", "ssh_config"), keys.ssh_config),
            python=keys.python,
            prologue=tuple(keys.prologue),
            second_factor=keys.second_factor,
            session_s=keys.session,
            warn_before_s=keys.session_warning,
            timeout_s=keys.timeout,
        )

    def _path(self, key: Key, text: str | None) -> Path | None:
        if text is None:
            return None
        if text == "~" or text.startswith("~/"):
            text = f"$HOME{text[1:]}"
        path = Path(_VARIABLE.sub(lambda match: self._value(key, match), text))
        if not path.is_absolute():
            self._note(key, "expected an absolute path, $NAME or ~ in front")
        return path

    def _value(self, key: Key, match: re.Match[str]) -> str:
        name = match[1] or match[2]
        value = self._sources.variable(name)
        if not value:
            self._note(key, f"expected ${name} to be set in the environment; it is not")
            return "/"
        return value

    def _note(self, key: Key, sentence: str) -> None:
        self._problems.append(problem_at(self._first, self._layer, key, sentence))


def _node(keys: SiteKeys) -> NodeShape:
    return NodeShape(
        gpus=keys.node.gpus,
        cores=keys.node.cores,
        memory_mb=(keys.node.memory or 0) // _MEGABYTE,
        gpu_variable=keys.node.gpu_variable,
        gpu_names=tuple(keys.node.gpu_order),
    )


def _filesystems(keys: SiteKeys) -> tuple[str, ...]:
    # ALCF's PBS starts a job only while the file systems that it names are up.
    names = keys.submission.filesystems
    return (f"-l filesystems={':'.join(names)}",) if names else ()


def _submission(keys: SiteKeys) -> SubmissionRules:
    rules = keys.submission
    return SubmissionRules(
        gpu_request=rules.gpu_request,
        cores=rules.cores_request,
        memory=rules.memory_request,
        held=rules.held,
    )


def _network(keys: SiteKeys) -> Network:
    network = keys.network
    return Network(
        compute=network.compute,
        unset_proxy=network.unset_proxy,
        inter_job=network.inter_job_network,
    )


def _reservations(keys: SiteKeys) -> tuple[Reservation, ...]:
    found = [
        Reservation(start=item.start, end=item.end, why=item.why) for item in keys.reservations
    ]
    return tuple(sorted(found, key=lambda item: item.start))


def _nodes_limit(keys: SiteKeys) -> int:
    # A virtual cluster has as many nodes as it was told, whatever a base file's queue allows.
    return keys.local.nodes if keys.batch_system == "local" else sys.maxsize


def _queue(keys: QueueKeys, site: SiteKeys) -> Queue:
    nodes_limit = _nodes_limit(site)
    return Queue(
        name=keys.name,
        bins=tuple(
            WalltimeBin(
                nodes_min=item.nodes[0],
                nodes_max=min(item.nodes[1], nodes_limit),
                walltime_max_s=item.walltime,
            )
            for item in sorted(keys.bins, key=lambda item: item.nodes)
        ),
        kind=keys.kind,
        queued_max=keys.queued_max,
        running_max=keys.running_max,
        total_max=keys.total_max,
        limits_per=keys.limits_per,
        preemptable=keys.preemptable,
        directives=tuple(keys.directives),
        whole_nodes=keys.whole_nodes,
        gpus_min=keys.gpus_min,
        planned=keys.planned,
        routes_to=tuple(site.routing_queues.get(keys.name, ())),
    )


def _budgets(keys: SiteKeys) -> Budgets:
    budgets = keys.budgets
    return Budgets(
        query_interval_s=budgets.query_interval,
        queries_per_minute=budgets.queries_per_minute,
        submissions_per_hour=budgets.submissions_per_hour,
        jobs_in_flight=budgets.jobs_in_flight,
        node_hours_per_day=budgets.node_hours_per_day,
        node_hours_total=budgets.node_hours_total,
        command_timeout_s=budgets.command_timeout,
    )


def _runner(keys: SiteKeys) -> RunnerChoice:
    runner = keys.runner
    return RunnerChoice(
        python=runner.python,
        launcher=tuple(runner.launcher),
        mpi_launcher=tuple(runner.mpi_launcher)
        or usual_mpi_launcher(keys.batch_system, runner.launcher),
        transport=runner.transport,
        node_local_dir=runner.node_local_dir,
        keep_workdirs=runner.keep_workdirs,
        drain_margin_s=runner.drain_margin,
        idle_exit_s=runner.idle_exit,
        environment=runner.environment,
        prologue=tuple(runner.prologue),
    )


def _planning(keys: SiteKeys) -> PlanningChoice:
    planning = keys.planning
    return PlanningChoice(
        queues=tuple(planning.queues),
        nodes_max=planning.nodes_max,
        walltime_max_s=planning.walltime_max,
        walltime_min_s=planning.walltime_min,
        boot_margin_s=planning.boot_margin,
        default_expected_s=planning.default_expected,
        lookahead=planning.lookahead,
    )


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
