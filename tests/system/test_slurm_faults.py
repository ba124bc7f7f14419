"""The executor of commands, and the Slurm adapter's while they hang."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from harvester.batch import commands
from harvester.batch.commands import run_command
from harvester.batch.port import BatchJob
from harvester.batch.slurm import Slurm
from harvester.errors import BatchUnavailable
from harvester.model import JobId, Tag
from tests.fakes.cluster import FakeCluster
from tests.support import wait_until

TAG = Tag("habcde-aaaaaa")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[FakeCluster]:
    with FakeCluster(tmp_path / "cluster") as cluster:
        yield cluster


def slurm(cluster: FakeCluster, timeout_s: float = 30.0) -> Slurm:
    return Slurm(timeout_s=timeout_s, environment=cluster.environment(os.environ))


def submit(batch: Slurm, directory: Path) -> JobId:
    job = BatchJob(tag=TAG, nodes=1, walltime_s=60.0, directory=directory, command=("sleep", "60"))
    script = directory / "batch.sh"
    script.write_text(batch.render(job))
    return batch.submit(job, script)


ASKED: dict[str, Callable[[Slurm], object]] = {
    "squeue": lambda batch: batch.observe(),
    "sacct": lambda batch: batch.ended([JobId("1")], []),
    "scancel": lambda batch: batch.cancel([JobId("1")]),
}


@pytest.mark.parametrize("command", ["squeue", "sacct", "scancel"])
def test_command_that_hangs_is_given_up_and_killed(
    cluster: FakeCluster, tmp_path: Path, command: str
) -> None:
    submit(slurm(cluster), tmp_path)
    cluster.fault(**{command: "hang"})

    with pytest.raises(BatchUnavailable, match=r"did not answer within 0\.5 s"):
        ASKED[command](slurm(cluster, 0.5))

    left = [p for p in psutil.process_iter(["cmdline"]) if _is_fake(p, cluster, command)]
    assert left == []


# --- the executor ---


def run(line: str, timeout_s: float = 60.0) -> commands.Completed:
    return run_command(["sh", "-c", line], timeout_s=timeout_s, environment=dict(os.environ))


def test_output_and_exit_code_come_back() -> None:
    done = run("echo out; echo err >&2; exit 3")
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 3)


def test_deadline_kills_the_whole_process_group(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    for timeout_s in (0.5, 5.0, 50.0):  # a busy machine starts nothing in the first
        with pytest.raises(BatchUnavailable, match="did not answer"):
            run(f"sleep 600 & echo $! $$ > {pids}; wait", timeout_s)
        if pids.exists() and pids.read_text():
            break
    for pid in map(int, pids.read_text().split()):
        wait_until(lambda pid=pid: not psutil.pid_exists(pid))  # type: ignore[misc]


def test_background_process_that_keeps_the_pipes_open_delays_nobody() -> None:
    done = run("sleep 1000 & echo $!")
    sleeper = psutil.Process(int(done.stdout))
    assert sleeper.is_running()
    sleeper.kill()


def test_last_words_of_a_command_that_ends_just_when_it_is_looked_at_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    class SpeaksWhenLookedAt(subprocess.Popen[bytes]):
        def poll(self) -> int | None:
            if self.returncode is None:
                fifo.write_text("go\n")
                self.wait()
            return super().poll()

    monkeypatch.setattr(subprocess, "Popen", SpeaksWhenLookedAt)
    assert run(f"read go <{fifo}; echo 4711").stdout == "4711\n"


@pytest.mark.fault("scheduler answers wrongly")
def test_runaway_output_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "OUTPUT_LIMIT_BYTES", 1_000_000)
    with pytest.raises(BatchUnavailable, match="more than 1000000 bytes"):
        run("yes")


def test_output_that_is_not_text_is_kept_readable() -> None:
    assert run(r"printf 'a\377b'").stdout == "a\\xffb"


def test_every_command_is_logged_with_duration_and_exit(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "harvester.batch.commands"):
        run("exit 3")
    assert "exit=3 duration_s=" in caplog.text
    assert "command=sh -c 'exit 3'" in caplog.text


def _is_fake(process: psutil.Process, cluster: FakeCluster, command: str) -> bool:
    words = process.info["cmdline"] or []
    return str(cluster.directory) in words and command in words
