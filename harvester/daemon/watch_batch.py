"""The step that looks at the batch system, within its budget, and settles which jobs have ended."""

from __future__ import annotations

import logging
import math

from harvester.batch.port import JobState, Observation, ObservedJob
from harvester.daemon import reconcile
from harvester.daemon.budgets import Backoff, Breaker
from harvester.daemon.desk import Desk
from harvester.daemon.reconcile import Absent, Doubtful, Finding, Gone, Known, Listed, Unseen
from harvester.effects import Finished, Work
from harvester.errors import BatchUnavailable
from harvester.ids import tag_prefix
from harvester.model import AllocationState, AttemptState, Blame, JobId, Tag
from harvester.spool.intake import writer_of
from harvester.store.allocations import AllocationRow

log = logging.getLogger(__name__)

# After the end of a job without its runner's last word, events may still become visible.
EVENTS_GRACE_S = {"local": 2.0, "shared": 45.0}
# Without accounting, a job that is not listed for this many query intervals has ended.
GRACE_INTERVALS = 5.0
GRACE_MIN_S = {"local": 10.0, "shared": 600.0}
BUDGET_PAUSE_S = 5.0  # until looking again whether the queries of the last minute allow one
_CURE = "see whether the scheduler's commands work here; nothing is submitted until they do"


