"""The step that looks at the batch system, within its budget, and settles which jobs have ended."""

from __future__ import annotations

import logging

from harvester.batch.port import JobState, Observation, ObservedJob
from harvester.daemon import reconcile
from harvester.daemon.budgets import Backoff, Breaker
from harvester.daemon.desk import Desk
from harvester.daemon.reconcile import Absent, Doubtful, Finding, Gone, Known, Listed, Unseen
from harvester.effects import Finished, Work
from harvester.errors import BatchUnavailable
from harvester.ids import tag_prefix
from harvester.model import AllocationState, JobId, Tag
from harvester.spool.intake import writer_of
from harvester.store.allocations import AllocationRow

log = logging.getLogger(__name__)

# After the end of a job without its runner's last word, events may still become visible.
EVENTS_GRACE_S = {"local": 2.0, "shared": 45.0}
# Without accounting, a job that is not listed for this many query intervals has ended.
GRACE_INTERVALS = 5.0
GRACE_MIN_S = {"local": 10.0, "shared": 600.0}
_CURE = "see whether the scheduler's commands work here; nothing is submitted until they do"


class WatchBatch:
    """Observes the batch system and reconciles the allocations with what it says."""

    effects = ("observe", "accounting")

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        budgets = desk.site.budgets
        self.breaker = Breaker(Backoff(desk.rng, base_s=budgets.query_interval_s, ceiling_s=3600.0))
        self.duds = Backoff(desk.rng, base_s=budgets.query_interval_s, ceiling_s=3600.0)
        self._observed_at = float("-inf")
        self._in_flight = False
        self._unseen: dict[Tag, Unseen] = {}
        self._doubtful: set[Tag] = set()
        self._ending: dict[Tag, tuple[Gone, float]] = {}
        self._kind = "local" if desk.is_local else "shared"
        self._wanted = False

    def want_look(self) -> None:
        """Something is to be submitted: look at the batch system first."""
        self._wanted = True

    @property
    def is_fresh(self) -> bool:
        """Whether the last look is recent enough to submit upon."""
        age = self._desk.clock.monotonic() - self._observed_at
        return age < 3 * self._desk.site.budgets.query_interval_s

    def is_settling(self) -> bool:
        """Whether the end of a job is known and only its last events are waited for."""
        return bool(self._ending)

    def take(self, finished: Finished) -> None:
        self._in_flight = False
        if finished.error is not None:
            self._failed(finished.error)
        elif isinstance(finished.result, Observation):
            self._observed(finished.result)
        elif isinstance(finished.result, tuple):
            self._accounted(finished.result)

    def step(self) -> bool:
        changed = self._finish_ending()
        now = self._desk.clock.monotonic()
        if self._in_flight or self._due_in(now) > 0:
            return changed
        if self._doubtful and self._may_query():
            self._ask_accounting()
        elif self._has_reason() and self._interval_left(now) <= 0 and self._may_query():
            self._look()
        return changed

    def due_in(self) -> float | None:
        now = self._desk.clock.monotonic()
        if self._ending:
            grace = EVENTS_GRACE_S[self._kind]
            first = min(since for _, since in self._ending.values())
            return max(0.0, first + grace - now)
        if self._in_flight or not self._has_reason():
            return None
        return max(self._due_in(now), self._interval_left(now), 0.05)

    def _due_in(self, now: float) -> float:
        return self.breaker.due_in(now)

    def _interval_left(self, now: float) -> float:
        return self._observed_at + self._desk.site.budgets.query_interval_s - now

    def _has_reason(self) -> bool:
        # An open breaker needs sound answers to close, whether or not a job is left to look for.
        outage = self.breaker.open_since is not None
        return self._wanted or outage or bool(self._desk.store.allocations.not_ended())

    def _may_query(self) -> bool:
        wall = self._desk.clock.now()
        spent = self._desk.store.spendings.within("query", 60.0, wall)
        return spent < max(1.0, self._desk.site.budgets.queries_per_minute)

    def _look(self) -> None:
        self._start("observe", self._desk.batch.observe)

    def _ask_accounting(self) -> None:
        rows = [self._desk.store.allocations.get(tag) for tag in sorted(self._doubtful)]
        self._doubtful.clear()
        jobs = [row.job_id for row in rows if row.job_id is not None]
        tags = [row.tag for row in rows]
        self._start("accounting", lambda: self._desk.batch.ended(jobs, tags))

    def _start(self, name: str, work: Work) -> None:
        self._in_flight = True
        self._wanted = False
        self._desk.store.spendings.add("query", self._desk.clock.now())
        deadline = 2 * self._desk.site.budgets.command_timeout_s
        self._desk.effects.start(name, work, lane="batch", deadline_s=deadline)

    def submission_failed(self, error: Exception) -> None:
        """A submission or cancellation had no sound answer: count it as an unsound look."""
        self._failed(error)

    def _failed(self, error: Exception) -> None:
        desk = self._desk
        self.breaker.failed(desk.clock.monotonic(), desk.clock.now())
        self._doubtful.clear()
        what = f"the batch system does not answer soundly: {error}"
        desk.problems.report("batch", what, _CURE)
        if not isinstance(error, BatchUnavailable):
            log.error("Unexpected failure of a scheduler query. error=%r", error)

    def _observed(self, observation: Observation) -> None:
        desk = self._desk
        now = desk.clock.monotonic()
        self._observed_at = now
        rows = desk.store.allocations.not_ended()
        known = [self._known(row) for row in rows]
        if reconcile.is_suspiciously_empty(known, observation.jobs):
            self._failed(BatchUnavailable("it lists no job although ours were there"))
        else:
            self.breaker.answered()
            desk.problems.clear("batch")
        prefix = tag_prefix(desk.spool_id)
        ours = frozenset(job.name for job in observation.jobs if job.name.startswith(prefix))
        desk.other_jobs = reconcile.count_others(observation.jobs, ours)
        for item in known:
            self._reconcile(item, observation.jobs, now)
        desk.plan_wanted = True

    def _reconcile(self, known: Known, jobs: tuple[ObservedJob, ...], now: float) -> None:
        job = reconcile.find_job(known, jobs)
        finding: Finding | None
        if job is not None:
            self._unseen.pop(known.tag, None)
            finding = reconcile.judge_listed(known, job)
        else:
            apart = self._desk.site.budgets.query_interval_s * 0.9
            unseen = reconcile.look_again(self._unseen.get(known.tag), now, apart)
            self._unseen[known.tag] = unseen
            finding = reconcile.judge_unlisted(known, unseen, now, self._grace_s())
        self._follow(known, finding, now)

    def _follow(self, known: Known, finding: Finding | None, now: float) -> None:
        journal = self._desk.journal
        if isinstance(finding, Listed):
            self._record_listed(known, finding)
        elif isinstance(finding, Gone):
            self._ending.setdefault(finding.tag, (finding, now))
        elif isinstance(finding, Absent):
            log.warning("A submission never arrived. tag=%s", finding.tag)
            journal.record("submit_failed", {"tag": finding.tag, "reason": "it never arrived"})
            self._forget(finding.tag)
        elif isinstance(finding, Doubtful):
            self._record_unknown(known)
            if self._desk.batch.capabilities.accounting:
                self._doubtful.add(finding.tag)

    def _record_listed(self, known: Known, finding: Listed) -> None:
        journal = self._desk.journal
        if known.job_id != finding.job_id:
            journal.record("submitted", {"tag": finding.tag, "job_id": finding.job_id})
        if finding.state is not known.state:
            fields = {
                "tag": finding.tag,
                "state": finding.state.value,
                "reason": finding.reason,
            }
            journal.record("observed", fields)
            log.info(
                "Allocation is %s. tag=%s job=%s was=%s",
                finding.state.value,
                finding.tag,
                finding.job_id,
                known.state.value,
            )

    def _record_unknown(self, known: Known) -> None:
        if known.state in (AllocationState.QUEUED, AllocationState.HELD, AllocationState.RUNNING):
            fields = {"tag": known.tag, "state": "unknown", "reason": "not listed"}
            self._desk.journal.record("observed", fields)

    def _accounted(self, answers: tuple[ObservedJob, ...]) -> None:
        now = self._desk.clock.monotonic()
        self.breaker.answered()
        for row in self._desk.store.allocations.not_ended():
            known = self._known(row)
            job = reconcile.find_job(known, answers)
            if job is None:
                continue
            if job.state is JobState.ENDED:
                finding: Finding | None = reconcile.gone(known, job, "accounting")
            else:
                self._unseen.pop(row.tag, None)
                finding = reconcile.judge_listed(known, job)
            self._follow(known, finding, now)

    def _finish_ending(self) -> bool:
        done = False
        for tag, (gone, since) in list(self._ending.items()):
            row = self._desk.store.allocations.get(tag)
            if row.state is AllocationState.ENDED:
                self._forget(tag)
            elif self._has_said_all(row, since):
                self._end(row, gone)
                done = True
        return done

    def _has_said_all(self, row: AllocationRow, since: float) -> bool:
        if row.runner == "ended" and not self._misses_events(row.tag):
            return True
        never_ran = not row.runner and row.started_at is None
        grace = 0.0 if never_ran else EVENTS_GRACE_S[self._kind]
        return self._desk.clock.monotonic() - since >= grace

    def _misses_events(self, tag: Tag) -> bool:
        prefix = f"allocations/{tag}/"
        return any(
            name.startswith(prefix) and writer_of(name)
            for name, _ in self._desk.store.positions.incomplete()
        )

    def _end(self, row: AllocationRow, gone: Gone) -> None:
        said_all = row.runner == "ended"
        self._desk.journal.record(
            "allocation_ended",
            {
                "tag": row.tag,
                "witness": gone.witness,
                "reason": gone.reason,
                "blame": gone.blame.value,
                "returns": said_all,
            },
        )
        self._desk.orders.forget(row.tag)
        self._forget(row.tag)
        self._weigh(row, gone)
        self._desk.plan_wanted = True
        log.info(
            "Allocation has ended. tag=%s job=%s witness=%s reason=%s",
            row.tag,
            row.job_id,
            gone.witness,
            gone.reason,
        )

    def _weigh(self, row: AllocationRow, gone: Gone) -> None:
        """Allocations that end before their runner speaks must not be followed by more at once."""
        desk = self._desk
        if row.runner:
            self.duds.succeeded()
            desk.problems.clear("runner")
        elif row.cancel == 0:
            self.duds.failed(desk.clock.monotonic())
            what = f"allocation {row.tag} ended before its runner started: {gone.reason}"
            cure = f"look at {desk.spool.allocation(row.tag).output}"
            desk.problems.report("runner", what, cure)

    def _forget(self, tag: Tag) -> None:
        self._unseen.pop(tag, None)
        self._ending.pop(tag, None)
        self._doubtful.discard(tag)
        self._desk.heard.pop(tag, None)

    def _grace_s(self) -> float:
        interval = self._desk.site.budgets.query_interval_s
        return max(GRACE_MIN_S[self._kind], GRACE_INTERVALS * interval)

    def _known(self, row: AllocationRow) -> Known:
        return Known(
            tag=row.tag,
            state=row.state,
            job_id=None if row.job_id is None else JobId(row.job_id),
            runner=row.runner,
            cancelled=row.cancel > 0,
            in_hand=row.tag in self._desk.submitting,
        )
