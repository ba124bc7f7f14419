"""Jobs of the local batch system against rough treatment: signals, kills, requests that race."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import stat
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from harvester.batch.local import LocalBatch
from harvester.batch.port import BatchJob, JobEnd, JobState, ObservedJob
from harvester.errors import BatchUnavailable, SubmissionRefused
from harvester.model import JobId, Tag
from payload_runner.protocol import NodeShape
from tests.support import wait_until

TAG = Tag("habcde-aaaaaa")
NODE = NodeShape(gpus=2, cores=2)


@dataclass
class Bench:
    directory: Path
    batch: LocalBatch

    def job(self, line: str, **fields: object) -> BatchJob:
        """A job of one core whose command is a bash line."""
        job = BatchJob(
            tag=TAG,
            nodes=1,
            walltime_s=60.0,
            directory=self.directory,
            command=("bash", "-c", line),
            cores_per_node=1,
        )
        return replace(job, **fields)  # type: ignore[arg-type]  # named by each test

    def submit(self, line: str, **fields: object) -> JobId:
        job = self.job(line, **fields)
        script = self.directory / "batch.sh"
        script.write_text(self.batch.render(job))
        return self.batch.submit(job, script)

    def seen(self, job: JobId) -> ObservedJob:
        return next(seen for seen in self.batch.observe().jobs if seen.job_id == job)

    def pid(self, name: str = "pid") -> int:
        """What a job wrote to a file with ``echo $$ > NAME``."""
        path = self.directory / name
        return int(wait_until(lambda: path.exists() and path.read_text().strip()))

    def end(self, job: JobId) -> ObservedJob:
        def final() -> list[ObservedJob]:
            return [s for s in self.batch.ended([job], []) if s.state is JobState.ENDED]

        return wait_until(final)[0]

    def server(self) -> psutil.Process:
        """The scheduler process: the one of its command line that leads its own session."""
        found = self._processes()
        pids = {process.pid for process in found}
        return next(process for process in found if process.ppid() not in pids)

    def shepherd(self, job: JobId) -> psutil.Process:
        path = self.directory / "cluster" / "jobs" / f"{job}.status.json"
        return psutil.Process(json.loads(path.read_text())["shepherd"]["pid"])

    def _processes(self) -> list[psutil.Process]:
        wanted = str(self.directory / "cluster")
        return [p for p in psutil.process_iter() if wanted in _arguments(p)]


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def sleepers(shepherd: psutil.Process) -> list[psutil.Process]:
    """Both `sleep` processes of a job, once they are there."""

    def found() -> list[psutil.Process] | None:
        asleep = []
        with contextlib.suppress(psutil.NoSuchProcess):  # short-lived ones come and go
            for process in shepherd.children(recursive=True):
                asleep += [process] if process.name() == "sleep" else []
        return asleep if len(asleep) == 2 else None

    return wait_until(found) or []


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    batch = LocalBatch(tmp_path / "cluster", 2, NODE, 0.5)
    yield Bench(tmp_path, batch)
    batch.shut_down()


# --- what a job is given ---


def test_job_is_told_its_id_nodes_gpus_and_end(bench: Bench) -> None:
    names = "$HARVESTER_LOCAL_JOB_ID $HARVESTER_LOCAL_RESTART $HARVESTER_LOCAL_NODES"
    job = bench.submit(
        f'echo {names} "$CUDA_VISIBLE_DEVICES" $((${{HARVESTER_LOCAL_END%.*}} - $(date +%s)))',
        nodes=2,
        gpus_per_node=2,
    )

    bench.end(job)

    *words, left = (bench.directory / "batch.out").read_text().split()
    assert words == [job, "0", "vnode1,vnode2", "0,1"]
    assert 55 <= int(left) <= 61


def test_job_has_the_submitters_environment(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OF_THE_SUBMITTER", "first\nsecond")

    bench.end(bench.submit('echo "$OF_THE_SUBMITTER"'))

    assert (bench.directory / "batch.out").read_text() == "first\nsecond\n"


def test_job_without_gpus_sees_none(bench: Bench) -> None:
    bench.end(bench.submit('echo "[$CUDA_VISIBLE_DEVICES]"'))
    assert (bench.directory / "batch.out").read_text() == "[]\n"


def test_script_changed_after_submission_does_not_matter(bench: Bench) -> None:
    whole = bench.submit("sleep 60", nodes=2, cores_per_node=2)
    job = bench.submit("echo as submitted")
    (bench.directory / "batch.sh").write_text("echo changed")
    bench.batch.cancel([whole])

    bench.end(job)

    assert (bench.directory / "batch.out").read_text() == "as submitted\n"


def test_job_of_a_missing_directory_fails(bench: Bench) -> None:
    job = bench.submit("true", directory=bench.directory / "nowhere")
    assert bench.end(job).end is JobEnd.FAILED


def test_payload_can_break_a_pipe_as_usual(bench: Bench) -> None:
    # SIGPIPE must not reach the job ignored, as Python has it: `yes | head` would complain.
    bench.end(bench.submit("yes | head -1; echo ${PIPESTATUS[0]}"))
    assert (bench.directory / "batch.out").read_text() == "y\n141\n"


# --- limits ---


# Each line is one write: those of two listeners must not mix.
LISTENER = """
import os, signal, sys, time
def say(number, _):
    os.write(1, f"{sys.argv[1]} {signal.Signals(number).name}\\n".encode())
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, say)
open(sys.argv[1], "w").close()
while True:
    time.sleep(60)
