"""What holds for every test."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.faults import NAMES

# A busy machine is no fault of the code: an example may take as long as it takes.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# Floors whose tests run programs that are not ours (mpiexec, sshd, batch systems, ...) in real
# time. Unit tests and simulations are deterministic and get no second try.
_REAL = {Path(__file__).parent / floor for floor in ("contract", "system", "live")}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests with real processes a second try, which the summary shows.

    Raises:
        pytest.UsageError: a test names a fault that ``tests.faults`` does not have.
    """
    for item in items:
        unknown = {mark.args[0] for mark in item.iter_markers("fault")} - NAMES
        if unknown:
            raise pytest.UsageError(f"{item.nodeid}: no such fault in tests/faults.py: {unknown}")
        if not _REAL.isdisjoint(item.path.parents):
            item.add_marker(pytest.mark.flaky(reruns=1))
