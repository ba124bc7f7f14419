"""The index: what the daemon knows, in SQLite on a local disk; the logs can rebuild it."""

from harvester.store.index import Store

__all__ = ["Store"]
