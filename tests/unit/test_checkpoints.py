"""Saving and restoring checkpoints, and what archives must never do."""

from __future__ import annotations

import dataclasses
import io
import os
import random
import socket
import tarfile
from pathlib import Path

import pytest

from payload_runner.archives import MAX_FILES
from payload_runner.checkpoints import (
    GIVE_UP_AFTER,
    RETRY_WAITS_S,
    Copy,
    Keeper,
    Refused,
    Taken,
    copy_still,
    restore,
    survey,
)
from payload_runner.commits import Broken, digest
from payload_runner.protocol import CheckpointRule, FileRef, IncarnationPaths, SpoolPaths

RULE = CheckpointRule(("ckpt", "state.bin"))


class Place:
    """A spool and a working directory."""

    def __init__(self, root: Path) -> None:
        self.spool = SpoolPaths(root / "spool")
        self.incarnation = IncarnationPaths(root / "spool" / "allocations" / "t" / "1.0")
        self.work = root / "work"
        self.staging = root / "staging"
        self.work.mkdir(parents=True)

    def keeper(
        self,
        rule: CheckpointRule = RULE,
        limit_bytes: int = 1_000_000,
        copy: Copy = copy_still,
    ) -> Keeper:
        return Keeper(
            "1.1.1.1",
            rule,
            self.work,
            self.staging,
            self.spool,
            self.incarnation,
            limit_bytes=limit_bytes,
            sleep=lambda _: None,
            copy=copy,
        )

    def write(self, name: str, data: bytes) -> Path:
        path = self.work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def committed(self) -> list[str]:
        return sorted(os.listdir(self.incarnation.files)) if self.incarnation.files.exists() else []

    def put_archive(self, data: bytes) -> FileRef:
        """An archive as a stranger made it, with a true commit record."""
        path = self.spool.root / "strange.tar.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        size, sha256 = digest(path)
        return FileRef("strange.tar.gz", size, sha256)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def taken(keeper: Keeper) -> Taken:
    found = keeper.take()
    assert found is not None
    return found


def content(place: Place, ref: FileRef, name: str) -> bytes:
    with tarfile.open(place.spool.committed(ref)) as tar:
        file = tar.extractfile(name)
        assert file is not None
        return file.read()


