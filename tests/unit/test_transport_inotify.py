"""Changes of files on this machine, as the kernel tells them; and how an agent is told its node."""

from __future__ import annotations

from pathlib import Path

import pytest

from payload_runner.inotify import Inotify, open_inotify
from payload_runner.transport import AgentStart
from tests.support import wait_until


def test_a_write_in_a_watched_directory_is_told_with_its_name(tmp_path: Path) -> None:
    inotify = open_inotify()
    assert isinstance(inotify, Inotify)
    inotify.watch(str(tmp_path))
    assert inotify.changes() == []
    (tmp_path / "log").write_text("x")
    changes = wait_until(inotify.changes)
    assert {(path, name) for path, name, _ in changes} == {(str(tmp_path), "log")}
    inotify.close()
    inotify.close()


def test_a_path_that_is_not_there_cannot_be_watched(tmp_path: Path) -> None:
    inotify = Inotify()
    with pytest.raises(FileNotFoundError, match="nothing-here"):
        inotify.watch(str(tmp_path / "nothing-here"))
    inotify.close()


START = AgentStart(Path("/s p"), "haaaaa-bbbbbb", "7.0", ("10.0.0.1:99", "n1:99"), "tcp", 3, "v3")


def test_what_an_agent_is_told_survives_its_command_line() -> None:
    assert AgentStart.parse(START.argv(), {}) == START


@pytest.mark.parametrize(
    "name",
    [
        "SLURM_NODEID",
        "PMIX_RANK",
        "PMI_RANK",
        "OMPI_COMM_WORLD_RANK",
        "FLUX_TASK_RANK",
        "JSM_NAMESPACE_RANK",
        "PALS_RANKID",
    ],
)
def test_the_launchers_environment_tells_an_agent_its_node(name: str) -> None:
    told = AgentStart(START.spool, START.tag, START.incarnation)
    started = AgentStart.parse(told.argv(), {name: "5"})
    assert started.node == 5
    assert started.host


def test_a_launchers_rank_outdoes_what_the_batch_script_hands_down() -> None:
    told = AgentStart(START.spool, START.tag, START.incarnation)
    environ = {"SLURM_NODEID": "0", "PALS_RANKID": "2"}
    assert AgentStart.parse(told.argv(), environ).node == 2


def test_an_agent_without_a_node_refuses_to_start(capsys: pytest.CaptureFixture[str]) -> None:
    told = AgentStart(START.spool, START.tag, START.incarnation)
    with pytest.raises(SystemExit):
        AgentStart.parse(told.argv(), {})
    assert "--node" in capsys.readouterr().err
