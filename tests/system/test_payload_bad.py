"""Payloads that misbehave: the point fails with the true reason, and the node goes on."""

from __future__ import annotations

import re
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from payload_runner.placement import Slot
from tests.node_agent import GOOD, AgentProcess, make_plan, processes_of


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    with AgentProcess(tmp_path_factory.mktemp("agent")) as running:
        yield running


@pytest.fixture
def attempt(request: pytest.FixtureRequest) -> str:
    """An attempt id of the test's own."""
    return f"1.{zlib.crc32(request.node.name.encode())}.1.1"


@pytest.mark.fault("result wrong or missing")
@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("head -c 100 /dev/urandom > output.json", "output.json is not JSON"),
        (f"{GOOD}; exit 3", "exit code 3"),
        ("echo boom >&2; exit 1", "exit code 1; stderr ends: boom"),
        ("true", "output.json was not written"),
        ("""echo '{"loss": "abc"}' > output.json""", 'loss is "abc", not a number'),
        ("""echo '{"loss": NaN}' > output.json""", "loss is nan, not finite"),
        ("""echo '{"loss": Infinity}' > output.json""", "loss is inf, not finite"),
        ("""echo '{"status": 1, "loss": 1}' > output.json""", "status is 1, not 0"),
        ("mkfifo output.json", "cannot be read: it is a FIFO, not a plain file"),
        ("ln -s /dev/zero output.json", "it is a link to /dev/zero, not a plain file"),
        ("ln -s nowhere output.json", "it is a link to nowhere, not a plain file"),
        ("""echo '{"loss": 1}' > ../loss.json; ln -s ../loss.json output.json""", "leaves the"),
        ("truncate -s 3G output.json", "output.json is larger than"),
        ("mkdir output.json", "output.json cannot be read: Is a directory"),
        ("./missing.sh", "exit code 127 (command not found)"),
        ("kill -SEGV $$", "killed by SIGSEGV"),
        ("kill -KILL $$", "killed by SIGKILL, not by the harvester"),
        ("chmod 0 . ; exit 4", "exit code 4"),
        ("rm -rf $PWD; exit 5", "exit code 5"),
    ],
)
def test_point_fails_with_the_true_reason(
    agent: AgentProcess, attempt: str, command: str, reason: str
) -> None:
    ended = agent.run(command, attempt)
    assert (ended.state, ended.blame) == ("failed", "point")
    assert ended.reason is not None
    assert any(words in ended.reason for words in reason.split("|")), ended.reason


def test_a_result_may_be_a_link_to_a_file_of_its_own(agent: AgentProcess, attempt: str) -> None:
    command = """mkdir out; echo '{"loss": 2}' > out/r.json; ln -s out/r.json output.json"""
    assert agent.run(command, attempt).loss == 2.0


@pytest.mark.fault("hostile")
def test_metadata_is_never_read_from_elsewhere(
    agent: AgentProcess, attempt: str, tmp_path: Path
) -> None:
    """The user's own files are not the payload's to publish."""
    (tmp_path / "token.json").write_text('{"token": "secret"}')
    ended = agent.run(
        f"ln -s {tmp_path}/token.json meta.json; {GOOD}", attempt, meta_name="meta.json"
    )
    assert (ended.state, ended.metadata) == ("succeeded", None)


