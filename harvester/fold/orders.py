"""What a record of an order log changes in the index."""

from __future__ import annotations

from harvester.model import AttemptId, AttemptState, Tag
from harvester.store import Store
from payload_runner.logfile import Record


def apply_order(store: Store, tag: Tag, record: Record) -> None:
    """Apply one record of an allocation's order log. Repeats and snapshots change nothing."""
    if record.kind == "order":
        attempt = AttemptId(record.fields["attempt"])
        if store.attempts.state(attempt) is AttemptState.LEASED:
            why = f"ordered to {tag}"
            store.attempts.step(attempt, AttemptState.ORDERED, record.at, why, {"tag": tag})
    elif record.kind == "stop":
        store.attempts.change(AttemptId(record.fields["attempt"]), {"stop_ordered": 1})
    elif record.kind == "close":
        store.allocations.change(tag, {"closing": 1})
