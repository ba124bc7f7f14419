"""The one way by which anything becomes true: ledger or order log, sync, then the index."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from harvester import recover
from harvester.errors import StorageUnavailable
from harvester.fold.logs import apply_ledger_records, apply_order_records
from harvester.spool.ledger import Ledger, LedgerNumber
from harvester.spool.orderlog import OrderLogs, order_log_name
from harvester.store import Store
from payload_runner.logfile import Fields


class Journal:
    """Couples the logs that we write with the index."""

    def __init__(
        self, ledger: Ledger, orders: OrderLogs, store: Store, sources: recover.Sources
    ) -> None:
        self._ledger = ledger
        self._orders = orders
        self._store = store
        self._sources = sources
        self._behind = False
        self._urgent = True

    def record(self, kind: str, fields: Fields) -> None:
        """Buffer a ledger record; true only after ``commit``. Raises RecordTooLarge."""
        self._ledger.append(kind, fields)
        self._urgent = True

    def record_read(self, log_name: str, to: int) -> None:
        """Note that a log was applied up to an offset; goes out with the next record.

        Alone it is not worth a sync: without it a rebuild applies that stretch a little later.
        """
        self._ledger.append("read", {"log": log_name, "to": to})

    def commit(self) -> bool:
        """Make what is buffered durable, then true; False if there was nothing.

        Raises:
            StorageUnavailable: nothing is lost; what was to follow must not be done now.
        """
        if self._behind:
            recover.catch_up(self._sources, self._store)
            self._behind = False
        if not self._urgent:
            return False
        records = self._ledger.commit()
        self._urgent = False
        if not records:
            return False
        with self._reread_on_failure():
            apply_ledger_records(self._store, self._ledger.name, records, self._ledger.size)
            rolled = self._ledger.roll()
            if rolled is not None:
                apply_ledger_records(self._store, *rolled)
                self._urgent = True  # its successor's first record
        return True

    @property
    def ledger_number(self) -> LedgerNumber:
        """Epoch and part of the ledger that is written now."""
        return self._ledger.number

    def commit_orders(self) -> bool:
        """Make orders durable, then true; False if there were none. Raises as ``commit``."""
        done = False
        for tag, records, size in self._orders.commit():
            name = order_log_name(tag, self._orders.epoch)
            with self._reread_on_failure():
                apply_order_records(self._store, name, records, size)
            self.record_read(name, size)
            done = True
        return done

    def close(self) -> None:
        """Commit and close the logs, for a clean exit. Raises StorageUnavailable."""
        self.commit_orders()
        self._orders.close()
        self._urgent = True
        self.commit()
        self._ledger.close()

    def close_logs(self) -> None:
        """Make durable and close what was written, leaving the index as it is.

        Raises:
            StorageUnavailable: some of it could not be written.
        """
        self._orders.close()
        self._ledger.commit()
        self._ledger.close()

    @contextlib.contextmanager
    def _reread_on_failure(self) -> Iterator[None]:
        try:
            yield
        except StorageUnavailable:
            # Durable but not in the index: the next commit reads it back from the logs.
            self._behind = True
            raise
