"""The step that brings planned allocations to the batch system, and takes queued ones back."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace

from harvester import ids
from harvester.batch.port import BatchJob
from harvester.daemon.budgets import Backoff
from harvester.daemon.desk import Desk
from harvester.daemon.nodes import record
from harvester.daemon.watch_batch import WatchBatch
from harvester.daemon.windows import WatchWindows
from harvester.effects import Finished
from harvester.errors import Fenced, StorageUnavailable, SubmissionRefused
from harvester.jobs import job_of, plan_of
from harvester.model import AllocationState, JobId, Tag
from harvester.planning.facts import NewAllocation
from harvester.planning.limits import is_offered
from harvester.spool.orderlog import order_log_name
from harvester.store.allocations import AllocationRow
from payload_runner.protocol import AllocationPlan, dump_json

log = logging.getLogger(__name__)

# Rounds from cron are minutes apart: a runner that left between two would leave its nodes unused.
CRON_IDLE_S = 900.0


class Submit:
    """Everything of an allocation is on disk, and the intent in the ledger, before the command."""

    effects = ("submit", "cancel")

    def __init__(self, desk: Desk, watch: WatchBatch, windows: WatchWindows) -> None:
        self.windows = windows
        self._desk = desk
        self._watch = watch
        self._refused = Backoff(desk.rng, base_s=60.0, ceiling_s=3600.0)
        self._uncancelled: dict[Tag, Backoff] = {}  # one that cannot be must not stop all else
        self._excluding: set[Tag] = set()  # submissions under way that name nodes to do without
        self._exclusions_refused = False

    def may_plan(self) -> bool:
        """Whether submissions make sense: no outage, no refusal, no series of dead allocations."""
        now = self._desk.clock.monotonic()
        restrained = max(self._refused.due_in(now), self._watch.duds.due_in(now)) > 0
        # After allocations that ran nothing the next one is a trial, by itself.
        if self._watch.duds.is_failing and self._has_submitted():
            restrained = True
        return self._watch.breaker.open_since is None and not restrained

    def _has_submitted(self) -> bool:
        rows = self._desk.store.allocations.not_ended()
        return any(row.state is not AllocationState.PLANNED and not row.joined for row in rows)

    def may_submit(self) -> bool:
        """Whether a sound and recent look at the batch system allows a submission now."""
        return self.may_plan() and self._watch.breaker.allows_submission and self._watch.is_fresh

    def plan(self, wanted: Iterable[NewAllocation]) -> bool:
        """Record allocations as planned; they are submitted by the next ``step``.

        Until the batch system has been looked at, nothing is planned: other jobs count too.
        """
        desk = self._desk
        planned = False
        wanted = tuple(wanted)[: 1 if self._watch.duds.is_failing else None]
        if wanted and not self.may_submit():
            self._watch.want_look()
            return False
        if wanted and self.windows.hold_back():
            return False
        for new in wanted:
            tag = ids.new_tag(desk.spool_id, desk.rng, self._is_taken)
            desk.journal.record(
                "planned",
                {
                    "tag": tag,
                    "queue": new.queue,
                    "nodes": new.nodes,
                    "walltime_s": new.walltime_s,
                    "gpus_per_node": desk.site.node.gpus,
                    "why": new.why,
                },
            )
            desk.journal.commit()
            planned = True
            self.windows.spent()
        return planned

    def cancel(self, wanted: Iterable[tuple[Tag, str]]) -> bool:
        """Ask the batch system to end allocations that nobody needs."""
        desk = self._desk
        cancelled = False
        for tag, why in wanted:
            row = desk.store.allocations.get(tag)
            if row.cancel == 0 and row.job_id is not None and not row.joined:
                desk.journal.record("cancel_intent", {"tags": [tag], "why": why})
                log.info("Cancel an allocation. tag=%s job=%s why=%s", tag, row.job_id, why)
                cancelled = True
        desk.journal.commit()
        return cancelled

    def take(self, finished: Finished) -> None:
        kind, _, name = finished.name.partition(":")
        tag = Tag(name)
        if kind == "cancel":
            self._take_cancel(tag, finished)
        else:
            self._take_submission(tag, finished)

    def step(self) -> bool:
        changed = False
        if self._desk.stopping:
            return changed
        for row in self._desk.store.allocations.not_ended():
            if row.state is AllocationState.PLANNED and self.may_submit():
                self._submit_or_drop(row)
                changed = True
            elif row.cancel == 1 and row.job_id is not None:
                changed = self._send_cancel(row.tag, row.job_id) or changed
        return changed

    def due_in(self) -> float | None:
        now = self._desk.clock.monotonic()
        wait = max(self._refused.due_in(now), self._watch.duds.due_in(now))
        return wait if wait > 0 else None

    def _submit_or_drop(self, row: AllocationRow) -> None:
        """Planned is not submitted: meanwhile limits may have become stricter."""
        desk = self._desk
        if is_offered(desk.site, row.queue, row.nodes, row.walltime_s):
            self._submit(row)
            return
        reason = f"planned before {desk.site.where} changed, which no longer allows it"
        log.warning("Drop a planned allocation. tag=%s reason=%s", row.tag, reason)
        desk.journal.record("submit_failed", {"tag": row.tag, "reason": reason})
        desk.orders.forget(row.tag)
        desk.plan_wanted = True

    def _submit(self, row: AllocationRow) -> None:
        desk = self._desk
        tag = row.tag
        job = replace(batch_job(desk, row), exclude_nodes=self._excluded(row))
        self._write_allocation(row, job)
        desk.journal.record("submit_intent", {"tag": tag})
        desk.journal.commit()
        desk.submitting.add(tag)
        script = desk.spool.allocation(tag).script

        def submit() -> JobId:
            desk.lease.check()
            return desk.batch.submit(job, script)

        deadline = 2 * desk.site.budgets.command_timeout_s
        desk.effects.start(f"submit:{tag}", submit, lane="batch", deadline_s=deadline)

    def _excluded(self, row: AllocationRow) -> tuple[str, ...]:
        if self._exclusions_refused or not self._desk.batch.capabilities.exclude_nodes:
            return ()
        nodes = record(self._desk).excluded(row.nodes, self._desk.clock.now())
        if nodes:
            self._excluding.add(row.tag)
            log.info("Do without bad nodes. tag=%s nodes=%s", row.tag, ",".join(nodes))
        return nodes

    def _write_allocation(self, row: AllocationRow, job: BatchJob) -> None:
        desk = self._desk
        paths = desk.spool.allocation(row.tag)
        try:
            desk.files.make_dir(paths.root)
            desk.files.replace(paths.plan, dump_json(allocation_plan(desk, row)))
            desk.files.replace(paths.script, desk.batch.render(job).encode())
        except OSError as error:
            raise StorageUnavailable(f"{paths.root}: {error}") from error
        # Not always new: a write may have failed once, at the end of a round from cron perhaps.
        name = order_log_name(row.tag, desk.lease.epoch)
        desk.orders.open(row.tag, desk.store.positions.get(name))
        desk.journal.commit_orders()

    def _take_submission(self, tag: Tag, finished: Finished) -> None:
        desk = self._desk
        desk.submitting.discard(tag)
        error = finished.error
        excluding = tag in self._excluding
        self._excluding.discard(tag)
        if error is None:
            desk.journal.record("submitted", {"tag": tag, "job_id": str(finished.result)})
            desk.problems.clear("submission")
            self._refused.succeeded()
            row = desk.store.allocations.get(tag)
            log.info(
                "Submitted an allocation. tag=%s job=%s nodes=%s walltime_s=%g why=%s",
                tag,
                finished.result,
                row.nodes,
                row.walltime_s,
                row.why,
            )
        elif isinstance(error, (SubmissionRefused, Fenced)):
            if excluding and isinstance(error, SubmissionRefused):
                # It may know its nodes by other names: better with a bad node than without a job.
                self._exclusions_refused = True
                log.warning("Name no more nodes to do without. tag=%s error=%s", tag, error)
            self._take_refusal(tag, error)
        else:
            # Perhaps it was taken: only a look at the batch system tells (rule 10).
            self._watch.submission_failed(error)
        desk.plan_wanted = True

    def _take_refusal(self, tag: Tag, error: Exception) -> None:
        desk = self._desk
        desk.journal.record("submit_failed", {"tag": tag, "reason": str(error)[:1000]})
        desk.orders.forget(tag)
        if isinstance(error, SubmissionRefused):
            self._refused.failed(desk.clock.monotonic())
            cure = f"compare queue, account and limits in {desk.site.where} with the centre's"
            desk.problems.report("submission", f"the batch system refuses {tag}: {error}", cure)

    def _send_cancel(self, tag: Tag, job_id: JobId) -> bool:
        desk = self._desk
        now = desk.clock.monotonic()
        again = self._uncancelled.get(tag)
        if tag in desk.cancelling or self._watch.breaker.due_in(now) > 0:
            return False
        if again is not None and again.due_in(now) > 0:
            return False
        desk.cancelling.add(tag)

        def cancel() -> None:
            desk.lease.check()
            desk.batch.cancel([job_id])

        desk.effects.start(f"cancel:{tag}", cancel, lane="batch")
        return True

    def _take_cancel(self, tag: Tag, finished: Finished) -> None:
        self._desk.cancelling.discard(tag)
        if finished.error is None:
            self._uncancelled.pop(tag, None)
            self._desk.journal.record("cancelled", {"tags": [tag]})
        elif not isinstance(finished.error, Fenced):
            fresh = Backoff(self._desk.rng, base_s=120.0, ceiling_s=3600.0)
            self._uncancelled.setdefault(tag, fresh).failed(self._desk.clock.monotonic())
            self._watch.submission_failed(finished.error)

    def _is_taken(self, tag: Tag) -> bool:
        return self._desk.store.allocations.state(tag) is not None


def allocation_plan(desk: Desk, row: AllocationRow) -> AllocationPlan:
    """What the runner of an allocation is to know."""
    idle_exit_s = desk.site.runner.idle_exit_s
    return plan_of(
        desk.site,
        desk.spool_id,
        tag=row.tag,
        nodes=row.nodes,
        walltime_s=row.walltime_s,
        idle_exit_s=max(idle_exit_s, CRON_IDLE_S if desk.single_round else 0.0),
    )


def batch_job(desk: Desk, row: AllocationRow) -> BatchJob:
    """The job that an allocation becomes."""
    return job_of(
        desk.site,
        tag=row.tag,
        nodes=row.nodes,
        walltime_s=row.walltime_s,
        queue=row.queue,
        runner=desk.runner,
    )
