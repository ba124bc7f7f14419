"""The fenced lease: one driver at a time, whatever crashes, stalls or is started twice."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from harvester.clock import FakeClock
from harvester.errors import Fenced
from harvester.lease import PERIOD_S, Holder, Lease, Process
from payload_runner.files import RealFiles
from payload_runner.protocol import SpoolPaths


def _never_dead(holder: Holder) -> bool:
    del holder
    return False


@dataclass
class Ground:
    """A spool that several drivers fight over."""

    root: Path
    clock: FakeClock = field(default_factory=FakeClock)

    def __post_init__(self) -> None:
        self.spool = SpoolPaths(self.root / "spool")
        RealFiles().make_dir(self.spool.leases)

    def lease(self, name: str, pid: int = 1, *, dead: bool = False) -> Lease:
        """A driver on host ``name`` with a state directory of its own."""
        state = self.root / f"state-{name}"
        RealFiles().make_dir(state)
        return Lease(
            RealFiles(),
            self.spool,
            state,
            self.clock,
            state_id=name,
            process=Process(name, pid, f"boot:{pid}", "boot"),
            is_dead=(lambda holder: True) if dead else _never_dead,
        )

    def content(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.spool.lease.read_text())
        return found


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(tmp_path)


def test_the_first_driver_takes_epoch_1_at_once(ground: Ground) -> None:
    lease = ground.lease("login1", pid=42)
    assert lease.acquire() == 0.0
    assert lease.epoch == 1
    assert lease.holder.startswith("login1 (pid 42, since ")


@pytest.mark.fault("two daemons")
def test_a_second_driver_is_refused_with_the_name_of_the_first(ground: Ground) -> None:
    first, second = ground.lease("login1", pid=42), ground.lease("login2")
    first.acquire()
    assert second.acquire() == PERIOD_S
    ground.clock.advance(PERIOD_S / 2)
    first.renew()
    with pytest.raises(Fenced, match=r"login1 \(pid 42"):
        second.acquire()


def test_a_dead_drivers_lease_expires_after_one_period_of_the_observers_clock(
    ground: Ground,
) -> None:
    ground.lease("login1").acquire()
    second = ground.lease("login2")
    assert second.acquire() == PERIOD_S
    ground.clock.advance(PERIOD_S - 1)
    assert second.acquire() == pytest.approx(1)
    ground.clock.advance(1)
    assert second.acquire() == 0.0
    assert second.epoch == 2


def test_a_driver_known_to_be_dead_is_not_waited_for(ground: Ground) -> None:
    ground.lease("login1").acquire()
    second = ground.lease("login1", pid=2, dead=True)
    assert second.acquire() == 0.0
    assert second.epoch == 2


def test_cron_runs_remember_since_when_the_counter_stands_still(ground: Ground) -> None:
    ground.lease("login1").acquire()
    ground.lease("login2").acquire()
    ground.clock.advance(300)
    assert ground.lease("login2").acquire() == 0.0


def test_an_observation_of_another_boot_does_not_count(ground: Ground) -> None:
    ground.lease("login1").acquire()
    ground.lease("login2").acquire()
    path = ground.root / "state-login2" / "observation.json"
    stale = json.loads(path.read_text())
    stale["boot"] = "an older boot"
    path.write_text(json.dumps(stale))
    ground.clock.advance(300)
    assert ground.lease("login2").acquire() == PERIOD_S


@pytest.mark.fault("daemon paused")
def test_a_driver_that_slept_through_its_lease_is_fenced_for_good(ground: Ground) -> None:
    first, second = ground.lease("login1"), ground.lease("login2")
    first.acquire()
    second.acquire()
    ground.clock.advance(PERIOD_S)
    second.acquire()
    with pytest.raises(Fenced):
        first.check()
    with pytest.raises(Fenced, match="epoch 2"):
        first.renew()
    assert ground.content()["epoch"] == 2


@pytest.mark.fault("daemon paused")
def test_a_driver_stopped_for_a_period_may_act_only_after_renewing(ground: Ground) -> None:
    lease = ground.lease("login1")
    lease.acquire()
    lease.check()
    ground.clock.advance(PERIOD_S)
    with pytest.raises(Fenced, match="not renewed"):
        lease.check()
    lease.renew()
    lease.check()


@pytest.mark.fault("two daemons")
def test_a_newer_claim_fences_before_lease_json_tells(ground: Ground) -> None:
    lease = ground.lease("login1")
    lease.acquire()
    ground.spool.epoch_claim(2).touch()
    with pytest.raises(Fenced, match="successor"):
        lease.check()


def test_renewing_is_cheap_until_it_is_due(ground: Ground) -> None:
    lease = ground.lease("login1")
    lease.acquire()
    before = ground.content()["counter"]
    lease.renew()
    assert ground.content()["counter"] == before
    ground.clock.advance(lease.renew_due_in())
    lease.renew()
    assert ground.content()["counter"] == 2


def test_after_a_clean_exit_the_same_state_directory_goes_on_with_its_epoch(
    ground: Ground,
) -> None:
    for expected in (False, True, True):
        lease = ground.lease("login1")
        assert lease.acquire() == 0.0
        assert (lease.epoch, lease.continued) == (1, expected)
        lease.release()
    claims = [path.name for path in (ground.root / "state-login1").glob("turn.*")]
    assert claims == ["turn.1.2"]  # a day of cron runs leaves one file, not 288


def test_after_a_clean_exit_another_state_directory_takes_a_new_epoch_at_once(
    ground: Ground,
) -> None:
    first = ground.lease("login1")
    first.acquire()
    first.release()
    second = ground.lease("login2")
    assert second.acquire() == 0.0
    assert second.epoch == 2


@pytest.mark.fault("two daemons")
def test_two_runs_that_continue_one_epoch_at_once_do_not_both_get_it(ground: Ground) -> None:
    first = ground.lease("login1")
    first.acquire()
    first.release()
    stale = ground.spool.lease.read_bytes()
    ground.lease("login1", pid=2).acquire()
    ground.spool.lease.write_bytes(stale)  # what a slower run had read before
    assert ground.lease("login1", pid=3).acquire() > 0.0


def test_a_claimed_turn_whose_process_died_ends_in_a_new_epoch(ground: Ground) -> None:
    first = ground.lease("login1")
    first.acquire()
    first.release()
    (ground.root / "state-login1" / "turn.1.1").touch()
    second = ground.lease("login1")
    assert second.acquire() == PERIOD_S
    ground.clock.advance(PERIOD_S)
    assert second.acquire() == 0.0
    assert second.epoch == 2


def test_a_claimed_epoch_without_lease_json_ends_in_the_next_one(ground: Ground) -> None:
    ground.spool.epoch_claim(1).touch()
    lease = ground.lease("login1")
    assert lease.acquire() == PERIOD_S
    ground.clock.advance(PERIOD_S)
    assert lease.acquire() == 0.0
    assert lease.epoch == 2


def test_nothing_is_driven_without_a_lease(ground: Ground) -> None:
    lease = ground.lease("login1")
    with pytest.raises(Fenced, match="no lease"):
        lease.check()
    with pytest.raises(Fenced, match="no lease"):
        _ = lease.epoch