class WatchBatch:
    """Observes the batch system and reconciles the allocations with what it says."""

    effects = ("observe", "accounting")
    budget_pause_s = BUDGET_PAUSE_S

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        budgets = desk.site.budgets
        self.breaker = Breaker(Backoff(desk.rng, base_s=budgets.query_interval_s, ceiling_s=3600.0))
        self.duds = Backoff(desk.rng, base_s=budgets.query_interval_s, ceiling_s=3600.0)
        self._observed_at = float("-inf")
        self._in_flight = False
        self._doubtful: set[Tag] = set()
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

    def settles_in(self) -> float | None:
        """Seconds until the first job that is on its way out counts as ended; None without one."""
        said = [row.end_said_at or 0.0 for row in self._ending()]
        if not said:
            return None
        return max(0.05, min(said) + EVENTS_GRACE_S[self._kind] - self._desk.clock.now())

    def take(self, finished: Finished) -> None:
        self._in_flight = False
        if finished.error is not None:
            self._failed(finished.error)
        elif isinstance(finished.result, Observation):
            self.spend(finished.result.extra_commands)
            self._observed(finished.result)
        elif isinstance(finished.result, tuple):
            self._accounted(finished.result)

    def step(self) -> bool:
        changed = self._finish_ending()
        now = self._desk.clock.monotonic()
        if self._in_flight or self._due_in(now) > 0:
            return changed
        if self._doubtful and self.may_query(self._accounting_commands()):
            self._ask_accounting()
        elif self._has_reason() and self._interval_left(now) <= 0 and self._may_look():
            self._look()
        return changed

    def due_in(self) -> float | None:
        now = self._desk.clock.monotonic()
        settles = self.settles_in()
        if settles is not None:
            return settles
        if self._in_flight or not self._has_reason():
            return None
        if not self._may_look():
            return BUDGET_PAUSE_S
        return max(self._due_in(now), self._interval_left(now), 0.05)

    def _due_in(self, now: float) -> float:
        return self.breaker.due_in(now)

    def _interval_left(self, now: float) -> float:
        return self._observed_at + self._desk.site.budgets.query_interval_s - now

    def _has_reason(self) -> bool:
        # An open breaker needs sound answers to close, whether or not a job is left to look for.
        outage = self.breaker.open_since is not None
        return self._wanted or outage or bool(self._desk.store.allocations.not_ended())

    def _may_look(self) -> bool:
        if self._desk.windows_wanted and self.is_fresh:
            return False  # the question before a submission goes first
        return self.may_query(self._desk.batch.capabilities.look_commands)

    def may_query(self, commands: int) -> bool:
        """Whether the budget allows so many queries now."""
        # What costs more than a minute's budget has to wait for longer than a minute.
        budget = self._desk.site.budgets.queries_per_minute
        window_s = 60.0 * max(1.0, commands / budget)
        spent = self._desk.store.spendings.within("query", window_s, self._desk.clock.now())
        return spent + commands <= max(commands, budget)

    def _look(self) -> None:
        commands = self._desk.batch.capabilities.look_commands
        self._start("observe", self._desk.batch.observe, commands)

    def _ask_accounting(self) -> None:
        """By job ids; for the sake of one query a time, jobs without one are asked for later."""
        commands = self._accounting_commands()
        jobs = self._doubtful_jobs()
        asked = list(jobs) or sorted(self._doubtful)
        if not jobs and self._desk.batch.capabilities.name_commands:
            asked = asked[:1]
        self._doubtful.difference_update(asked)
        ids, tags = list(jobs.values()), [] if jobs else asked
        self._start("accounting", lambda: self._desk.batch.ended(ids, tags), commands)

    def _doubtful_jobs(self) -> dict[Tag, JobId]:
        rows = (self._desk.store.allocations.get(tag) for tag in sorted(self._doubtful))
        return {row.tag: row.job_id for row in rows if row.job_id is not None}

    def _accounting_commands(self) -> int:
        """How many the next question to accounting takes: one, or those for one name."""
        by_name = 0 if self._doubtful_jobs() else self._desk.batch.capabilities.name_commands
        return max(1, by_name)

    def _start(self, name: str, work: Work, commands: int) -> None:
        self._in_flight = True
        self._wanted = False
        self.spend(commands)
        deadline = 2 * self._desk.site.budgets.command_timeout_s
        self._desk.effects.start(name, work, lane="batch", deadline_s=deadline)

    def spend(self, queries: int) -> None:
        """Charge queries to the budget."""
        for _ in range(queries):
            self._desk.store.spendings.add("query", self._desk.clock.now())

    def doubt(self) -> None:
        """Look again before anything is submitted."""
        self.breaker.doubted()
        self.want_look()

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
        self._observed_at = desk.clock.monotonic()
        rows = desk.store.allocations.not_ended()
        known = [self._known(row) for row in rows]
        if reconcile.is_suspiciously_empty(known, observation.jobs):
            self._failed(BatchUnavailable("it lists no job although ours were there"))
        else:
            self.breaker.answered()
            desk.problems.clear("batch")
        prefix = tag_prefix(desk.spool_id)
        named = [job for job in observation.jobs if job.name.startswith(prefix)]
        orphans = [job for job in named if self._is_orphan(job)]
        self._tell_of(orphans)
        # What is listed of an allocation that we hold for ended, or cancel, takes its place still.
        ours = frozenset(row.tag for row in rows if row.cancel == 0)
        desk.waiting_for = reconcile.pending_reasons(observation.jobs)
        desk.other_jobs = reconcile.count_others(observation.jobs, ours)
        desk.looked_at = desk.clock.now()
        desk.project_jobs = reconcile.count_others(observation.of_project, ours)
        for row, item in zip(rows, known, strict=True):
            self._reconcile(row, item, observation.jobs)
        desk.plan_wanted = True

    def _is_orphan(self, job: ObservedJob) -> bool:
        """Whether it bears a tag of this spool that our ledger does not know."""
        known = self._desk.store.allocations.state(Tag(job.name))
        return job.state is not JobState.ENDED and known is None

    def _tell_of(self, orphans: list[ObservedJob]) -> None:
        """Orphans are never cancelled: whoever lost the ledger may still have it elsewhere."""
        self._desk.orphans = len(orphans)
        if not orphans:
            self._desk.problems.clear("orphans")
            return
        jobs = ", ".join(f"{job.job_id} ({job.name})" for job in orphans)
        what = f"jobs of this spool that the state directory does not know: {jobs}"
        cure = "bring the lost state directory back, or cancel them; they count as jobs in flight"
        self._desk.problems.report("orphans", what, cure)

    def _reconcile(self, row: AllocationRow, known: Known, jobs: tuple[ObservedJob, ...]) -> None:
        job = reconcile.find_job(known, jobs)
        if job is not None:
            self._follow(known, reconcile.judge_listed(known, job))
        elif row.state is not AllocationState.PLANNED and not known.in_hand:
            unseen = self._count_unseen(row)
            now = self._desk.clock.now()
            self._follow(known, reconcile.judge_unlisted(known, unseen, now, self._grace_s()))

    def _quiet_s(self, tag: Tag) -> float:
        heard = self._desk.heard.get(tag)
        return math.inf if heard is None else self._desk.clock.monotonic() - heard.monotonic

    def _count_unseen(self, row: AllocationRow) -> Unseen:
        """Looks are counted in the ledger: a run from cron sees one of them only."""
        before = None
        if row.unseen_since is not None and row.unseen_last is not None:
            before = Unseen(row.unseen_since, row.unseen, row.unseen_last)
        apart = self._desk.site.budgets.query_interval_s * 0.9
        unseen = reconcile.look_again(before, self._desk.clock.now(), apart)
        if unseen != before:
            self._desk.journal.record("unseen", {"tag": row.tag})
        return unseen

    def _follow(self, known: Known, finding: Finding | None) -> None:
        journal = self._desk.journal
        if isinstance(finding, Listed):
            self._record_listed(known, finding)
        elif isinstance(finding, Gone):
            self._record_ending(finding)
        elif isinstance(finding, Absent):
            log.warning("A submission never arrived. tag=%s", finding.tag)
            journal.record("submit_failed", {"tag": finding.tag, "reason": "it never arrived"})
            self._desk.orders.forget(finding.tag)
            self._forget(finding.tag)
        elif isinstance(finding, Doubtful):
            self._record_unknown(known)
            if self._desk.batch.capabilities.accounting:
                self._doubtful.add(finding.tag)

    def _record_ending(self, gone: Gone) -> None:
        if self._desk.store.allocations.get(gone.tag).end_witness is None:
            fields = {
                "tag": gone.tag,
                "witness": gone.witness,
                "reason": gone.reason,
                "blame": gone.blame.value,
            }
            self._desk.journal.record("ending", fields)

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
        self.breaker.answered()
        for row in self._desk.store.allocations.not_ended():
            known = self._known(row)
            job = reconcile.find_job(known, answers)
            if job is None:
                continue
            if job.state is JobState.ENDED:
                self._follow(known, reconcile.gone(known, job, "accounting"))
            else:
                self._follow(known, reconcile.judge_listed(known, job))

    def _ending(self) -> list[AllocationRow]:
        rows = self._desk.store.allocations.not_ended()
        return [row for row in rows if row.end_witness is not None]

    def _finish_ending(self) -> bool:
        ready = [row for row in self._ending() if self._has_said_all(row)]
        for row in ready:
            self._end(row)
        return bool(ready)

    def _has_said_all(self, row: AllocationRow) -> bool:
        if row.runner == "ended" and not self._misses_events(row.tag):
            return True
        never_ran = not row.runner and row.started_at is None
        grace = 0.0 if never_ran else EVENTS_GRACE_S[self._kind]
        waited = self._desk.clock.now() - (row.end_said_at or 0.0)
        # A clock that was set back must not make us wait for it.
        return waited >= grace or waited < 0

    def _misses_events(self, tag: Tag) -> bool:
        prefix = f"allocations/{tag}/"
        return any(
            name.startswith(prefix) and writer_of(name)
            for name, _ in self._desk.store.positions.incomplete()
        )

    def _end(self, row: AllocationRow) -> None:
        # Neither a runner that said good-bye nor one that never was can have started them.
        returns = row.runner == "ended" or (not row.runner and row.started_at is None)
        blame = reconcile.blame_for_lost(Blame(row.end_blame or Blame.SITE), row.remaining_s)
        self._desk.journal.record(
            "allocation_ended",
            {
                "tag": row.tag,
                "witness": row.end_witness,
                "reason": row.end_reason,
                "blame": blame.value,
                "returns": returns,
            },
        )
        self._desk.orders.forget(row.tag)
        self._forget(row.tag)
        self._weigh(row)
        self._desk.plan_wanted = True
        log.info(
            "Allocation has ended. tag=%s job=%s witness=%s reason=%s",
            row.tag,
            row.job_id,
            row.end_witness,
            row.end_reason,
        )

    def _weigh(self, row: AllocationRow) -> None:
        """Allocations that end without having run anything must not be followed by more at once.

        Whatever the cause (a dead runner, orders that always come back), it must not become a
        flood of jobs. One that we closed or cancelled, or that found no work left, says nothing
        either way.
        """
        desk = self._desk
        if desk.store.attempts.ran_in(row.tag):
            self.duds.succeeded()
            desk.problems.clear("runner")
        elif row.cancel == 0 and not row.closing and not row.joined and not self._had_no_work(row):
            self.duds.failed(desk.clock.monotonic())
            when = "without starting an evaluation" if row.runner else "before its runner started"
            what = f"allocation {row.tag} ended {when}: {row.end_reason}"
            cure = f"look at {desk.spool.allocation(row.tag).output}"
            desk.problems.report("runner", what, cure)

    def _had_no_work(self, row: AllocationRow) -> bool:
        """Whether its runner left by itself while nothing waited and nothing was given back."""
        return row.runner == "ended" and not any(
            live.state is AttemptState.LEASED or live.tag == row.tag or row.tag in live.returned_by
            for live in self._desk.store.attempts.live()
        )

    def _forget(self, tag: Tag) -> None:
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
            joined=row.joined,
            quiet_s=self._quiet_s(row.tag),
        )
