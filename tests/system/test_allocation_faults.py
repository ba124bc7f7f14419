"""A whole allocation on nodes with something wrong: their disks, clocks and kernels' limits."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from payload_runner.protocol import CheckpointRule, Shape
from tests.frozen_disk import FrozenDisk
from tests.hand_allocation import OK, PLAN, Allocation
from tests.node_agent import ROOT
from tests.support import wait_until

WHOLE_NODE = Shape(gpus_per_node=2)
Make = Callable[..., Allocation]
# A clock that is off, for whatever is started with this in LD_PRELOAD.
CLOCK = """
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static long off(void) { const char *s = getenv("CLOCK_OFF_S"); return s ? atol(s) : 0; }
int clock_gettime(clockid_t id, struct timespec *t) {
    int r = syscall(SYS_clock_gettime, id, t);
    if (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE) t->tv_sec += off();
    return r;
}
int gettimeofday(struct timeval *t, void *z) {
    int r = syscall(SYS_gettimeofday, t, z);
    t->tv_sec += off();
    return r;
}
time_t time(time_t *t) {
    struct timespec s;
    clock_gettime(CLOCK_REALTIME, &s);
    if (t) *t = s.tv_sec;
    return s.tv_sec;
}
"""
# Starts both agents as a launcher does; the clock of the second is off.
LAUNCHER = """
PMI_RANK=0 "$@" &
PMI_RANK=1 LD_PRELOAD="$CLOCK" CLOCK_OFF_S="$OFF" "$@" &
wait
"""
# Saves a checkpoint, reports, and tells the time and how much of it is left.
TELLING = textwrap.dedent(
    """
    import json, os, time
    import client
    client.report(1, 0.5)
    open("saved.part", "w").write("state")
    os.replace("saved.part", "saved")
    client.checkpoint("saved")
    told = f"{time.time():.0f} {client.time_left():.0f}"
    json.dump({"loss": 0.5, "message": told}, open("output.json", "w"))
    """
)


def _telling(train: Path) -> str:
    """The command that runs TELLING, written to ``train``."""
    words = (f"PYTHONPATH={ROOT}/payload_runner", sys.executable, "-S", str(train))
    return shlex.join(["env", *words])


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Allocation] = []

    def build(root: Path | None = None, **changes: Any) -> Allocation:
        made.append(Allocation(root or tmp_path, replace(PLAN, **changes)))
        return made[-1]

    yield build
    for allocation in made:
        allocation.kill_all()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FrozenDisk]:
    with contextlib.closing(FrozenDisk(tmp_path / "shared")) as made:
        yield made


@pytest.mark.fault("shared file system stalled")
@pytest.mark.parametrize(
    ("transport", "seconds"),
    [
        ("auto", 4),
        pytest.param("auto", 60, marks=pytest.mark.slow),
        pytest.param("files", 60, marks=pytest.mark.slow),
    ],
)
def test_stalled_file_system_costs_nothing_but_time(
    tmp_path: Path, disk: FrozenDisk, make: Make, transport: str, seconds: int
) -> None:
    local = tmp_path / "local"
    local.mkdir()
    allocation = make(disk.root, transport=transport, node_local_dir=str(local))
    wait = f"touch at-work; until [ -e {local}/go-on ]; do sleep 0.05; done; "
    allocation.define(wait + OK, shape=WHOLE_NODE)
    allocation.order(1, 2, 3, 4)
    allocation.tell("close")
    leader = allocation.start()
    wait_until(lambda: len(list(local.rglob("at-work"))) == 2)
    with disk.frozen():
        # Two end and two more could begin while nothing can be written.
        (local / "go-on").touch()
        stall = time.monotonic() + seconds
        wait_until(lambda: time.monotonic() > stall, seconds + 60)
    assert leader.wait(120) == 0
    assert allocation.states() == dict.fromkeys("1234", "succeeded")
    assert allocation.of("node_lost") == []
    assert len(allocation.of("attempt_started")) == 4


@pytest.mark.fault("clock off on a node")
@pytest.mark.parametrize("transport", ["tcp", "files"])
@pytest.mark.parametrize("off_s", [3600, -3600])
def test_node_whose_clock_is_off_works_like_the_others(
    tmp_path: Path, make: Make, transport: str, off_s: int
) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler to build another clock with")
    source, clock = tmp_path / "clock.c", tmp_path / "clock.so"
    source.write_text(CLOCK)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", clock, source], check=True)
    train = tmp_path / "train.py"
    train.write_text(TELLING)
    allocation = make(transport=transport, launcher=("/bin/sh", "-c", LAUNCHER, "sh"))
    allocation.define(
        _telling(train),
        shape=WHOLE_NODE,
        checkpoint=CheckpointRule(("saved",), interval_s=600.0),
    )
    allocation.order(1, 2)
    allocation.tell("close")
    began = time.time()
    assert allocation.start(CLOCK=str(clock), OFF=str(off_s)).wait(120) == 0
    ended = allocation.of("attempt_ended")
    assert {item["state"] for item in ended} == {"succeeded"}, ended
    assert allocation.of("node_lost") == []
    told = sorted(tuple(map(int, item["message"].split())) for item in ended)
    clocks, left = zip(*told, strict=True)
    # One of them was off by an hour, and both know how much time they have.
    assert abs(clocks[1] - clocks[0] - 3600) < 300, (clocks, began)
    assert all(0 < seconds <= PLAN.walltime_s for seconds in left), left
    assert len(allocation.of("reports")) == 2


@pytest.mark.fault("inotify missing or full")
def test_kernel_that_has_no_inotify_left_costs_only_speed(tmp_path: Path, make: Make) -> None:
    # In a user namespace of its own the limit concerns nobody else.
    without = ("unshare", "--user", "--map-root-user", "/bin/sh", "-c")
    limit = 'echo 0 > /proc/sys/user/max_inotify_instances && exec "$0" "$@"'
    tried = subprocess.run([*without, limit, "true"], capture_output=True, text=True)
    if tried.returncode != 0:
        pytest.skip(f"no limit of our own on inotify: {tried.stderr.strip()}")
    train = tmp_path / "train.py"
    train.write_text(TELLING + f"\nwhile not os.path.exists('{tmp_path}/go-on'): time.sleep(0.05)")
    allocation = make()
    allocation.python = (*without, limit, sys.executable)
    allocation.define(
        _telling(train),
        checkpoint=CheckpointRule(("saved",), interval_s=600.0),
    )
    leader = allocation.start()
    wait_until(lambda: allocation.of("allocation_started"))
    allocation.order(1)
    # Reports, the hint that a checkpoint is whole, and orders are all found by looking.
    wait_until(lambda: allocation.of("reports") and allocation.of("checkpoint"))
    (tmp_path / "go-on").touch()
    allocation.tell("close")
    assert leader.wait(60) == 0
    assert allocation.states() == {"1": "succeeded"}
