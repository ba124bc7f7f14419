"""Which running points are hopeless: the median rule, pure.

A point is stopped when its best loss so far is worse than the median of the best losses that its
peers had reached by the same step (Golovin et al., Google Vizier, 2017, with the best in place of
the running average, so that a noisy start costs nothing).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

GRACE_REPORTS = 3  # the first epochs rank badly where learning curves cross
PEERS = 5  # a median of fewer says little

Curve = Sequence[tuple[int, float]]  # (step, loss) in the order of the steps


def hopeless_points(curves: Mapping[int, Curve], candidates: Sequence[int]) -> list[int]:
    """Those of the candidate points that the median rule stops, judged at their newest step."""
    return [point for point in candidates if _is_hopeless(point, curves)]


def _is_hopeless(point: int, curves: Mapping[int, Curve]) -> bool:
    own = curves.get(point, ())
    if len(own) <= GRACE_REPORTS:
        return False
    newest = own[-1][0]
    peers = [
        min(loss for step, loss in curve if step <= newest)
        for other, curve in curves.items()
        # A peer counts once it has come as far.
        if other != point and curve and curve[0][0] <= newest <= curve[-1][0]
    ]
    if len(peers) < PEERS:
        return False
    return min(loss for _, loss in own) > statistics.median(peers)
