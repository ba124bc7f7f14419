"""Whose searches a harvester may run."""

from __future__ import annotations

from pathlib import Path

from tests.central_service import request, running_service


def test_no_role_gets_another_users_bare_payload(tmp_path: Path) -> None:
    with running_service(tmp_path) as service:
        service.submit_and_ask("bob")
        own = service.harvester(user="bob", role="evaluate").lease(request("own"))
        stranger = service.harvester(user="alice", role="evaluate").lease(request("stranger"))
        admin = service.harvester(user="alice", role="admin").lease(request("admin"))

    assert own.points
    assert not stranger.points
    assert not admin.points


def test_an_admins_harvester_may_run_others_searches_in_containers(tmp_path: Path) -> None:
    with running_service(tmp_path) as service:
        service.submit_and_ask("bob", config_evaluationContainer="docker://org/image:1")
        stranger = service.harvester(user="carol", role="evaluate").lease(request("stranger"))
        admin = service.harvester(user="alice", role="admin").lease(request("admin"))

    assert not stranger.points
    assert admin.points
    assert admin.payloads[0].container
