"""What goes over ssh: command lines that mean the same there, and answers that are told apart."""

from __future__ import annotations

import csv
import io
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvester.batch.commands import Completed
from harvester.errors import BatchUnavailable
from harvester.remote import login
from harvester.remote.commands import read_end
from harvester.remote.link import Opened
from harvester.site import Remote

REMOTE = Remote(host="me@login.example.org", ssh_config=Path("/etc/far config"))
SOCKET = Path("/state/100% mine/socket")
NO_NUL = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


def run(line: str) -> tuple[str, str]:
    """A line as sshd hands it to the login shell."""
    done = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


@given(st.lists(NO_NUL.filter(bool), min_size=1, max_size=3))
def test_words_of_a_command_arrive_as_they_are(words: list[str]) -> None:
    script = login.command_script(["printf", "%s\\0", *words], {}, (), 30)
    done = subprocess.run(["/bin/sh", "-c", login.posix_line(script)], capture_output=True)
    assert done.stdout.decode().split("\0")[:-1] == words
    assert login.split_end(done.stderr.decode()) == ("", 0)


def test_environment_and_prologue_reach_the_command_and_not_its_answer() -> None:
    script = login.command_script(
        ["sh", "-c", "echo $PLACE $WORD; echo cry >&2; exit 3"],
        {"WORD": "it's $HOME"},
        ("echo loaded", "export PLACE=there"),
        30,
    )
    stdout, stderr = run(login.posix_line(script))
    assert stdout == "there it's $HOME\n"
    assert login.split_end(stderr) == ("loaded\ncry\n", 3)


def test_command_ends_there_when_its_time_is_over() -> None:
    _, stderr = run(login.posix_line(login.command_script(["sleep", "600"], {}, (), 0.2)))
    assert login.split_end(stderr) == ("", 124)


@pytest.mark.fault("connection to the site cut")
def test_answer_without_its_end_was_cut_off() -> None:
    cut = Completed("ssh", 255, "", "Connection to login closed by remote host.\n")
    with pytest.raises(BatchUnavailable, match="squeue was cut off: the connection to login"):
        read_end("squeue --me", "login", cut)


def test_exit_code_of_the_command_is_its_own_even_255() -> None:
    done = Completed("ssh", 0, "out", "no\n\nharvester-remote-exit 255\n")
    assert read_end("bsub x", "login", done) == Completed("bsub x", 255, "out", "no\n")


@pytest.mark.parametrize(
    ("code", "words"),
    [(127, "cannot be started on login"), (124, "did not end in time on login")],
)
def test_command_that_did_not_do_its_work_is_unavailable(code: int, words: str) -> None:
    with pytest.raises(BatchUnavailable, match=words):
        read_end("squeue", "login", Completed("ssh", 0, "", f"\nharvester-remote-exit {code}\n"))


def test_sessions_have_no_other_way_than_the_open_connection() -> None:
    words = login.session_command(REMOTE, SOCKET, "true")
    assert {"ProxyCommand=false", "ControlMaster=no", "BatchMode=yes"} <= set(words)
    assert words[words.index("-S") + 1] == "/state/100%% mine/socket"
    assert words[-3:] == ("--", "me@login.example.org", "true")


def test_connection_that_a_person_opens_may_ask() -> None:
    ours = login.open_command(REMOTE, SOCKET, Path("log"), batch=True)
    theirs = login.open_command(REMOTE, SOCKET, Path("log"), batch=False)
    assert "BatchMode=yes" in ours
    assert "BatchMode=yes" not in theirs


def test_shell_of_rsync_splits_into_the_same_words() -> None:
    words = login.session_words(Remote(host="h", ssh_config=Path("/a b/c")), Path("/s"))
    # rsync(1): words of -e are split at spaces, quotes keep them together.
    (row,) = csv.reader(io.StringIO(shlex.join(words)), delimiter=" ", quotechar="'")
    assert tuple(row) == words


def test_sites_with_the_same_login_share_a_connection() -> None:
    assert login.connection_name(REMOTE) == login.connection_name(_other_python())
    assert login.connection_name(REMOTE) != login.connection_name(Remote(host="other"))


def _other_python() -> Remote:
    return replace(REMOTE, python="/opt/python")


@pytest.mark.parametrize(
    ("until", "now", "warning"),
    [
        (None, 1e9, None),
        (10_000.0, 1_000.0, None),
        (10_000.0, 8_200.0, "ends at 1970-01-01 02:46 UTC, in 30 min"),
        (10_000.0, 10_000.0, "was to end at 1970-01-01 02:46 UTC"),
    ],
)
def test_end_of_a_connection_is_announced_before(
    until: float | None, now: float, warning: str | None
) -> None:
    assert Opened(0.0, until).warning(now, 3600.0) == warning
