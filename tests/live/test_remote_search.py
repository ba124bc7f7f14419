"""Whole searches on a real Slurm that the harvester reaches over ssh alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harvester.remote.link import Link
from harvester.wiring import make_link
from scripts.stack import Account
from tests.live.clusters import SlurmCluster
from tests.live.searching import Search
from tests.loopback import LoginNode, login_node, why_no_ssh

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]

_REMOTE = """
remote:
  host: {host}
  ssh_config: {config}
  python: /usr/bin/python3
  second_factor: {second_factor}
  timeout: 20s
"""


@pytest.fixture
def far() -> Iterator[LoginNode]:
    reason = why_no_ssh()
    if reason:
        pytest.skip(reason)
    with login_node() as node:
        yield node


class FarSearch(Search):
    """A search whose harvester knows the spool and Slurm only through ssh."""

    def __init__(self, cluster: SlurmCluster, node: LoginNode, *, second_factor: bool) -> None:
        super().__init__(cluster, Account(), nodes="1-3", jobs=1)
        answer = str(second_factor).lower()
        remote = _REMOTE.format(host=node.host, config=node.ssh_config, second_factor=answer)
        with self.stack.site_file.open("a") as text:
            text.write(remote)
        # Without Slurm's commands: whoever calls them does so over there.
        programs = self.root / "bin"
        for program in programs.iterdir():
            program.write_text("#!/bin/sh\necho 'no Slurm on this host' >&2\nexit 1\n")

    def connect(self, *options: str) -> str:
        """``harvester site connect``, which a person would type."""
        return self.stack.harvester("site", "connect", str(self.stack.site_file), *options)

    @property
    def link(self) -> Link:
        """The connection of the stack's harvester."""
        found = make_link(self.stack.site)
        assert found is not None
        return found


@pytest.mark.fault("connection to the site cut")
def test_search_goes_on_when_the_connection_is_cut_and_opened_again(
    slurm_cluster: SlurmCluster, far: LoginNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FarSearch(slurm_cluster, far, second_factor=True) as search:
        monkeypatch.setenv("XDG_STATE_HOME", str(search.stack.state_home))
        assert "is open" in search.connect()
        search.start(24, seconds=4)
        search.started_jobs()
        far.kill_connection(search.link.socket)
        search.wait(lambda: "no connection" in search.problems(), 90, "it says what is wrong")
        screen = search.stack.harvester("status")
        assert "harvester site connect testbed" in screen
        search.connect()
        search.wait(lambda: "no connection" not in search.problems(), 90, "it is well again")
        books = search.finish()

        books.check(24)
        assert not (search.spool / "status.json").exists()
        assert not list(search.spool.glob("inputs/*.part"))
