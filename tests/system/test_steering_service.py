"""The central service through its own clients: tasks, charging, roles, files, the feed."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from harvester.central.port import Report, ResultFile
from harvester.errors import (
    CentralRefused,
    CentralUnavailable,
    CredentialsRefused,
    InputError,
    NotFound,
)
from harvester.model import AttemptId, LeasedPoint
from harvester.steering.leases import LEASE_S
from harvester.steering.tables import METADATA
from tests.central_service import (
    SPACE,
    RunningService,
    document,
    failure,
    request,
    result,
    running_service,
    sha256,
)
from tests.support import wait_until


@pytest.fixture
def service(tmp_path: Path) -> Iterator[RunningService]:
    with running_service(tmp_path) as found:
        yield found


def _lease_all(service: RunningService, key: str, n: int = 100) -> tuple[LeasedPoint, ...]:
    return service.harvester().lease(request(key, n)).points


class TestTasks:
    def test_a_search_runs_from_submission_to_its_best_point(self, service: RunningService) -> None:
        task = service.submit(config_maxPoints=10, config_nParallelEvaluation=4)
        done = 0
        for key in range(100):
            points = _lease_all(service, str(key))
            assert len(points) <= 4
            service.harvester().deliver(
                [result(point, loss=point.parameters["x"]) for point in points]
            )
            done += len(points)
            if done == 10:
                break
        found = service.tasks().show(task)
        losses = [point["loss"] for point in service.tasks().results(task)]
        assert found["state"] == "finished"
        assert losses == sorted(losses)
        assert found["best"]["loss"] == losses[0] == found["best"]["parameters"]["x"]

    def test_the_first_lease_after_submission_gets_points(self, service: RunningService) -> None:
        service.submit(sampler={"name": "auto", "options": {}})
        assert len(_lease_all(service, "a")) == 6

    def test_submitting_again_under_one_key_makes_one_task(self, service: RunningService) -> None:
        tasks = service.tasks()
        first = tasks.submit(document(), {}, key="same")
        assert tasks.submit(document(), {}, key="same").task == first.task
        assert len(tasks.list()) == 1

    def test_a_paused_task_gives_out_nothing_until_it_is_resumed(
        self, service: RunningService
    ) -> None:
        task = service.submit_and_ask()
        service.tasks().act(task, "pause")
        assert _lease_all(service, "a") == ()
        service.tasks().act(task, "resume")
        assert len(_lease_all(service, "b")) == 6

    def test_finish_lets_leased_points_end(self, service: RunningService) -> None:
        task = service.submit_and_ask()
        (point, other) = _lease_all(service, "a", 2)
        assert service.tasks().act(task, "finish")["state"] == "finishing"
        service.harvester().deliver([result(point), failure(other)])
        found = service.tasks().show(task)
        assert (found["state"], found["points"]["cancelled"]) == ("finished", 5)

    def test_kill_stops_what_runs(self, service: RunningService) -> None:
        task = service.submit_and_ask()
        (point,) = _lease_all(service, "a", 1)
        assert service.tasks().act(task, "kill")["state"] == "cancelled"
        standing = service.harvester().renew([point.lease])
        assert (standing.gone, dict(standing.stop)) == ((), {point.lease: "cancelled"})
        report = Report(point.lease, AttemptId(f"{point.lease}.1"), ({"step": 1, "loss": 1.0},))
        assert dict(service.harvester().report([report])) == {point.lease: "cancelled"}
        assert service.harvester().deliver([result(point)])[0].verdict == "recorded"

    def test_retry_puts_failed_points_back(self, service: RunningService) -> None:
        task = service.submit_and_ask(config_maxPoints=1)
        for key in range(3):
            (point,) = _lease_all(service, str(key))
            service.harvester().deliver([failure(point)])
        assert service.tasks().show(task)["state"] == "failed"
        assert service.tasks().act(task, "retry")["state"] == "running"
        (point,) = _lease_all(service, "again")
        service.harvester().deliver([result(point)])
        found = service.tasks().show(task)
        assert (found["state"], found["best"]["loss"]) == ("finished", 0.5)

    def test_only_a_task_that_has_ended_is_deleted(self, service: RunningService) -> None:
        task = service.submit()
        with pytest.raises(CentralRefused, match="finish or kill it"):
            service.tasks().delete(task)
        service.tasks().act(task, "kill")
        service.tasks().delete(task)
        with pytest.raises(NotFound):
            service.tasks().show(task)
        assert service.submit() != task

    def test_charged_attempts_end_the_task(self, service: RunningService) -> None:
        task = service.submit_and_ask(config_maxPoints=50, config_maxEvaluationJobs=4)
        points = _lease_all(service, "a", 5)
        uncharged = failure(points[4], blame="node")
        service.harvester().deliver([*(failure(point) for point in points[:3]), uncharged])
        assert service.tasks().show(task)["state"] == "running"
        service.harvester().deliver([result(points[3])])
        found = service.tasks().show(task)
        assert (found["state"], found["charged_attempts"], found["attempts"]) == ("finished", 4, 5)

    def test_iterations_follow_the_rule_of_panda(self, service: RunningService) -> None:
        task = service.submit_and_ask(
            config_maxPoints=20, config_nPointsPerIteration=5, config_minUnevaluatedPoints=2
        )
        points = _lease_all(service, "a")
        assert len(points) == 3
        service.harvester().deliver([result(points[0])])
        service.service.asker.wait_for_points(10.0)
        assert service.points(task)["waiting"] == 0
        service.harvester().deliver([result(points[1])])
        wait_until(lambda: service.points(task)["waiting"] == 3)

    def test_a_grid_ends_when_it_is_used_up(self, service: RunningService) -> None:
        space = {"c": {"method": "categorical", "dimension": {"categories": ["a", "b", "c"]}}}
        task = service.submit_and_ask(
            search_space=space, sampler={"name": "grid", "options": {}}, config_maxPoints=50
        )
        points = _lease_all(service, "a")
        service.harvester().deliver([result(point) for point in points])
        assert {point.parameters["c"] for point in points} == {"a", "b", "c"}
        assert wait_until(lambda: service.tasks().show(task)["state"] == "finished")

    def test_segments_are_searched_independently(self, service: RunningService) -> None:
        segments = [{"name": "low", "files": ["a"]}, {"name": "high", "files": ["b"]}]
        task = service.submit_and_ask(segments=segments, config_maxPoints=3)
        reply = service.harvester().lease(request())
        assert sorted(point.segment or "" for point in reply.points) == ["high"] * 3 + ["low"] * 3
        models = {point.segment: point.parameters[0] for point in reply.points}
        assert models == {"low": 0, "high": 1}
        training = {spec.payload_id: spec.training_files for spec in reply.payloads}
        by_segment = {point.segment: training[point.payload_id] for point in reply.points}
        assert by_segment == {"low": ("a",), "high": ("b",)}
        service.harvester().deliver([result(point) for point in reply.points])
        found = service.tasks().show(task)
        assert (found["state"], found["points"]["done"]) == ("finished", 6)
        assert [segment["points"]["done"] for segment in found["segments"]] == [3, 3]

    def test_a_site_gets_only_tasks_that_are_meant_for_it(self, service: RunningService) -> None:
        service.submit_and_ask(site=["summit"])
        assert service.harvester().lease(request("a", site="local")).points == ()
        assert len(service.harvester().lease(request("b", site="summit")).points) == 6

    def test_attempts_are_shown_with_their_own_numbers(self, service: RunningService) -> None:
        task = service.submit_and_ask(config_maxPoints=1)
        (point,) = _lease_all(service, "a")
        cut = result(point, 1, state="timed_out", blame="walltime", final=False, loss=None)
        last = result(point, 2, resumed_from=cut.attempt, node="n1", allocation="h-1", loss=0.25)
        service.harvester().deliver([cut, last])
        (found,) = service.tasks().points(task)
        shown = [
            {key: item[key] for key in ("n", "state", "resumed_from", "counted", "node")}
            for item in found["attempts"]
        ]
        assert shown == [
            {"n": 1, "state": "timed_out", "resumed_from": None, "counted": False, "node": None},
            {"n": 2, "state": "succeeded", "resumed_from": 1, "counted": True, "node": "n1"},
        ]

    def test_changes_wake_who_waits_for_them(self, service: RunningService) -> None:
        tasks = service.tasks()
        start = tasks.changes().next
        found: list[Any] = []
        thread = threading.Thread(
            target=lambda: found.append(tasks.changes(start, wait_s=20.0)), daemon=True
        )
        thread.start()
        task = service.submit()
        thread.join(timeout=60)
        assert found[0].changes[0]["what"] == "submitted"
        assert found[0].changes[0]["task"] == task


class TestEvaluation:
    def test_harvesters_leasing_at_once_never_share_a_point(self, service: RunningService) -> None:
        service.submit_and_ask(config_maxPoints=60, config_nParallelEvaluation=60)
        clients = [service.harvester(f"h{number}") for number in range(4)]
        got: list[str] = []

        def lease(number: int) -> None:
            for turn in range(6):
                reply = clients[number].lease(
                    request(f"{number}-{turn}", 4, harvester=f"h{number}")
                )
                got.extend(point.point for point in reply.points)

        threads = [threading.Thread(target=lease, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert len(got) == len(set(got)) == 60

    def test_a_lost_attempt_that_turns_up_counts(self, service: RunningService) -> None:
        service.submit_and_ask(config_maxPoints=1)
        (point,) = _lease_all(service, "a")
        lost = failure(point, state="lost", blame="site")
        assert service.harvester().deliver([lost, lost])[1].verdict == "recorded"
        assert service.harvester().deliver([result(point, loss=0.125)])[0].verdict == "counted"
        assert service.tasks().list()[0]["best"]["loss"] == 0.125

    def test_an_expired_lease_is_taken_up_again_while_its_point_waits(
        self, service: RunningService
    ) -> None:
        service.submit_and_ask()
        (point,) = _lease_all(service, "a", 1)
        service.clock.advance(LEASE_S + 1)
        assert service.harvester().renew([point.lease]).gone == ()
        assert point.point not in {item.point for item in _lease_all(service, "b")}

    def test_a_replayed_request_leaves_out_leases_that_have_ended(
        self, service: RunningService
    ) -> None:
        service.submit_and_ask(config_maxPoints=2)
        first, second = _lease_all(service, "a")
        service.harvester().deliver([result(first)])
        assert [point.lease for point in _lease_all(service, "a")] == [second.lease]

    def test_one_unusable_result_does_not_hold_up_the_others(self, service: RunningService) -> None:
        service.submit_and_ask()
        points = _lease_all(service, "a", 3)
        deep: Any = 1
        for _ in range(90):
            deep = {"deeper": deep}
        told = [
            result(points[0], stdout="nul \0 and half a pair \ud800"),
            result(points[1], metadata=deep, loss=0.25),
            result(points[2], state="sleeping"),
        ]
        receipts = service.harvester().deliver(told)
        assert [item.verdict for item in receipts] == ["counted", "counted", "refused"]
        assert "'sleeping' is not the end of an attempt" in receipts[2].reason

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"lease": "9.1.1", "attempt": "9.1.1.1"}, "there is no task 9"),
            ({"lease": "1.1.9", "attempt": "1.1.9.1"}, "was never given out"),
            ({"lease": "rubbish", "attempt": "rubbish.1"}, "is not a lease id"),
            ({"attempt": "1.2.1.1"}, "is not one of lease"),
            ({"blame": "moon"}, "nobody to blame"),
            ({"loss": None}, "a success needs a loss"),
        ],
    )
    def test_a_result_that_belongs_nowhere_is_refused_by_its_receipt(
        self, service: RunningService, changes: dict[str, Any], reason: str
    ) -> None:
        service.submit_and_ask(config_maxPoints=1)
        (point,) = _lease_all(service, "a")
        told = dataclasses.replace(result(point), **changes)
        (receipt,) = service.harvester().deliver([told])
        assert receipt.verdict == "refused"
        assert reason in receipt.reason

    def test_the_median_rule_stops_a_hopeless_point_where_the_task_asks_for_it(
        self, service: RunningService
    ) -> None:
        service.submit_and_ask(payload={"early_stopping": "median"}, config_maxPoints=7)
        points = service.harvester().lease(request()).points
        assert len(points) == 6
        reports = [
            Report(
                point.lease,
                AttemptId(f"{point.lease}.1"),
                tuple({"step": step, "loss": 9.0 if at == 5 else 0.1} for step in range(5)),
            )
            for at, point in enumerate(points)
        ]
        bad = points[5].lease
        assert dict(service.harvester().report(reports)) == {bad: "pruned"}
        assert dict(service.harvester().renew([bad]).stop) == {bad: "pruned"}
        service.harvester().deliver([result(points[5], state="pruned", loss=9.0)])
        assert service.points("1")["pruned"] == 1


class TestFiles:
    def test_a_file_travels_up_and_down_in_chunks(
        self, service: RunningService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("harvester.central.http.CHUNK_BYTES", 1000)
        content = bytes(range(256)) * 20
        source, target = tmp_path / "source", tmp_path / "target"
        source.write_bytes(content)
        service.harvester().upload(source, sha256(content), len(content))
        service.harvester().upload(source, sha256(content), len(content))
        service.harvester().fetch_input(sha256(content), target)
        assert target.read_bytes() == content

    def test_transfers_go_on_where_they_stopped(
        self, service: RunningService, tmp_path: Path
    ) -> None:
        content = b"0123456789" * 100
        source, target = tmp_path / "source", tmp_path / "target"
        source.write_bytes(content)
        files = service.service.files
        assert files.add(sha256(content), 0, 1000, content[:400], "alice", 0.0) == (400, False)
        service.harvester().upload(source, sha256(content), len(content))
        (tmp_path / "target.part").write_bytes(content[:300])
        service.harvester().fetch_input(sha256(content), target)
        assert target.read_bytes() == content

    def test_an_empty_file_is_a_file(self, service: RunningService, tmp_path: Path) -> None:
        (tmp_path / "empty").touch()
        service.harvester().upload(tmp_path / "empty", sha256(b""), 0)
        service.harvester().fetch_input(sha256(b""), tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == b""

    @pytest.mark.fault("content damaged or forged")
    def test_content_that_is_not_what_it_says_is_refused(
        self, service: RunningService, tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_bytes(b"something else")
        with pytest.raises(CentralRefused, match="the content has SHA-256"):
            service.harvester().upload(tmp_path / "file", sha256(b"promised"), 14)

    @pytest.mark.fault("content damaged or forged")
    def test_a_damaged_download_is_not_kept(self, service: RunningService, tmp_path: Path) -> None:
        content = b"0123456789"
        service.service.files.add(sha256(content), 0, 10, content, "alice", 0.0)
        (tmp_path / "target.part").write_bytes(b"XXX")
        with pytest.raises(CentralUnavailable, match="damaged"):
            service.harvester().fetch_input(sha256(content), tmp_path / "target")
        service.harvester().fetch_input(sha256(content), tmp_path / "target")
        assert (tmp_path / "target").read_bytes() == content

    def test_a_task_whose_files_have_not_come_is_refused_by_name(
        self, service: RunningService, tmp_path: Path
    ) -> None:
        content = b"print(1)\n"
        files = [{"name": "train.py", "sha256": sha256(content), "size": 9, "executable": False}]
        with pytest.raises(InputError, match=r"files\[0\].*train.py.*upload its content first"):
            service.tasks().submit(document(files=files), {})
        (tmp_path / "train.py").write_bytes(content)
        service.tasks().submit(document(files=files), {sha256(content): tmp_path / "train.py"})

    def test_a_result_counts_before_its_files_have_come(self, service: RunningService) -> None:
        task = service.submit_and_ask(config_maxPoints=1)
        (point,) = _lease_all(service, "a")
        file = ResultFile(role="metrics", name="m.tgz", size=3, sha256=sha256(b"abc"))
        assert service.harvester().deliver([result(point, files=(file,))])[0].verdict == "counted"
        (shown,) = service.tasks().points(task)
        assert shown["files"][0]["sha256"] == sha256(b"abc")
        assert any(
            "not been uploaded" in line["text"] for line in service.tasks().show(task)["log"]
        )


class TestRoles:
    def test_users_see_their_own_tasks_only(self, service: RunningService) -> None:
        task = service.submit("alice")
        bob = service.tasks("bob", "submit")
        assert bob.list() == []
        with pytest.raises(CentralRefused, match="belongs to another user"):
            bob.show(task)
        assert bob.changes().changes == ()

    def test_a_harvester_gets_its_own_users_points(self, service: RunningService) -> None:
        service.submit_and_ask("alice")
        bob = service.harvester("edge", "bob", "evaluate")
        assert bob.lease(request()).points == ()
        (point,) = _lease_all(service, "mine", 1)
        (receipt,) = bob.deliver([result(point)])
        assert (receipt.verdict, "another user" in receipt.reason) == ("refused", True)
        assert bob.renew([point.lease]).gone == (point.lease,)

    def test_a_role_opens_its_own_calls_only(self, service: RunningService) -> None:
        with pytest.raises(CentralRefused, match="needs a token of role submit"):
            service.tasks("alice", "evaluate").submit(document(), {})
        with pytest.raises(CentralRefused, match="needs a token of role evaluate"):
            service.harvester("edge", "alice", "submit").lease(request())

    @pytest.mark.fault("token wrong, expired or unsafe")
    def test_a_revoked_token_is_refused(self, service: RunningService) -> None:
        tokens = service.service.tokens
        bob = service.tasks("bob", "submit")
        bob.ping()
        (found,) = [item for item in tokens.listing() if item["user"] == "bob"]
        tokens.revoke(found["sha256"])
        with pytest.raises(CredentialsRefused, match="revoked"):
            bob.ping()

    def test_a_new_token_is_picked_up_from_its_file(self, service: RunningService) -> None:
        path = service.token_file("bob", "submit")
        good = path.read_text()
        client = service.tasks("bob", "submit")
        path.write_text("rubbish")
        with pytest.raises(CredentialsRefused, match="not one of this service"):
            client.ping()
        path.unlink()
        path.touch(0o600)
        path.write_text(good)
        assert client.ping()["protocol"] == 1


def test_migrations_lead_to_the_tables_of_this_release(service: RunningService) -> None:
    with service.service.database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


def test_the_search_space_is_checked_again(service: RunningService) -> None:
    bad = {"x": {"method": "uniform", "dimension": {"low": 2, "high": 1}}}
    with pytest.raises(InputError, match="low"):
        service.tasks().submit(document(search_space=bad), {})
    assert service.tasks().submit(document(search_space=SPACE), {}).task
