"""Whom a failure is charged to, by what else ran on the same node, and which nodes to leave alone.

A runner sees one allocation: there a broken node looks like points that fail by themselves. Over
allocations the two can be told apart. A point that fails alike on independent nodes is bad; a node
on which unlike points die quickly, while the same search succeeds elsewhere, is. Pure.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from harvester.model import Blame, PointId, Tag, TaskId

# What ended longer ago says nothing about a node: it may have been mended or exchanged.
EVIDENCE_S = 24 * 3600.0
# So many different points, one after another without a success, condemn a node.
UNLIKE_POINTS = 3
# So many failures of a point on one node may be the node's, where nothing else tells.
DOUBTED_RUNS = 2
# A failure is quick below this, or below this share of what the search's sound runs take.
QUICK_S = 60.0
QUICK_SHARE = 0.2
# After its last failure a node is left alone so long. The evidence outlives that: the first
# failure after it condemns the node again, the first success clears it.
QUARANTINE_S = 6 * 3600.0
# More than so many bad nodes at a time are the site's trouble, and too long a command line.
EXCLUDED_MAX = 32
_NONE: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeEnd:
    """The end of an attempt that had one node to itself or a share of it.

    ``blame`` None: it was sound. Only failures blamed on point or node are evidence.
    """

    node: str
    tag: Tag | None
    task: TaskId
    point: PointId
    blame: Blame | None
    duration_s: float
    ended_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRun:
    """An attempt that runs on one node. Once it lasts longer than what is quick it is a proof."""

    node: str
    tag: Tag | None
    task: TaskId
    point: PointId
    started_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BadNode:
    """A node that is left alone until ``until`` (wall clock)."""

    node: str
    points: int  # that died there since its last success
    since: float
    until: float
    tags: frozenset[Tag]  # allocations that had it


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """What the recent past says about nodes; build it with :func:`record_of`."""

    bad: Mapping[str, BadNode]
    sound: frozenset[str]  # nodes with a success, or a run that is no quick failure any more
    proven: Mapping[TaskId, frozenset[str]]  # task -> nodes that are sound by its runs
    failed_on: Mapping[tuple[TaskId, PointId], Mapping[str, int]]  # node -> how often
    quick_s: Mapping[TaskId, float]  # what counts as quick
    in_use: Mapping[TaskId, frozenset[str]]  # task -> nodes on which it runs now

    def charged_to(self, end: NodeEnd) -> Blame | None:
        """Whom a failure that its runner blames on the point is charged to.

        ``end`` itself is part of the record. A point's first quick failures on a node that nothing
        speaks for are not charged while the search runs elsewhere: a run more is cheaper than a
        good point lost. Where it runs nowhere else there is nothing to compare with.
        """
        if end.blame is not Blame.POINT or end.duration_s >= self.quick_s.get(end.task, QUICK_S):
            return end.blame
        failed_on = self.failed_on.get((end.task, end.point), {})
        if failed_on.keys() - {end.node} - self.bad.keys():
            return Blame.POINT  # alike on independent nodes
        if end.node in self.bad:
            return Blame.NODE
        elsewhere = self.proven.get(end.task, _NONE) | self.in_use.get(end.task, _NONE)
        doubtful = (
            end.node not in self.sound
            and elsewhere - {end.node}
            and failed_on.get(end.node, 0) <= DOUBTED_RUNS
        )
        return Blame.NODE if doubtful else Blame.POINT

    def excluded(self, nodes: int, now: float) -> tuple[str, ...]:
        """Nodes that an allocation of so many nodes should do without, the latest found first.

        None, where so many have not been seen sound: the rest might not make one allocation.
        """
        if nodes > len(self.sound - self.bad.keys()):
            return ()
        found = sorted(self.quarantined(now), key=lambda bad: (-bad.since, bad.node))
        return tuple(bad.node for bad in found[:EXCLUDED_MAX])

    def quarantined(self, now: float) -> tuple[BadNode, ...]:
        """Bad nodes whose time has not run out, by name."""
        return tuple(
            bad
            for _, bad in sorted(self.bad.items())
            # A clock that was set back must not keep them for longer.
            if now < bad.until <= now + QUARANTINE_S
        )


def record_of(ends: Iterable[NodeEnd], runs: Iterable[NodeRun] = (), now: float = 0) -> NodeRecord:
    """The record that these ends and runs make at ``now``, whatever their order."""
    in_use: dict[TaskId, set[str]] = defaultdict(set)
    lasting = []
    for run in runs:
        in_use[run.task].add(run.node)
        if now - run.started_at > QUICK_S:
            lasting.append(_proof(run))
    ordered = sorted([*ends, *lasting], key=lambda end: end.ended_at)
    proven: dict[TaskId, set[str]] = defaultdict(set)
    durations: dict[TaskId, list[float]] = defaultdict(list)
    failed_on: dict[tuple[TaskId, PointId], Counter[str]] = defaultdict(Counter)
    for end in ordered:
        if end.blame is None:
            proven[end.task].add(end.node)
            durations[end.task].append(end.duration_s)
        else:
            failed_on[end.task, end.point][end.node] += 1
    quick_s = {
        task: max(QUICK_S, QUICK_SHARE * sorted(found)[len(found) // 2])
        for task, found in durations.items()
    }
    by_node: dict[str, list[NodeEnd]] = defaultdict(list)
    for end in ordered:
        by_node[end.node].append(end)

    sound = frozenset(node for nodes in proven.values() for node in nodes)

    def speaks_against(end: NodeEnd) -> bool:
        if end.blame is Blame.NODE:
            return True
        return (
            end.duration_s < quick_s.get(end.task, QUICK_S)
            and not (failed_on[end.task, end.point].keys() - {end.node}) & sound
            and bool(proven.get(end.task, set()) - {end.node})
        )

    against = {
        node: [end for end in _since_success(found) if speaks_against(end)]
        for node, found in by_node.items()
    }
    return NodeRecord(
        bad={node: bad for node, found in against.items() if (bad := _condemned(node, found))},
        sound=sound,
        proven={task: frozenset(nodes) for task, nodes in proven.items()},
        failed_on=failed_on,
        quick_s=quick_s,
        in_use={task: frozenset(nodes) for task, nodes in in_use.items()},
    )


def _proof(run: NodeRun) -> NodeEnd:
    """A run that lasts, as a success at the moment from which it was no quick failure any more."""
    return NodeEnd(
        node=run.node,
        tag=run.tag,
        task=run.task,
        point=run.point,
        blame=None,
        duration_s=QUICK_S,
        ended_at=run.started_at + QUICK_S,
    )


def _since_success(ends: Sequence[NodeEnd]) -> Sequence[NodeEnd]:
    """The ends on a node, oldest first, that followed its last success."""
    last = max((n for n, end in enumerate(ends) if end.blame is None), default=-1)
    return ends[last + 1 :]


def _condemned(node: str, against: Sequence[NodeEnd]) -> BadNode | None:
    points = {(end.task, end.point) for end in against}
    if len(points) < UNLIKE_POINTS:
        return None
    return BadNode(
        node=node,
        points=len(points),
        since=against[0].ended_at,
        until=against[-1].ended_at + QUARANTINE_S,
        tags=frozenset(end.tag for end in against if end.tag is not None),
    )
