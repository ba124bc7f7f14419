"""Runs the probe job of a site: writes its directory, submits it, answers it and reads it."""

from __future__ import annotations

import contextlib
import logging
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from harvester.batch.port import BatchJob, BatchSystem, JobState
from harvester.clock import Clock
from harvester.errors import BatchUnavailable, HarvesterError, StorageUnavailable
from harvester.ids import new_tag
from harvester.jobs import job_of
from harvester.model import JobId, Tag
from harvester.probe.findings import Measured
from harvester.site import Site
from harvester.spool.by_hand import record_query, record_submission
from harvester.spool.runner_archive import ensure_runner_archive
from harvester.spool.spooldir import prepare_spool
from payload_runner.files import Files
from payload_runner.probe import ProbePaths, ProbeReport, read_node
from payload_runner.protocol import AllocationPlan, BadRecord, SpoolPaths, dump_json, load_json

# Between looks at the probe's directory, and at the queue while it waits in it.
LOOK_S = 0.1
QUEUE_LOOK_AT_LEAST_S = 5.0
# The directory's last files may become visible after the job's end.
GRACE_S = {"local": 5.0, "shared": 60.0}
COLLECT_S = 30.0
_LIMIT = 1 << 20
_TAIL = 2000

log = logging.getLogger(__name__)


class ProbeFailed(HarvesterError):
    """The probe job ended, or never ran, without bringing back a report."""

    exit_code = 75


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One probe of a site, not yet begun."""

    site: Site
    nodes: int
    walltime_s: float
    queue: str
    name: Tag  # of the job and of its directory

    @property
    def paths(self) -> ProbePaths:
        """Where it lies in the spool."""
        return ProbePaths(SpoolPaths(self.site.spool).probes / self.name)

    def job(self, runner: Path) -> BatchJob:
        """The batch job, with the payload runner's zipapp at ``runner``."""
        usual = job_of(
            self.site,
            tag=self.name,
            nodes=self.nodes,
            walltime_s=self.walltime_s,
            queue=self.queue,
            runner=runner,
        )
        root = self.paths.root
        command = (self.site.runner.python, str(runner), "probe", str(root))
        # Whoever submits a probe waits for it: nobody else has to release it.
        return replace(
            usual, command=command, directory=root, warn_s=0.0, requeue=False, held=False
        )


def new_name() -> Tag:
    """A tag as allocations have it, of a spool that no daemon has."""
    return new_tag("probe", random.SystemRandom(), lambda tag: False)


@dataclass(frozen=True, slots=True)
class Ports:
    """What a probe works through. ``tell`` hears what is going on."""

    batch: BatchSystem
    files: Files
    clock: Clock
    sleep: Callable[[float], None]
    tell: Callable[[str], None]
    discard: Callable[[Path], None]  # removes a directory in the spool with all that is in it


def run_probe(probe: Probe, ports: Ports, wait_s: float) -> Measured:
    """Submit the job, wait for its report for at most ``wait_s``, and leave nothing behind.

    Should the job not come to its end, it is cancelled and its directory stays for looking at.

    Raises:
        ProbeFailed: no report; says what the job's output says.
        SubmissionRefused, BatchUnavailable, StorageUnavailable: as they say.
    """
    runner = _prepare(probe, ports.files)
    root = probe.paths.root
    try:
        ports.files.replace(probe.paths.script, ports.batch.render(probe.job(runner)).encode())
    except OSError as error:
        raise StorageUnavailable(f"{root}: {error}") from error
    try:
        record_submission(ports.files, probe.site.state_dir, probe.name, ports.clock.now())
    except OSError as error:
        raise StorageUnavailable(f"the state directory: {error}") from error
    job = ports.batch.submit(probe.job(runner), probe.paths.script)
    ports.tell(f"job {job}: {probe.nodes} nodes for {probe.walltime_s:g} s in {probe.queue}")
    try:
        _Vigil(probe, ports, job).keep(ports.clock.monotonic() + wait_s)
        measured = _collect(probe, ports)
    except BaseException:
        # Ctrl-C too: a job that nobody waits for is to leave the queue.
        with contextlib.suppress(BatchUnavailable):
            ports.batch.cancel([job])
        ports.tell(f"what there is of it lies in {root}")
        raise
    ports.discard(root)
    return measured


