"""Why and how an attempt is stopped: its verdict, and when to warn, end and kill it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from payload_runner.outcome import Verdict
from payload_runner.protocol import PayloadSpec

# What is kept back for the last checkpoint and its commit, out of the time that is left.
SAVE_RESERVE_S = 15.0
SAVE_RESERVE_FRACTION = 0.25
_IMPATIENT_KILL_S = 5.0


@dataclass(frozen=True)
class Stop:
    """An order to end an attempt.

    ``warns``: it gets its warning and a last checkpoint; else SIGTERM at once.
    ``remaining_s``: everything is to be committed by then; None: no hurry.
    ``final``: its own success does not count any more.
    """

    verdict: Verdict
    warns: bool = False
    remaining_s: Optional[float] = None
    final: bool = False

    @property
    def saves(self) -> bool:
        """Whether a last checkpoint is of use: somebody is to go on from it."""
        return self.warns


@dataclass(frozen=True)
class Times:
    """Moments on the monotonic clock: SIGTERM and SIGKILL."""

    term_at: float
    kill_at: float

    def sooner(self, other: Times) -> Times:
        """The earlier of both, moment by moment."""
        return Times(min(self.term_at, other.term_at), min(self.kill_at, other.kill_at))


def drained(outcome: str, reason: str, remaining_s: float) -> Stop:
    """The allocation ends: ``timed_out`` by walltime, or ``preempted``."""
    blame = "walltime" if outcome == "timed_out" else "site"
    return Stop(Verdict(outcome, blame, reason), warns=True, remaining_s=remaining_s)


def on_request(outcome: str, reason: str) -> Stop:
    """Pruned or cancelled."""
    return Stop(Verdict(outcome, None, reason))


def taken_back(reason: str) -> Stop:
    """An elastic payload is to leave this node, and goes on elsewhere."""
    return Stop(Verdict("preempted", "site", reason), warns=True)


def over_time(limit_s: float) -> Stop:
    """The attempt ran longer than its task allows."""
    reason = f"ran longer than its limit of {limit_s:g} s"
    return Stop(Verdict("timed_out", "point", reason), warns=True)


def over_memory(used_mb: float, limit_mb: int) -> Stop:
    """The processes of the attempt together hold more memory than it asked for."""
    reason = f"used {used_mb:.0f} MB of memory, its limit is {limit_mb} MB"
    return Stop(Verdict("failed", "point", reason), final=True)


def plan_stop(stop: Stop, spec: PayloadSpec, now: float) -> Times:
    """When to end and to kill, so that what is to be saved is committed in time."""
    if stop.final:
        return Times(now, now)
    if not stop.warns:
        return Times(now, now + min(spec.kill_s, _IMPATIENT_KILL_S))
    if stop.remaining_s is None:
        return Times(now + spec.warn_s, now + spec.warn_s + spec.kill_s)
    reserve_s = min(SAVE_RESERVE_S, stop.remaining_s * SAVE_RESERVE_FRACTION)
    left_s = max(0.0, stop.remaining_s - reserve_s)
    kill_s = min(spec.kill_s, left_s / 2)
    warn_s = min(spec.warn_s, left_s - kill_s)
    return Times(now + warn_s, now + warn_s + kill_s)


def verdict_of(judged: Verdict, stop: Optional[Stop]) -> Verdict:
    """The verdict that counts: a good end during the grace is a success all the same."""
    if stop is None or (judged.succeeded and not stop.final):
        return judged
    return stop.verdict
