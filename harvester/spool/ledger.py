"""The ledger: what runners do not know, durable before it takes effect (rules 10 and 17).

One file per epoch in the state directory. Kinds, with ``*`` for an intent whose effect follows::

    open {version, epoch, spool_id, by}
    lease_asked* {key, points}       payload PayloadSpec     leased LeasedPoint
    lease_answered {key}             lease_gone {leases}     lease_stop {lease, why}
    planned {tag, queue, nodes, walltime_s, gpus_per_node, why}
    submit_intent* {tag}             submitted {tag, job_id}        submit_failed {tag, reason}
    observed {tag, state, reason}    unseen {tag}    ending {tag, witness, reason, blame}
    cancel_intent* {tags, why}     cancelled {tags}
    allocation_ended {tag, witness, reason, blame, returns}
    judged {attempt, final, summary, next?}   what follows from an attempt's end
    attempt_closed {attempt, state, blame, reason}   an outcome that the harvester decided
    delivering* {attempts}           delivered {receipts: [[attempt, verdict, reason]]}
    uploaded {attempt}
    read {log, to}                   the order of things: that log was applied up to this offset
"""

from __future__ import annotations

import re
from pathlib import Path

from harvester.clock import Clock
from harvester.spool.durable import DurableLog
from harvester.store.positions import Position
from payload_runner.files import Files
from payload_runner.logfile import PROTOCOL_VERSION

_NAME = re.compile(r"ledger\.(\d+)\.log")


def ledger_path(state_dir: Path, epoch: int) -> Path:
    """Where an epoch's ledger lies."""
    return state_dir / f"ledger.{epoch}.log"


def ledger_epochs(files: Files, state_dir: Path) -> tuple[int, ...]:
    """The epochs of the ledgers in a state directory, oldest first."""
    found = (_NAME.fullmatch(name) for name in files.listdir(state_dir))
    return tuple(sorted(int(match[1]) for match in found if match))


def ledgers(files: Files, state_dir: Path) -> tuple[Path, ...]:
    """Every ledger of a state directory, in the order in which they were written."""
    return tuple(ledger_path(state_dir, epoch) for epoch in ledger_epochs(files, state_dir))


def open_ledger(
    files: Files,
    state_dir: Path,
    clock: Clock,
    *,
    epoch: int,
    spool_id: str,
    by: str,
    position: Position,
) -> DurableLog:
    """The ledger of an epoch, created, or continued behind ``position`` if it is there already.

    Raises:
        StorageUnavailable: the state directory refuses.
    """
    path = ledger_path(state_dir, epoch)
    if files.exists(path):
        return DurableLog(
            files, path, clock, last_seq=position.max_seq, continue_at=position.offset
        )
    ledger = DurableLog(files, path, clock)
    ledger.append(
        "open", {"version": PROTOCOL_VERSION, "epoch": epoch, "spool_id": spool_id, "by": by}
    )
    return ledger
