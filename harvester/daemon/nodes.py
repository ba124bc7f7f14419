"""What the index tells about nodes: whom to charge, which to do without, what people are told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from harvester.daemon.desk import Desk
from harvester.model import Attempt, AttemptState, Blame, Tag
from harvester.planning.nodes import EVIDENCE_S, BadNode, NodeEnd, NodeRecord, record_of

# Of failures, and of successes: two bounded look-ups by an index.
ENDS_SEEN = 1000
NODES_SHOWN = 5
_CURE = (
    "tell the centre; each is tried again when its time is up, and counts as sound with a success"
)


def record(desk: Desk) -> NodeRecord:
    """The nodes' record of the last day."""
    now = desk.clock.now()
    ends = desk.store.attempts.node_ends(now - EVIDENCE_S, ENDS_SEEN)
    runs = desk.store.attempts.node_runs(ENDS_SEEN) if ends else ()
    return record_of(ends, runs, now)


def charge(ended: Attempt, known: Callable[[], NodeRecord]) -> Attempt:
    """The attempt as it is to be judged: what its runner blames on the point may be the node's."""
    if ended.state is not AttemptState.FAILED or ended.blame is not Blame.POINT:
        return ended
    if not ended.node or "," in ended.node or ended.started_at is None or ended.ended_at is None:
        return ended
    end = NodeEnd(
        node=ended.node,
        tag=ended.tag,
        task=ended.task,
        point=ended.point,
        blame=ended.blame,
        duration_s=ended.ended_at - ended.started_at,
        ended_at=ended.ended_at,
    )
    if known().charged_to(end) is Blame.POINT:
        return ended
    reason = f"charged to node {ended.node}, where payloads die that run elsewhere: {ended.reason}"
    return replace(ended, blame=Blame.NODE, reason=reason)


def has_one_node(desk: Desk, tag: Tag | None) -> bool:
    """Whether an attempt that stays in this allocation stays on its node."""
    return tag is not None and desk.store.allocations.get(tag).nodes == 1


def quarantined_tags(desk: Desk) -> frozenset[Tag]:
    """Allocations that hold a bad node; keeps one problem for people while there are bad nodes."""
    found = record(desk).quarantined(desk.clock.now())
    if found:
        desk.problems.report("nodes", _sentence(found), _CURE, since=found[0].since)
    else:
        desk.problems.clear("nodes")
    return frozenset(tag for bad in found for tag in bad.tags)


def _sentence(found: tuple[BadNode, ...]) -> str:
    shown = ", ".join(
        f"{bad.node} ({bad.points} points, until {_instant(bad.until)})"
        for bad in found[:NODES_SHOWN]
    )
    more = f" and {len(found) - NODES_SHOWN} more" if len(found) > NODES_SHOWN else ""
    return f"nodes on which payloads die that run elsewhere are left alone: {shown}{more}"


def _instant(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%d %b %H:%M UTC")
