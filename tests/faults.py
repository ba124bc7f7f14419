"""The faults that tests bring about; ``@pytest.mark.fault(NAME)`` says which one.

``scripts/faults`` prints a line for each of them, also for those that nothing has tried.
"""

from __future__ import annotations

FAULTS: dict[str, tuple[str, ...]] = {
    "Inside an allocation": (
        "agent killed",
        "leader killed",
        "node lost",
        "launcher broken",
        "MPI job lost",
        "second job of a tag, or requeued",
        "walltime or preemption",
        "shared file system stalled",
        "disk full on a node",
        "clock off on a node",
        "definition or order wrong",
    ),
    "Payloads": (
        "result wrong or missing",
        "output flooded",
        "process group left",
        "deaf to signals",
        "time or memory limit passed",
        "image or runtime broken",
        "hostile",
    ),
    "Watching and checkpoints": (
        "links out, FIFOs, sockets, sparse files",
        "very many files",
        "checkpoint over its limit",
        "files that change while copied",
        "archive torn or tampered with",
        "nothing new to save, old ones to remove",
        "metrics torn or flooded",
        "inotify missing or full",
    ),
    "Login node": (
        "daemon killed",
        "two daemons",
        "daemon paused",
        "index lost or damaged",
        "log torn, zeroed or stale",
        "disk full at the login node",
        "clock set wrong",
        "scheduler away",
        "scheduler answers wrongly",
        "connection to the site cut",
    ),
    "Central service": (
        "service away",
        "token wrong, expired or unsafe",
        "answer lost or repeated",
        "request wrong or too large",
        "content damaged or forged",
    ),
}
NAMES = frozenset(name for names in FAULTS.values() for name in names)