def files_below(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


# --- saving ---


def test_what_was_saved_comes_back(place: Place, tmp_path: Path) -> None:
    place.write("ckpt/deep/model.pt", os.urandom(5000))
    place.write("ckpt/empty", b"")
    place.write("state.bin", b"state").chmod(0o755)
    place.write("not-named", b"no")
    (place.work / "ckpt" / "latest").symlink_to("deep/model.pt")
    ref = taken(place.keeper()).file

    again = tmp_path / "again"
    again.mkdir()
    restore(place.spool, ref, RULE, again, place.staging)

    saved = files_below(place.work)
    del saved["not-named"]
    assert files_below(again) == saved
    assert os.readlink(again / "ckpt" / "latest") == "deep/model.pt"
    assert os.access(again / "state.bin", os.X_OK)
    assert not place.staging.exists()


def test_commit_record_tells_size_and_digest_of_the_file(place: Place) -> None:
    place.write("state.bin", b"state")
    ref = taken(place.keeper()).file
    path = place.spool.committed(ref)
    assert (ref.size, ref.sha256) == digest(path)
    assert path == place.incarnation.checkpoint("1.1.1.1", 1)
    assert path.stat().st_mode & 0o777 == 0o600


def test_nothing_is_saved_before_there_is_a_file(place: Place) -> None:
    (place.work / "ckpt").mkdir()
    assert place.keeper().take() is None


@pytest.mark.fault("nothing new to save, old ones to remove")
def test_unchanged_files_are_saved_once(place: Place) -> None:
    place.write("state.bin", b"state")
    keeper = place.keeper()
    taken(keeper)
    assert keeper.take() is None
    assert keeper.saved == 1


@pytest.mark.fault("nothing new to save, old ones to remove")
def test_restored_files_are_no_progress(place: Place) -> None:
    path = place.write("state.bin", b"state")
    keeper = place.keeper()
    keeper.begin()
    assert keeper.take() is None
    path.write_bytes(b"newer state")
    taken(keeper)
    assert keeper.saved == 1


@pytest.mark.fault("nothing new to save, old ones to remove")
def test_two_newest_are_kept(place: Place) -> None:
    keeper = place.keeper()
    for number in range(4):
        place.write("state.bin", b"x" * (number + 1))
        taken(keeper)
    names = [f"1.1.1.1.checkpoint.{number}.tar.gz" for number in (3, 4)]
    assert place.committed() == names


@pytest.mark.fault("checkpoint over its limit")
def test_too_large_is_refused_once_naming_the_largest(place: Place) -> None:
    place.write("ckpt/small", b"s")
    place.write("ckpt/large", random.Random(1).randbytes(300_000))
    keeper = place.keeper(limit_bytes=100_000)
    with pytest.raises(Refused, match=r"over 100000 bytes when packed; largest: ckpt/large \(0.3"):
        keeper.take()
    assert keeper.take() is None
    assert place.committed() == []
    place.write("ckpt/large", b"now small")
    taken(keeper)


def test_compressible_data_beyond_the_limit_is_saved(place: Place) -> None:
    place.write("state.bin", b"\0" * 3_000_000)
    assert taken(place.keeper(limit_bytes=100_000)).file.size < 100_000


@pytest.mark.fault("links out, FIFOs, sockets, sparse files")
def test_sparse_giant_is_refused_without_being_read(place: Place) -> None:
    place.write("small", b"")
    os.truncate(place.write("state.bin", b""), 10**13)
    with pytest.raises(Refused, match=r"hold 10000000 MB.*largest: state\.bin"):
        place.keeper().take()


@pytest.mark.fault("very many files")
def test_too_many_files_are_refused(place: Place) -> None:
    folder = place.work / "ckpt"
    folder.mkdir()
    for number in range(MAX_FILES):
        os.close(os.open(folder / str(number), os.O_CREAT | os.O_WRONLY, 0o600))
    with pytest.raises(Refused, match=f"more than {MAX_FILES} files"):
        survey(place.work, RULE)


@pytest.mark.fault("links out, FIFOs, sockets, sparse files")
def test_special_files_and_links_outside_are_left_out_and_named(place: Place) -> None:
    place.write("ckpt/model", b"m")
    os.mkfifo(place.work / "ckpt" / "fifo")
    (place.work / "ckpt" / "out").symlink_to("../../secret")
    (place.work / "ckpt" / "absolute").symlink_to("/etc/passwd")
    with socket.socket(socket.AF_UNIX) as server:
        home = os.getcwd()
        os.chdir(place.work / "ckpt")  # socket paths are short
        try:
            server.bind("socket")
        finally:
            os.chdir(home)
        found = taken(place.keeper())
    assert found.skipped == (
        "ckpt/absolute (a link that leaves the working directory)",
        "ckpt/fifo (neither file nor directory)",
        "ckpt/out (a link that leaves the working directory)",
        "ckpt/socket (neither file nor directory)",
    )
    with tarfile.open(place.spool.committed(found.file)) as tar:
        assert tar.getnames() == ["ckpt", "ckpt/model"]


@pytest.mark.fault("links out, FIFOs, sockets, sparse files")
@pytest.mark.parametrize("path", ["/etc/passwd", "../other", "a/../../b", ""])
def test_path_that_leaves_the_directory_is_refused(place: Place, path: str) -> None:
    with pytest.raises(Refused, match="leaves the working directory"):
        survey(place.work, CheckpointRule((path,)))


def test_overlapping_paths_are_saved_once(place: Place) -> None:
    place.write("ckpt/model", b"m")
    found = taken(place.keeper(CheckpointRule(("ckpt", "ckpt/model", "./ckpt/model"))))
    with tarfile.open(place.spool.committed(found.file)) as tar:
        assert tar.getnames() == ["ckpt", "ckpt/model"]


@pytest.mark.fault("files that change while copied")
def test_files_that_settle_are_saved_at_the_next_try(place: Place) -> None:
    place.write("ckpt/a", b"1")
    place.write("ckpt/b", b"1")
    changes = iter([b"22", b"333"])

    def copy_while_writing(source: Path, target: Path, expected: os.stat_result) -> None:
        copy_still(source, target, expected)
        data = next(changes, None) if source.name == "b" else None
        if data is not None:
            place.write("ckpt/a", data)

    ref = taken(place.keeper(copy=copy_while_writing)).file
    assert content(place, ref, "ckpt/a") == b"333"


@pytest.mark.fault("files that change while copied")
def test_file_that_was_replaced_meanwhile_is_whole(place: Place) -> None:
    """A payload that renames its file into place is saved though it never holds still."""
    place.write("state.bin", b"old" * 1000)

    def copy_while_replacing(source: Path, target: Path, expected: os.stat_result) -> None:
        copy_still(source, target, expected)
        place.write("state.part", b"new" * 1000).replace(source)

    ref = taken(place.keeper(copy=copy_while_replacing)).file
    assert content(place, ref, "state.bin") == b"old" * 1000


@pytest.mark.fault("files that change while copied")
def test_files_that_never_hold_still_are_refused_in_the_end(place: Place) -> None:
    place.write("ckpt/a", b"")
    place.write("ckpt/b", b"")
    copies = []

    def copy_while_writing(source: Path, target: Path, expected: os.stat_result) -> None:
        copies.append(source)
        copy_still(source, target, expected)
        place.write("ckpt/a", b"x" * len(copies))

    keeper = place.keeper(copy=copy_while_writing)
    for _ in range(GIVE_UP_AFTER - 1):
        assert keeper.take() is None
    with pytest.raises(Refused, match="changed during every copy"):
        keeper.take()
    assert len(copies) >= GIVE_UP_AFTER * len(RETRY_WAITS_S)
    assert place.committed() == []
    assert not place.staging.exists()


@pytest.mark.fault("disk full on a node")
def test_spool_that_cannot_be_written_loses_nothing(place: Place) -> None:
    place.write("state.bin", b"state")
    place.incarnation.files.parent.mkdir(parents=True)
    place.incarnation.files.write_bytes(b"in the way")
    keeper = place.keeper()
    with pytest.raises(OSError, match="exists"):
        keeper.take()
    place.incarnation.files.unlink()
    taken(keeper)


# --- restoring ---


def test_archive_is_delivered_under_the_name_to_load(place: Place, tmp_path: Path) -> None:
    rule = CheckpointRule(("state.bin",), load_as="old/ckpt.tar.gz")
    place.write("state.bin", b"state")
    ref = taken(place.keeper(rule)).file
    again = tmp_path / "again"
    again.mkdir()
    restore(place.spool, ref, rule, again, place.staging)
    assert (again / "old" / "ckpt.tar.gz").read_bytes() == place.spool.committed(ref).read_bytes()


def test_restored_files_win_over_input_files(place: Place, tmp_path: Path) -> None:
    place.write("ckpt/model", b"trained")
    ref = taken(place.keeper()).file
    again = tmp_path / "again"
    (again / "ckpt").mkdir(parents=True)
    (again / "ckpt" / "model").write_bytes(b"initial")
    (again / "ckpt" / "other").write_bytes(b"stays")
    restore(place.spool, ref, RULE, again, place.staging)
    assert files_below(again) == {"ckpt/model": b"trained", "ckpt/other": b"stays"}


@pytest.mark.fault("archive torn or tampered with")
@pytest.mark.parametrize("damage", ["flip", "cut", "grow"])
def test_damaged_archive_changes_nothing(place: Place, tmp_path: Path, damage: str) -> None:
    place.write("state.bin", os.urandom(5000))
    ref = taken(place.keeper()).file
    path = place.spool.committed(ref)
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    elif damage == "cut":
        del data[-10:]
    else:
        data += b"x"
    path.write_bytes(bytes(data))
    assert_refused(place, ref, tmp_path)


@pytest.mark.fault("archive torn or tampered with")
def test_missing_archive_changes_nothing(place: Place, tmp_path: Path) -> None:
    assert_refused(place, FileRef("allocations/none", 1, "0" * 64), tmp_path, FileNotFoundError)


def tar_of(*entries: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for entry in entries:
            tar.addfile(entry, io.BytesIO(b"x" * entry.size))
    return buffer.getvalue()


def entry(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 1
) -> tarfile.TarInfo:
    item = tarfile.TarInfo(name)
    item.type, item.linkname = kind, link
    item.size = size if kind == tarfile.REGTYPE else 0
    return item


LINK, HARD = tarfile.SYMTYPE, tarfile.LNKTYPE


@pytest.mark.fault("archive torn or tampered with")
@pytest.mark.parametrize(
    "entries",
    [
        [entry("/tmp/evil")],
        [entry("../evil")],
        [entry("ckpt/../../evil")],
        [entry("link", LINK, "/etc"), entry("link/evil")],
        [entry("link", LINK, "../outside")],
        [entry("a/b/s", LINK, "../.."), entry("a/b/t", LINK, "s/../..")],
        [entry("a/b/c/s", LINK, "../../.."), entry("a/b/c/t", LINK, "s/..")],
        [entry("hard", HARD, "/etc/passwd")],
        [entry("hard", HARD, "state.bin")],
        [entry("fifo", tarfile.FIFOTYPE)],
        [entry("device", tarfile.CHRTYPE)],
        [entry("twice"), entry("twice")],
        [entry("."), entry("ok")],
    ],
    ids=lambda entries: "+".join(item.name for item in entries),
)
def test_hostile_archive_writes_nothing_anywhere(
    place: Place, tmp_path: Path, entries: list[tarfile.TarInfo]
) -> None:
    ref = place.put_archive(tar_of(*entries))
    assert_refused(place, ref, tmp_path)
    assert not Path("/tmp/evil").exists()


@pytest.mark.fault("archive torn or tampered with")
@pytest.mark.parametrize("data", [b"", b"not an archive", b"\x1f\x8b" + b"\0" * 50])
def test_what_is_no_archive_is_refused(place: Place, tmp_path: Path, data: bytes) -> None:
    assert_refused(place, place.put_archive(data), tmp_path)


@pytest.mark.fault("checkpoint over its limit")
def test_archive_of_too_much_is_refused(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("payload_runner.archives.MAX_RAW_BYTES", 1000)
    assert_refused(place, place.put_archive(tar_of(entry("bomb", size=2000))), tmp_path)


@pytest.mark.fault("archive torn or tampered with")
def test_record_that_names_a_file_outside_the_spool_is_refused(
    place: Place, tmp_path: Path
) -> None:
    place.write("state.bin", b"state")
    ref = dataclasses.replace(taken(place.keeper()).file, path="../outside")
    assert_refused(place, ref, tmp_path, ValueError)


def assert_refused(
    place: Place, ref: FileRef, tmp_path: Path, kind: type[Exception] = Broken
) -> None:
    again = tmp_path / "again"
    again.mkdir()
    (again / "state.bin").write_bytes(b"before")
    around = set(tmp_path.iterdir())
    with pytest.raises(kind):
        restore(place.spool, ref, RULE, again, place.staging)
    assert files_below(again) == {"state.bin": b"before"}
    assert set(tmp_path.iterdir()) == around