def _prepare(probe: Probe, files: Files) -> Path:
    site, paths = probe.site, probe.paths
    spool_id = prepare_spool(files, site.spool, random.SystemRandom())
    spool = SpoolPaths(site.spool)
    if files.exists(spool.stop):
        raise ProbeFailed(f"{spool.stop} says that nothing is to be submitted; remove it first")
    runner = ensure_runner_archive(files, spool)
    plan = AllocationPlan(
        tag=probe.name,
        spool_id=spool_id,
        nodes=probe.nodes,
        node=site.node,
        walltime_s=probe.walltime_s,
        batch_system=site.batch_system,
        launcher=site.runner.launcher,
        filesystem=site.filesystem,
        node_local_dir=site.runner.node_local_dir,
        container_runtime=site.container_runtime,
    )
    try:
        files.make_dir(spool.probes)
        files.make_dir(paths.root)
        files.replace(paths.plan, dump_json(plan))
        files.create_log(paths.answer).close()
    except OSError as error:
        raise StorageUnavailable(f"{paths.root}: {error}") from error
    return runner


class _Vigil:
    """Waits for a job's report and answers its hello."""

    def __init__(self, probe: Probe, ports: Ports, job: JobId) -> None:
        self._probe = probe
        self._ports = ports
        self._job = job
        is_local = probe.site.filesystem == "local"
        interval = probe.site.budgets.query_interval_s
        self._interval_s = interval if is_local else max(QUEUE_LOOK_AT_LEAST_S, interval)
        self._grace_s = GRACE_S["local" if is_local else "shared"]
        self._answered = False
        self._said = ""

    def keep(self, until: float) -> None:
        """Come back when the report is there. Raises ProbeFailed."""
        ports = self._ports
        look_at = ports.clock.monotonic() + self._interval_s
        gone_at: float | None = None
        while not self._has_report():
            now = ports.clock.monotonic()
            if now >= until:
                raise _failed(self._probe, ports.files, "did not bring a report in time")
            if gone_at is None and now >= look_at:
                look_at = now + self._interval_s
                gone_at = now if self._has_left() else None
            if gone_at is not None and now - gone_at >= self._grace_s:
                raise _failed(self._probe, ports.files, "ended without a report")
            ports.sleep(LOOK_S)

    def _has_report(self) -> bool:
        paths, files = self._probe.paths, self._ports.files
        names = files.listdir(paths.root)
        if paths.hello.name in names and not self._answered:
            _answer(paths, files)
            self._answered = True
            self._ports.tell("the job runs")
        return paths.report.name in names

    def _charge(self) -> None:
        """The daemon's budget counts this look, with all its commands."""
        ports, site = self._ports, self._probe.site
        at = ports.clock.now()
        for number in range(ports.batch.capabilities.look_commands):
            name = f"{self._probe.name}-{number}"
            record_query(ports.files, site.state_dir, name, at + number / 1000)

    def _has_left(self) -> bool:
        """Ask the scheduler, tell what is new, and answer whether the job is off its list."""
        try:
            self._charge()
            listed = [job for job in self._ports.batch.observe().jobs if job.job_id == self._job]
        except (BatchUnavailable, OSError) as error:
            log.debug("The queue could not be read. error=%s", error)
            return False
        if not listed or listed[0].state is JobState.ENDED:
            return True
        reason = f" ({listed[0].reason})" if listed[0].reason else ""
        state = f"the job is {listed[0].state.value}{reason}"
        if state != self._said and not self._answered:
            self._ports.tell(state)
        self._said = state
        return False


def _answer(paths: ProbePaths, files: Files) -> None:
    opened = files.continue_log(paths.answer)
    try:
        opened.write(b"seen\n")
        opened.sync()
    finally:
        opened.close()


def _collect(probe: Probe, ports: Ports) -> Measured:
    paths, files = probe.paths, ports.files
    try:
        report = load_json(files.read(paths.report, 0, _LIMIT), ProbeReport)
        until = ports.clock.monotonic() + COLLECT_S
        # The nodes' files may become visible after the report that counts them.
        while (
            len(found := paths.nodes(files.listdir(paths.root))) < report.nodes.processes
            and ports.clock.monotonic() < until
        ):
            ports.sleep(LOOK_S)
        nodes = tuple(read_node(files.read(path, 0, _LIMIT)) for path in found)
    except (OSError, BadRecord) as error:
        raise _failed(probe, files, f"left what cannot be read ({error})") from error
    if not nodes:
        words = report.nodes.words.strip() or "nothing"
        raise _failed(probe, files, f"started nothing on its nodes; the launcher says: {words}")
    return Measured(nodes, report, probe.nodes, os.uname().nodename)


def _failed(probe: Probe, files: Files, what: str) -> ProbeFailed:
    try:
        output = files.read(probe.paths.output, 0, _LIMIT).decode(errors="replace").strip()
    except OSError:
        output = ""
    said = f": {output[-_TAIL:]}" if output else "; its output is empty"
    return ProbeFailed(f"the probe job {what}{said}")