"""


def listener(name: str) -> str:
    """A bash word list: a process that says which signals it hears, and heeds none."""
    return shlex.join([sys.executable, "-c", LISTENER, name])


def heard_by_listeners(bench: Bench, line: str) -> tuple[ObservedJob, list[str]]:
    """What the listeners of a job heard and how it ended.

    A busy machine may not have started them when a short walltime's warning comes: then a longer
    one tells.
    """
    output = bench.directory / "batch.out"
    for walltime_s in (1.5, 6.0, 24.0, 96.0):
        output.unlink(missing_ok=True)
        end = bench.end(bench.submit(line, walltime_s=walltime_s, warn_s=walltime_s / 2))
        if "script SIGUSR1" in (heard := output.read_text().splitlines()):
            break
    return end, heard


@pytest.mark.fault("deaf to signals")
def test_warning_then_sigterm_then_sigkill(bench: Bench) -> None:
    end, heard = heard_by_listeners(bench, f"exec {listener('script')}")

    assert heard == ["script SIGUSR1", "script SIGTERM"]
    assert (end.end, end.reason) == (JobEnd.TIMED_OUT, "killed by signal 9")


def test_only_the_script_itself_is_warned_but_all_are_told_to_end(bench: Bench) -> None:
    # The script begins when the child listens.
    line = f"{listener('child')} & until [ -e child ]; do sleep 0.1; done"
    _, heard = heard_by_listeners(bench, f"rm -f child; {line}; exec {listener('script')}")

    assert heard[0] == "script SIGUSR1"
    assert sorted(heard[1:]) == ["child SIGTERM", "script SIGTERM"]


@pytest.mark.fault("process group left")
@pytest.mark.parametrize("way", ["env -i setsid sleep 61 &", "(setsid sleep 61 &) &"])
def test_no_process_outlives_its_job(bench: Bench, way: str) -> None:
    job = bench.submit(f"{way} echo $$ > pid; exec sleep 60")
    bench.pid()
    below = sleepers(bench.shepherd(job))

    bench.batch.cancel([job])
    bench.end(job)

    assert [process for process in below if not is_gone(process.pid)] == []


def test_what_the_script_leaves_behind_is_ended_before_the_job_counts_as_ended(
    bench: Bench,
) -> None:
    job = bench.submit("(trap '' TERM; echo $BASHPID > pid; setsid sleep 61) & sleep 0.2")

    assert bench.end(job).end is JobEnd.COMPLETED
    assert is_gone(bench.pid())


# --- hold, release, requeue ---


def test_held_job_starts_when_released(bench: Bench) -> None:
    whole = bench.submit("sleep 60", nodes=2, cores_per_node=2)
    job = bench.submit("true")
    bench.batch.hold([job])
    bench.batch.cancel([whole])
    bench.end(whole)
    assert bench.seen(job).state is JobState.HELD

    bench.batch.release([job])

    assert bench.end(job).end is JobEnd.COMPLETED


def test_requeued_job_starts_again_and_knows_it(bench: Bench) -> None:
    job = bench.submit("echo $HARVESTER_LOCAL_RESTART; echo $$ > pid; sleep 60")
    bench.pid()

    bench.batch.requeue([job])
    wait_until(lambda: bench.seen(job).restarts == 1 and bench.seen(job).node_names)
    wait_until(lambda: (bench.directory / "batch.out").read_text() == "0\n1\n")

    bench.batch.cancel([job])
    assert bench.end(job).restarts == 1


def test_running_job_cannot_be_held(bench: Bench) -> None:
    job = bench.submit("echo $$ > pid; sleep 60")
    bench.pid()
    with pytest.raises(SubmissionRefused, match="runs already"):
        bench.batch.hold([job])


# --- kills ---


def test_killed_scheduler_loses_neither_running_nor_queued_jobs(bench: Bench) -> None:
    running = bench.submit("echo $$ > pid; sleep 60", nodes=2, cores_per_node=2)
    queued = bench.submit("true")
    pid = bench.pid()
    bench.server().kill()

    states = {seen.job_id: seen.state for seen in bench.batch.observe().jobs}

    assert states == {running: JobState.RUNNING, queued: JobState.QUEUED}
    assert not is_gone(pid)
    bench.batch.cancel([running])
    assert bench.end(queued).end is JobEnd.COMPLETED
    assert is_gone(pid)


def test_job_that_ends_while_no_scheduler_lives_is_accounted(bench: Bench) -> None:
    job = bench.submit("echo $$ > pid; until [ -e go ]; do sleep 0.02; done; exit 4")
    pid = bench.pid()
    shepherd = bench.shepherd(job)
    bench.server().kill()
    (bench.directory / "go").touch()
    wait_until(lambda: is_gone(pid) and is_gone(shepherd.pid))

    end = bench.end(job)

    assert (end.end, end.reason) == (JobEnd.FAILED, "exit 4")


def test_walltime_is_kept_while_no_scheduler_lives(bench: Bench) -> None:
    job = bench.submit("echo $$ > pid; sleep 60", walltime_s=3.0)
    pid = bench.pid()
    bench.server().kill()
    wait_until(lambda: is_gone(pid))
    assert bench.end(job).end is JobEnd.TIMED_OUT


@pytest.mark.fault("node lost")
def test_killed_shepherd_is_a_failed_node_and_its_job_ends_with_it(bench: Bench) -> None:
    job = bench.submit("env -i setsid sleep 61 & echo $$ > pid; sleep 60")
    bench.pid()
    shepherd = bench.shepherd(job)
    below = sleepers(shepherd)

    shepherd.kill()

    assert bench.end(job).end is JobEnd.NODE_FAILED
    assert [process for process in below if not is_gone(process.pid)] == []


def test_requeueable_job_of_a_killed_shepherd_starts_again(bench: Bench) -> None:
    job = bench.submit("echo $$ > pid; sleep 60", requeue=True)
    bench.pid()

    bench.shepherd(job).kill()

    wait_until(lambda: bench.seen(job).restarts == 1 and bench.seen(job).node_names)


def test_killed_shepherd_and_scheduler_leave_no_process(bench: Bench) -> None:
    job = bench.submit("setsid sleep 61 & echo $$ > pid; sleep 60")
    bench.pid()
    shepherd = bench.shepherd(job)
    below = sleepers(shepherd)
    bench.server().kill()
    shepherd.kill()

    assert bench.end(job).end is JobEnd.NODE_FAILED
    assert [process for process in below if not is_gone(process.pid)] == []


def test_scheduler_leaves_when_idle_and_its_accounting_stays(tmp_path: Path) -> None:
    bench = Bench(tmp_path, LocalBatch(tmp_path / "cluster", 1, NODE, 0.5, idle_s=0.2))
    job = bench.submit("true")
    server = bench.server()
    bench.end(job)

    wait_until(lambda: is_gone(server.pid))

    assert bench.end(job).end is JobEnd.COMPLETED
    assert bench.batch.observe().jobs == ()
    assert bench.batch.ended([], [TAG])[0].job_id == job
    assert bench.submit("true") == JobId("2")  # ids are not used again
    bench.batch.shut_down()


def test_many_clients_at_once_share_one_scheduler(bench: Bench) -> None:
    with ThreadPoolExecutor(8) as pool:
        jobs = list(pool.map(lambda _: bench.submit("true"), range(16)))

    assert sorted(map(int, jobs)) == list(range(1, 17))
    assert {bench.end(job).end for job in jobs} == {JobEnd.COMPLETED}


# --- edges ---


def test_everything_on_disk_is_private(bench: Bench) -> None:
    bench.end(bench.submit("true"))
    bench.submit("echo $$ > pid; sleep 60")
    bench.pid()
    modes = {
        path.name: stat.S_IMODE(path.lstat().st_mode) & 0o077
        for path in [bench.directory / "cluster", *(bench.directory / "cluster").rglob("*")]
        if not path.is_socket()
    }
    assert set(modes.values()) == {0}


def test_directory_open_to_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir(mode=0o755)
    (tmp_path / "cluster").chmod(0o755)
    bench = Bench(tmp_path, LocalBatch(tmp_path / "cluster", 1, NODE))
    with pytest.raises(BatchUnavailable, match="chmod 700"):
        bench.submit("true")


def test_long_directory_name_is_no_obstacle(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    bench = Bench(deep, LocalBatch(deep / "cluster", 1, NODE, 0.5))
    assert bench.end(bench.submit("true")).end is JobEnd.COMPLETED
    bench.batch.shut_down()


def test_directives_are_refused_rather_than_ignored(bench: Bench) -> None:
    with pytest.raises(SubmissionRefused, match="no directives"):
        bench.submit("true", directives=("--exclusive",))


def test_torn_accounting_line_costs_only_itself(bench: Bench) -> None:
    first = bench.submit("true")
    bench.end(first)
    with open(bench.directory / "cluster" / "accounting.log", "ab") as log:
        log.write(b'{"job_id": "7", "na')

    second = bench.submit("true")

    assert (bench.end(first).end, bench.end(second).end) == (JobEnd.COMPLETED, JobEnd.COMPLETED)


def test_shut_down_leaves_no_process(bench: Bench) -> None:
    bench.submit("echo $$ > pid; trap '' TERM; sleep 60")
    pid, server = bench.pid(), bench.server()

    bench.batch.shut_down()

    assert is_gone(pid)
    wait_until(lambda: is_gone(server.pid))


def test_idle_scheduler_uses_no_processor_time(bench: Bench) -> None:
    bench.submit("echo $$ > pid; sleep 60")
    bench.pid()
    server = bench.server()
    before = server.num_ctx_switches().voluntary
    os.kill(bench.pid(), signal.SIGCONT)  # something happens to the job, nothing to the scheduler
    bench.end(bench.submit("true"))
    # A request, a start and an end wake it; a poll would have done so thousands of times.
    assert server.num_ctx_switches().voluntary - before < 200
