"""The transition tables: what may follow what."""

from __future__ import annotations

import pytest

from harvester.errors import IllegalTransition
from harvester.lifecycle import ALLOCATION_STEPS, ATTEMPT_STEPS, step_allocation, step_attempt
from harvester.model import AllocationState, AttemptState


def test_every_state_has_its_row() -> None:
    assert set(ATTEMPT_STEPS) == set(AttemptState)
    assert set(ALLOCATION_STEPS) == set(AllocationState)


def test_a_final_attempt_other_than_lost_never_moves() -> None:
    final = {state for state in AttemptState if state.is_final} - {AttemptState.LOST}
    assert {state for state in AttemptState if not ATTEMPT_STEPS[state]} == final


def test_a_lost_attempt_still_takes_a_late_result() -> None:
    assert step_attempt(AttemptState.LOST, AttemptState.SUCCEEDED) is AttemptState.SUCCEEDED


def test_a_step_to_the_state_that_holds_changes_nothing() -> None:
    assert step_attempt(AttemptState.RUNNING, AttemptState.RUNNING) is None
    assert step_allocation(AllocationState.QUEUED, AllocationState.QUEUED) is None


def test_an_illegal_step_names_both_states_and_the_past() -> None:
    with pytest.raises(IllegalTransition, match=r"succeeded -> running.*attempt 1\.2\.1\.1"):
        step_attempt(AttemptState.SUCCEEDED, AttemptState.RUNNING, "attempt 1.2.1.1")


def test_an_ended_allocation_never_comes_back() -> None:
    assert ALLOCATION_STEPS[AllocationState.ENDED] == frozenset()


@pytest.mark.parametrize("state", [s for s in AllocationState if s.is_live])
def test_every_live_allocation_can_end(state: AllocationState) -> None:
    assert step_allocation(state, AllocationState.ENDED) is AllocationState.ENDED


@pytest.mark.parametrize("state", [s for s in AttemptState if not s.is_final])
def test_every_live_attempt_can_be_lost(state: AttemptState) -> None:
    assert step_attempt(state, AttemptState.LOST) is AttemptState.LOST
