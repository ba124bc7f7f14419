"""The agent's loop, its background threads and the node's working place."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from payload_runner.commits import Broken, commit, digest, fetch
from payload_runner.loop import Loop
from payload_runner.protocol import InputFile, Order, PayloadSpec, SpoolPaths
from payload_runner.workplace import (
    Workplace,
    read_bounded,
    remove_if_plain,
    remove_tree,
    usage_bytes,
    usual_files,
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def loop(clock: Clock) -> Iterator[Loop]:
    made = Loop(clock)
    yield made
    made.close()


def test_timers_run_in_their_order_when_due(loop: Loop, clock: Clock) -> None:
    ran: list[str] = []
    loop.call_in(2.0, lambda: ran.append("second"))
    loop.call_in(1.0, lambda: ran.append("first"))
    loop.call_in(1.0, lambda: ran.append("first too"))
    loop.turn(0.0)
    assert ran == []
    clock.now += 2.0
    loop.turn(0.0)
    assert ran == ["first", "first too", "second"]


def test_cancelled_timer_does_not_run(loop: Loop, clock: Clock) -> None:
    ran: list[str] = []
    timer = loop.call_in(1.0, lambda: ran.append("no"))
    timer.cancel()
    timer.cancel()
    clock.now += 2.0
    loop.turn(0.0)
    assert ran == []


def test_descriptor_closed_in_the_same_turn_is_not_read(loop: Loop) -> None:
    """And neither is another one that got its number."""
    ends = [os.pipe() for _ in range(2)]
    ran: list[int] = []

    def close_all() -> None:
        for read_end, write_end in ends:
            loop.unwatch(read_end)
            os.close(read_end)
            os.close(write_end)
        ran.append(1)

    for read_end, write_end in ends:
        loop.watch(read_end, close_all)
        os.write(write_end, b"x")
    loop.turn(0.0)
    assert ran == [1]


def test_call_that_fails_does_not_end_the_loop(
    loop: Loop, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[str] = []
    loop.call_in(1.0, lambda: ran.append(str(1 // 0)))
    loop.call_in(1.0, lambda: ran.append("other"))
    clock.now += 1.0
    loop.turn(0.0)
    assert ran == ["other"]
    assert "ZeroDivisionError" in caplog.text


def test_signal_becomes_a_call(loop: Loop) -> None:
    ran: list[str] = []
    loop.on_signal(signal.SIGUSR1, lambda: ran.append("told"))
    os.kill(os.getpid(), signal.SIGUSR1)
    loop.turn(5.0)
    assert ran == ["told"]


def test_background_work_comes_back_in_the_loop(loop: Loop) -> None:
    results: list[object] = []
    threads: list[threading.Thread] = []

    def work() -> str:
        threads.append(threading.current_thread())
        return "done"

    loop.worker.submit(work, results.append)
    loop.worker.submit(lambda: 1 // 0, results.append)
    while not loop.worker.idle:
        loop.turn(5.0)
    assert threads != [threading.main_thread()]
    assert "done" in results
    assert [type(item) for item in results if item != "done"] == [ZeroDivisionError]


# --- the working place ---


@pytest.fixture
def spool(tmp_path: Path) -> SpoolPaths:
    paths = SpoolPaths(tmp_path / "spool")
    paths.inputs.mkdir(parents=True)
    return paths


def add(spool: SpoolPaths, name: str, data: bytes) -> InputFile:
    path = spool.root / "new"
    path.write_bytes(data)
    size, sha256 = digest(path)
    path.rename(spool.input(sha256))
    return InputFile(name, sha256, size)


@pytest.mark.parametrize("node_local", [True, False])
@pytest.mark.parametrize("size", [10, 200_000])
def test_inputs_are_laid_out(
    spool: SpoolPaths, tmp_path: Path, node_local: bool, size: int
) -> None:
    place = Workplace(spool, tmp_path / "disk" / "node", node_local=node_local)
    place.open()
    spec = PayloadSpec("p", "true", files=(add(spool, "a/b.py", b"x" * size),))
    assert not place.has_inputs(spec)
    place.lay_out(Order("1.1.1.1", "1", "1", "p", {"x": 1}), spec)
    workdir = place.directory("1.1.1.1")
    assert place.has_inputs(spec)
    assert (workdir / "a" / "b.py").read_bytes() == b"x" * size
    assert (workdir / "input.json").read_text() == '{"x": 1}'
    assert (workdir / "input_ds.json").read_text() == "[]"
    assert workdir.stat().st_mode & 0o777 == 0o700
    place.close()
    assert not place.root.exists()


def test_node_local_inputs_outlive_the_spools(spool: SpoolPaths, tmp_path: Path) -> None:
    place = Workplace(spool, tmp_path / "node", node_local=True)
    place.open()
    item = add(spool, "big", b"x" * 200_000)
    spec = PayloadSpec("p", "true", files=(item,))
    place.lay_out(Order("1.1.1.1", "1", "1", "p", 1), spec)
    spool.input(item.sha256).unlink()
    place.lay_out(Order("1.2.1.1", "1", "2", "p", 2), spec)
    workdir = place.directory("1.2.1.1")
    assert (workdir / "big").stat().st_size == 200_000


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil", ""])
def test_input_name_stays_inside(spool: SpoolPaths, tmp_path: Path, name: str) -> None:
    place = Workplace(spool, tmp_path / "node", node_local=True)
    place.open()
    spec = PayloadSpec("p", "true", files=(add(spool, name, b"x"),))
    with pytest.raises(Broken, match="leaves the working directory"):
        place.lay_out(Order("1.1.1.1", "1", "1", "p", 1), spec)


def test_directory_of_another_is_never_taken_over(spool: SpoolPaths, tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    with pytest.raises(FileExistsError):
        Workplace(spool, tmp_path / "node", node_local=True).open()


def test_bounded_reading_says_when_there_is_more(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_bounded(path, 5) == b"12345"
    assert read_bounded(path, 3) == b"1234"
    assert read_bounded(tmp_path / "none", 5) is None
    os.mkfifo(tmp_path / "fifo")
    assert read_bounded(tmp_path / "fifo", 5) is None
    path.write_bytes(bytes(range(256)) * 1000)
    assert read_bounded(path, 1_000_000) == path.read_bytes()
    assert read_bounded(path, 100_000) == path.read_bytes()[:100_001]


def test_only_plain_directories_are_removed_at_once(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "a").touch()
    (plain / "link").symlink_to("/etc")
    assert remove_if_plain(plain)
    assert not plain.exists()
    deep = tmp_path / "deep"
    (deep / "sub").mkdir(parents=True)
    assert not remove_if_plain(deep)
    assert (deep / "sub").exists()


def test_files_that_were_likely_and_are_not_there_do_not_keep_a_directory(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "output.json").touch()
    (plain / "more").touch()
    assert remove_if_plain(plain, ["input.json", "output.json"])
    assert not plain.exists()
    odd = tmp_path / "odd"
    (odd / "output.json").mkdir(parents=True)
    assert not remove_if_plain(odd, ["output.json"])


def test_only_files_of_the_directory_itself_are_likely() -> None:
    files = (InputFile("train.py", "0" * 64, 1), InputFile("lib/model.py", "1" * 64, 1))
    spec = PayloadSpec("p", "true", files=files)
    assert usual_files(spec) == ["train.py", "input_ds.json", "input.json", "output.json"]


def test_trees_go_whole_and_links_out_of_them_are_not_followed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    for number in range(10_050):
        (tree / "a" / str(number)).touch()
    (tree / "out").symlink_to(kept)
    remove_tree(tree)
    remove_tree(tree)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (kept / "file").exists()


def test_usage_counts_what_is_on_the_disk(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_bytes(b"x" * 100_000)
    os.truncate(tmp_path / "sub" / "a", 10**9)
    assert 100_000 <= usage_bytes(tmp_path) < 200_000


# --- commits ---


def test_failed_commit_leaves_nothing(spool: SpoolPaths) -> None:
    target = spool.root / "files" / "x"

    def write(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        commit(spool, target, write)
    assert list(target.parent.iterdir()) == []


def test_committed_file_can_be_fetched_whole_only(spool: SpoolPaths, tmp_path: Path) -> None:
    target = spool.root / "files" / "x"
    ref = commit(spool, target, lambda path: _write(path, b"content"))
    assert ref.path == "files/x"
    fetch(target, tmp_path / "copy", ref.size, ref.sha256)
    assert (tmp_path / "copy").read_bytes() == b"content"
    target.write_bytes(b"contenu")
    with pytest.raises(Broken, match="not what was committed"):
        fetch(target, tmp_path / "other", ref.size, ref.sha256)
    assert not (tmp_path / "other").exists()


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