@pytest.mark.fault("hostile")
def test_the_stop_file_is_never_written_elsewhere(
    agent: AgentProcess, attempt: str, tmp_path: Path
) -> None:
    agent.start(f"ln -s {tmp_path}/STOP .harvester-stop; sleep 60", attempt, kill_s=0.3)
    agent.wait_for("attempt_started", attempt)
    workdirs = agent.spool.work
    agent.wait_while_listening(
        lambda: [d for d in workdirs.glob(f"*/{attempt}") if (d / ".harvester-stop").is_symlink()]
    )
    agent.drain(2.0)
    agent.outcome(attempt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("process group left")
def test_children_that_outlive_the_payload_are_killed(agent: AgentProcess, attempt: str) -> None:
    # In its group, in a session of its own, and as a daemon twice forked.
    ended = agent.run(
        f"sleep 1000 & setsid sleep 1000 & (setsid sh -c 'sleep 1000 & sleep 1000' &) ; {GOOD}",
        attempt,
    )
    assert ended.state == "succeeded"
    assert processes_of(attempt) == []


# The child leads a group of its own and answers the warning for its parent; another one stays.
REGROUPED = """
import os, signal, sys, time
if os.fork():
    os.wait()
    sys.exit()
os.setpgid(0, 0)
if not os.fork():
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)
def warned(*_):
    with open("output.json", "w") as output:
        output.write('{"loss": 0.25}')
    os._exit(0)
signal.signal(signal.SIGUSR2, warned)
open("ready", "w").close()
time.sleep(1000)
"""


@pytest.mark.fault("process group left")
def test_process_in_a_group_of_its_own_is_warned_and_ended(tmp_path: Path, attempt: str) -> None:
    with AgentProcess(tmp_path) as agent:
        item = agent.add_input("regroup.py", REGROUPED.encode())
        agent.start("python3 -S regroup.py", attempt, files=(item,), warn_s=20.0)
        agent.wait_while_listening(lambda: any(agent.spool.work.glob(f"*/{attempt}/ready")))
        agent.drain(100.0)
        ended = agent.outcome(attempt)
    assert (ended.state, ended.loss) == ("succeeded", 0.25)
    assert processes_of(attempt) == []


@pytest.mark.fault("process group left")
def test_child_that_keeps_stdout_open_does_not_hold_up_the_end(
    agent: AgentProcess, attempt: str
) -> None:
    assert agent.run(f"(setsid sleep 1000 &); {GOOD}", attempt).state == "succeeded"


@pytest.mark.fault("deaf to signals")
def test_payload_that_ignores_sigterm_is_killed(agent: AgentProcess, attempt: str) -> None:
    agent.start("trap '' TERM; echo up; while :; do sleep 0.1; done", attempt, kill_s=0.3)
    agent.wait_for("attempt_started", attempt)
    agent.stop(attempt, "pruned")
    ended = agent.outcome(attempt)
    assert (ended.state, ended.signal, ended.reason) == ("pruned", 9, "asked to")
    assert processes_of(attempt) == []


@pytest.mark.fault("output flooded")
def test_flood_on_stdout_is_bounded_and_its_ends_are_kept(
    agent: AgentProcess, attempt: str
) -> None:
    ended = agent.run(
        "echo first; head -c 200000000 /dev/zero | tr '\\0' x; echo; echo last; exit 1", attempt
    )
    assert ended.stdout is not None
    assert len(ended.stdout) <= 16 * 1024
    assert ended.stdout.startswith("first\n")
    assert ended.stdout.endswith("last\n")
    with open(f"/proc/{agent.process.pid}/status") as status:
        (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status.read())
    assert int(peak) < 64 * 1024


@pytest.mark.fault("output flooded")
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_floods_of_a_gigabyte_leave_their_ends_and_little_memory(
    agent: AgentProcess, attempt: str
) -> None:
    flood = "echo first; head -c 1000000000 /dev/zero | tr '\\0' x; echo; echo last; exit 1"
    both = [agent.start(flood, f"{attempt}{number}") for number in (1, 2)]
    for name in both:
        ended = agent.outcome(name, timeout=600)
        assert ended.stdout is not None
        assert ended.stdout.startswith("first\n")
        assert ended.stdout.endswith("last\n")
        assert len(ended.stdout) <= 16 * 1024
    with open(f"/proc/{agent.process.pid}/status") as status:
        (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status.read())
    assert int(peak) < 64 * 1024


@pytest.mark.fault("output flooded")
def test_flood_does_not_keep_others_waiting(agent: AgentProcess, attempt: str) -> None:
    agent.start("yes", f"{attempt}f")
    agent.wait_for("attempt_started", f"{attempt}f")
    assert agent.run(GOOD, attempt).state == "succeeded"
    assert agent.told("attempt_ended", f"{attempt}f") == []
    agent.stop(f"{attempt}f")
    agent.outcome(f"{attempt}f")


@pytest.mark.fault("time or memory limit passed")
def test_time_limit_blames_the_point(agent: AgentProcess, attempt: str) -> None:
    ended = agent.run("sleep 100", attempt, time_limit_s=0.2, warn_s=0.1)
    reason = "ran longer than its limit of 0.2 s"
    assert (ended.state, ended.blame, ended.reason) == ("timed_out", "point", reason)


@pytest.mark.fault("time or memory limit passed")
def test_memory_limit_holds_for_the_whole_tree(agent: AgentProcess, attempt: str) -> None:
    hog = "import time; x = bytearray(60_000_000); time.sleep(60)"
    command = f"""for n in 1 2 3; do python3 -S -c '{hog}' & done; wait"""
    slot = Slot(node=0, hosts=("node0",), memory_mb=150)
    ended = agent.run(command, attempt, slot=slot)
    assert (ended.state, ended.blame) == ("failed", "point")
    assert re.fullmatch(r"used \d+ MB of memory, its limit is 150 MB", ended.reason or "")
    assert processes_of(attempt) == []


@pytest.mark.fault("definition or order wrong")
def test_segment_name_with_shell_words_is_refused(agent: AgentProcess, attempt: str) -> None:
    ended = agent.run("echo %SEGMENT_NAME", attempt, segment="a;touch /tmp/x")
    assert (ended.state, ended.blame) == ("failed", "point")
    assert "only letters, digits and ._- are allowed" in str(ended.reason)


@pytest.mark.fault("definition or order wrong")
def test_start_that_is_not_there_is_refused_by_name(agent: AgentProcess, attempt: str) -> None:
    from payload_runner.protocol import Shape

    ended = agent.run(GOOD, attempt, shape=Shape(start="ssh"))
    assert (ended.state, ended.blame) == ("failed", "site")
    assert "shape.start is 'ssh'" in str(ended.reason)


@pytest.mark.fault("definition or order wrong")
def test_input_that_was_tampered_with_blames_the_site(agent: AgentProcess, attempt: str) -> None:
    item = agent.add_input("train.py", b"print('good')")
    agent.spool.input(item.sha256).write_bytes(b"print('evil')")
    ended = agent.run(GOOD, attempt, files=(item,))
    assert (ended.state, ended.blame) == ("failed", "site")
    assert "is not what" in str(ended.reason)


@pytest.mark.fault("disk full on a node")
def test_full_disk_of_others_blames_the_node_and_own_use_the_point(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a small tmpfs: {mounted.stderr.decode().strip()}")
    try:
        with AgentProcess(tmp_path, make_plan(node_local_dir=str(disk))) as agent:
            own = agent.run("head -c 20000000 /dev/zero > big || exit 1", "1.1.1.1")
            assert (own.state, own.blame) == ("failed", "point")
            assert "the payload filled its disk" in str(own.reason)
            (disk / "others").write_bytes(b"x" * 7_400_000)
            other = agent.run("head -c 2000000 /dev/zero > big || exit 1", "1.2.1.1")
            assert (other.state, other.blame) == ("failed", "node")
            assert "disk of the working directory is full" in str(other.reason)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_working_directories_do_not_pile_up(agent: AgentProcess, attempt: str) -> None:
    agent.run("truncate -s 1M big; exit 1", attempt)
    agent.wait_while_listening(lambda: list(agent.spool.work.glob(f"*/{attempt}")) == [])
