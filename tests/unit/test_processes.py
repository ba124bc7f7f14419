"""Finding, signalling and measuring processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from payload_runner import processes
from payload_runner.processes import Process
from tests.support import wait_until

SHELL, PROGRAM, HELPER, WORKER = 10, 11, 12, 13
FAMILY = [
    Process(SHELL, 1, SHELL, 1.0),
    Process(PROGRAM, SHELL, SHELL, 100.0),
    Process(HELPER, SHELL, SHELL, 1.0),
    Process(WORKER, PROGRAM, WORKER, 50.0),  # in a session of its own
]
STRANGERS = [Process(1, 0, 1, 5.0), Process(99, 1, 99, 7.0)]


def test_tree_holds_descendants_and_groups() -> None:
    orphan = Process(14, 1, SHELL, 1.0)
    assert {item.pid for item in processes.tree([*STRANGERS, *FAMILY, orphan], [SHELL])} == {
        SHELL,
        PROGRAM,
        HELPER,
        WORKER,
        14,
    }


def test_tree_of_nothing_is_empty() -> None:
    assert processes.tree([*STRANGERS, *FAMILY], []) == []


@pytest.mark.parametrize(
    ("catching", "ended"),
    [
        (set(), [SHELL, PROGRAM, HELPER, WORKER]),
        ({PROGRAM}, [PROGRAM, HELPER, WORKER]),
        ({WORKER}, [HELPER, WORKER]),
        ({SHELL, PROGRAM}, [SHELL, PROGRAM, HELPER, WORKER]),
        ({SHELL}, [SHELL, PROGRAM, HELPER, WORKER]),
    ],
)
def test_who_waits_for_a_handler_is_spared(catching: set[int], ended: list[int]) -> None:
    assert processes.to_end(FAMILY, catching) == ended


def test_memory_is_the_sum_below_the_limit() -> None:
    assert processes.memory_mb(FAMILY, 200.0) == 152.0


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    code = "import signal, time; signal.signal(signal.SIGUSR2, print); print(1, flush=True)"
    with subprocess.Popen(
        [sys.executable, "-S", "-c", f"{code}; x = bytearray(30_000_000); time.sleep(60)"],
        stdout=subprocess.PIPE,
        env={**os.environ, "HARVESTER_ATTEMPT": "7.7.7.7"},
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_handler_of_a_process_is_seen(child: subprocess.Popen[bytes]) -> None:
    assert processes.catches(child.pid, signal.SIGUSR2)
    assert not processes.catches(child.pid, signal.SIGTERM)


def test_gone_process_catches_nothing_and_belongs_to_nobody() -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    assert not processes.catches(gone.pid, signal.SIGTERM)
    assert processes.attempt_of(gone.pid) is None
    processes.send([gone.pid], signal.SIGTERM)
    processes.send_group(gone.pid, signal.SIGTERM)


def test_attempt_is_read_from_the_environment(child: subprocess.Popen[bytes]) -> None:
    assert processes.attempt_of(child.pid) == "7.7.7.7"
    assert processes.attempt_of(1) is None


def test_child_is_listed_with_its_memory(child: subprocess.Popen[bytes]) -> None:
    assert child.pid in processes.children(())
    assert child.pid not in processes.children({child.pid})
    wait_until(lambda: own(child.pid).resident_mb > 30)
    assert own(child.pid).parent == os.getpid()


def test_shared_pages_count_once_where_it_matters(child: subprocess.Popen[bytes]) -> None:
    wait_until(lambda: own(child.pid).resident_mb > 30)
    item = own(child.pid)
    proportional = processes.memory_mb([item], 1.0)
    assert 28.0 < proportional <= item.resident_mb + 1.0


def own(pid: int) -> Process:
    return next(item for item in processes.all_processes() if item.pid == pid)


def test_spawn_gives_directory_environment_and_empty_stdin(
    tmp_path: os.PathLike[str], capfd: pytest.CaptureFixture[str]
) -> None:
    before = os.getcwd()
    pid = processes.spawn(
        ("/bin/sh", "-c", "pwd; echo $WORD; cat; ps -o sid= -p $$ | tr -d ' '"),
        {"WORD": "word", "PATH": os.environ["PATH"]},
        os.fspath(tmp_path),
        1,
        2,
    )
    assert os.waitpid(pid, 0)[1] == 0
    assert capfd.readouterr().out == f"{os.fspath(tmp_path)}\nword\n{pid}\n"
    assert os.getcwd() == before


def test_spawn_pins_the_child_and_not_the_agent(
    tmp_path: os.PathLike[str], capfd: pytest.CaptureFixture[str]
) -> None:
    own_cores = os.sched_getaffinity(0)
    core = max(own_cores)
    command = ("/bin/sh", "-c", "grep Cpus_allowed_list /proc/self/status")
    pid = processes.spawn(command, {}, os.fspath(tmp_path), 1, 2, frozenset({core}))
    assert os.waitpid(pid, 0)[1] == 0
    assert capfd.readouterr().out == f"Cpus_allowed_list:\t{core}\n"
    assert os.sched_getaffinity(0) == own_cores


def test_program_that_is_not_there_is_an_error(tmp_path: os.PathLike[str]) -> None:
    with pytest.raises(FileNotFoundError):
        processes.spawn(("/no/such/program",), {}, os.fspath(tmp_path), 1, 2)
