"""The step that leases points, renews the leases and hears what the service wants stopped."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping

from harvester.central.port import LeaseReply, LeaseRequest, LeaseStanding
from harvester.daemon.budgets import Backoff
from harvester.daemon.desk import Desk
from harvester.effects import Finished
from harvester.errors import CredentialsRefused, HarvesterError
from harvester.model import LeasedPoint, LeaseId, PayloadSpec
from harvester.store.leases import Ask
from payload_runner.logfile import RecordTooLarge
from payload_runner.protocol import to_fields

log = logging.getLogger(__name__)

# How long to wait before asking again when the service had nothing: first, at most.
EMPTY_PAUSE_S = {"local": (0.1, 2.0), "shared": (2.0, 60.0)}
RENEWALS_PER_EXPIRY = 3.0
LEASES_AT_ONCE = 1000  # in one record, which holds 64 KiB
LEASES_SHOWN = 10


class LeasePoints:
    """Asks for as many points as the plan wants; one request at a time, each with its key."""

    effects = ("lease", "renew")

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        base, ceiling = EMPTY_PAUSE_S["local" if desk.is_local else "shared"]
        self._empty = Backoff(desk.rng, base_s=base, ceiling_s=ceiling)
        self._failed = Backoff(desk.rng, base_s=1.0, ceiling_s=300.0)
        self._asking: Ask | None = None
        # How long the lease lives that ends first, from the last renewal or its grant.
        self._expiry_s = desk.store.leases.shortest_expiry_s()
        self._taken_expiry_s = math.inf  # the like of those granted since the last renewal began
        self._renewing = False
        self._renewed_at = float("-inf")
        self._deliveries_told = 0
        self._asked_after = 0
        self._nothing_after: int | None = None  # deliveries told when it had nothing more
        self.wanted = 0
        self.unleased = 0

    @property
    def nothing_more(self) -> bool:
        """Whether the service, asked after our last delivery, had nothing more."""
        return self._nothing_after == self._deliveries_told

    def delivered(self) -> None:
        """Results were told: the service may have new points because of them."""
        self._deliveries_told += 1
        self._empty.succeeded()

    def take(self, finished: Finished) -> None:
        ask = None
        if finished.name == "renew":
            self._renewing = False
        else:
            ask, self._asking = self._asking, None
        if finished.error is not None:
            self._take_error(finished.error)
            return
        self._desk.problems.clear("central")
        self._failed.succeeded()
        if isinstance(finished.result, LeaseReply) and ask is not None:
            self._take_points(ask, finished.result)
        elif isinstance(finished.result, LeaseStanding):
            self._take_standing(finished.result)

    def step(self) -> bool:
        now = self._desk.clock.monotonic()
        if self._failed.due_in(now) > 0:
            return False
        changed = False
        if not self._renewing and self._renewal_left(now) <= 0:
            changed = self._renew()
        if self._asking is None and self._empty.due_in(now) <= 0:
            self._ask()
        return changed

    def due_in(self) -> float | None:
        now = self._desk.clock.monotonic()
        waits = [self._renewal_left(now)] if not self._renewing else []
        if self._asking is None and self.wanted > 0:
            waits.append(self._empty.due_in(now))
        if not waits:
            return None
        return max(min(waits), self._failed.due_in(now), 0.01)

    def _renewal_left(self, now: float) -> float:
        if self._expiry_s is None:
            return 3600.0
        return self._renewed_at + self._expiry_s / RENEWALS_PER_EXPIRY - now

    def _renew(self) -> bool:
        desk = self._desk
        leases = desk.store.leases.to_renew()
        self._expiry_s = desk.store.leases.shortest_expiry_s()
        self._taken_expiry_s = math.inf
        self._renewed_at = desk.clock.monotonic()
        if not leases:
            return False
        self._renewing = True
        desk.effects.start("renew", lambda: desk.central.renew(leases), lane="central")
        return True

    def _ask(self) -> None:
        desk = self._desk
        open_asks = desk.store.leases.open_asks()
        if open_asks:
            # Of a call that failed, came back empty or belongs to an earlier run: whatever points
            # it got come again, and an idle daemon writes nothing.
            ask = Ask(open_asks[0].key, max(open_asks[0].points, self.wanted))
        elif self.wanted > 0 and not desk.stopping:
            ask = self._new_ask(self.wanted)
        else:
            return
        request = LeaseRequest(
            key=ask.key,
            harvester=desk.harvester,
            site=desk.site.name,
            points=ask.points,
            known_payloads=desk.store.leases.known_payloads(),
        )
        self._asking = ask
        self._asked_after = self._deliveries_told
        desk.effects.start("lease", lambda: desk.central.lease(request), lane="central")

    def _new_ask(self, points: int) -> Ask:
        desk = self._desk
        number = desk.store.leases.asked() + 1
        ask = Ask(f"{desk.spool_id}-{desk.lease.epoch}-{number}", points)
        desk.journal.record("lease_asked", {"key": ask.key, "points": ask.points})
        desk.journal.commit()
        return ask

    def _take_error(self, error: Exception) -> None:
        self._failed.failed(self._desk.clock.monotonic())
        report_central(self._desk, error)

    def _take_points(self, ask: Ask, reply: LeaseReply) -> None:
        desk = self._desk
        defined = {spec.payload_id for spec in reply.payloads if self._define(spec)}
        desk.inputs_wanted = desk.inputs_wanted or bool(defined)
        defined.update(desk.store.leases.known_payloads())
        taken = sum(self._take_point(point, defined) for point in reply.points)
        # Nothing for this key although there is something: what it once got has come to its end.
        is_spent = not reply.points and reply.more
        if reply.points or is_spent:
            desk.journal.record("lease_answered", {"key": ask.key})
        self._take_expiries(point.expires_s for point in reply.points)
        known = (self.unleased, self.nothing_more)
        self.unleased = reply.waiting
        has_more = bool(reply.points or reply.more or reply.waiting)
        self._nothing_after = None if has_more else self._asked_after
        if reply.points:
            self.wanted = 0
            self._empty.succeeded()
            log.info("Leased points. points=%s waiting=%s key=%s", taken, reply.waiting, ask.key)
        elif not is_spent:
            self._empty.failed(desk.clock.monotonic())
        # The same nothing as before is no news: an idle daemon asks on and plans nothing.
        news = bool(reply.points) or known != (self.unleased, self.nothing_more)
        desk.plan_wanted = desk.plan_wanted or news

    def _define(self, payload: PayloadSpec) -> bool:
        try:
            self._desk.journal.record("payload", to_fields(payload))
        except RecordTooLarge as error:
            what = f"payload {payload.payload_id} is too large to be ordered: {error}"
            cure = "submit the search again with fewer or shorter file names and a shorter command"
            self._desk.problems.report("payload", what, cure)
            return False
        return True

    def _take_point(self, point: LeasedPoint, defined: set[str]) -> bool:
        if point.payload_id not in defined:
            what = (
                f"lease {point.lease} names payload {point.payload_id}, which is not defined here"
            )
            self._desk.problems.report("payload.undefined", what, "see the service's log")
            return False
        fields = {name: getattr(point, name) for name in LeasedPoint.__dataclass_fields__}
        before = self._desk.store.attempts.saved_before(point.task, point.point)
        if before is not None:
            fields.update(resumed_from=before[0], checkpoint=to_fields(before[1]))
        try:
            self._desk.journal.record("leased", fields)
        except RecordTooLarge as error:
            # Its own failure, told as such: unheard of, the point would be leased again for ever.
            reason = f"the point's parameters are too large to be ordered: {error}"
            log.warning("Refuse a point. lease=%s reason=%s", point.lease, error)
            self._desk.journal.record("leased", {**fields, "parameters": None, "refused": reason})
        return True

    def _take_expiries(self, expiries_s: Iterable[float]) -> None:
        """Leases were granted; one that was granted before has only what is left of its time."""
        self._taken_expiry_s = min([self._taken_expiry_s, *expiries_s])
        if self._taken_expiry_s < (math.inf if self._expiry_s is None else self._expiry_s):
            self._expiry_s = self._taken_expiry_s

    def _take_standing(self, standing: LeaseStanding) -> None:
        if standing.expires_s is not None:
            # However short their time was when they were granted, they have all of it now.
            self._expiry_s = min(standing.expires_s, self._taken_expiry_s)
        journal = self._desk.journal
        if standing.gone:
            first = ",".join(standing.gone[:LEASES_SHOWN])
            log.warning("Leases are gone. leases=%s first=%s", len(standing.gone), first)
        for start in range(0, len(standing.gone), LEASES_AT_ONCE):
            some = standing.gone[start : start + LEASES_AT_ONCE]
            journal.record("lease_gone", {"leases": list(some)})
        stop_leases(self._desk, standing.stop)


def stop_leases(desk: Desk, stop: Mapping[LeaseId, str]) -> None:
    """Record which leases the service wants stopped; what follows is the settling step's."""
    for lease, why in stop.items():
        if desk.store.leases.knows(lease) and desk.store.leases.get(lease).stop is None:
            log.info("The service stops a point. lease=%s why=%s", lease, why)
            desk.journal.record("lease_stop", {"lease": lease, "why": why})


def report_central(desk: Desk, error: Exception) -> None:
    """Report that the central service failed us."""
    if not isinstance(error, HarvesterError):
        log.error("Unexpected failure of a call to the central service. error=%r", error)
    cure = (
        "renew the token; results are kept until then"
        if isinstance(error, CredentialsRefused)
        else "see whether the service runs; results are kept until it does"
    )
    desk.problems.report("central", f"the central service: {error}", cure)
