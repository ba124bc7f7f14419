"""The command as a process: exit codes, pipes, signals, and a real central service behind it."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import harvester
from harvester.central.native import NativeCentral
from harvester.central.port import LeaseRequest, Result
from tests.support import wait_until

SCHEMAS = Path(harvester.__file__).parent / "schemas"
SPACE = {"lr": {"method": "uniform", "dimension": {"low": 0.0, "high": 1.0}}}


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    base = tmp_path_factory.mktemp("cli")
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    places = {f"XDG_{name}_HOME": str(base / name.lower()) for name in ("STATE", "CONFIG", "CACHE")}
    return {**kept, **places, "LC_ALL": "C.UTF-8"}


def call(environ: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "harvester", *arguments)
    return subprocess.run(
        command, env=environ, capture_output=True, text=True, timeout=60, check=False
    )


def answer(environ: Mapping[str, str], *arguments: str) -> Any:
    done = call(environ, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--version"], 0),
        (["status"], 0),
        (["nonsense"], 64),
        (["status", "--site", "nowhere"], 66),
        (["site", "validate", "/nonexistent.yaml"], 78),
        (["task", "submit", "--loadJson", "/nonexistent.json", "--dry-run"], 65),
        (["task", "list", "--central", "not-a-url"], 78),
        (["run", "--site", "nowhere", "--once"], 78),
    ],
)
def test_exit_code_reaches_the_shell(
    environ: Mapping[str, str], arguments: list[str], code: int
) -> None:
    done = call(environ, *arguments)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert bool(done.stderr) is (code != 0)


def test_reader_that_leaves_early_hears_no_complaint(environ: Mapping[str, str]) -> None:
    read, write = os.pipe()
    os.close(read)
    command = (sys.executable, "-m", "harvester", "site", "schema")
    process = subprocess.Popen(command, env=environ, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    _, errors = process.communicate(timeout=60)
    assert errors == b""
    assert process.returncode != 0


def test_no_service_is_one_sentence_that_says_what_to_start(environ: Mapping[str, str]) -> None:
    done = call(environ, "task", "list")
    assert done.returncode == 66
    assert "harvester central serve" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture(scope="module")
def service(environ: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A real central service; its discovery file."""
    found = Path(environ["XDG_STATE_HOME"]) / "harvester/central.json"
    log = tmp_path_factory.mktemp("service") / "log"
    command = (sys.executable, "-m", "harvester", "central", "serve", "--port", "0")
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environ, stdout=out, stderr=out)
    try:
        wait_until(lambda: found.exists() or process.poll() is not None, 60)
        assert process.poll() is None, log.read_text()
        yield found
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0


@pytest.fixture
def task(environ: Mapping[str, str], service: Path, tmp_path: Path) -> Iterator[str]:
    """A submitted search of two points; killed afterwards, so that nobody else gets its points."""
    config = {
        "evaluationExec": "sh eval.sh",
        "searchSpaceFile": "space.json",
        "maxPoints": 2,
        "nParallelEvaluation": 2,
        "sampler": "random",
    }
    (tmp_path / "space.json").write_text(json.dumps(SPACE))
    (tmp_path / "eval.sh").write_text("true\n")
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = answer(environ, "task", "submit", "--loadJson", str(tmp_path / "config.json"))
    yield str(found["task"])
    call(environ, "task", "kill", str(found["task"]))


def evaluate(service: Path, task: str, losses: list[float]) -> None:
    """Lease the points of a task and tell these losses, as a harvester does."""
    found = json.loads(service.read_text())
    central = NativeCentral(found["url"], Path(found["token_file"]))
    request = LeaseRequest(key=f"key-{task}", harvester="h", site="s", points=len(losses))
    reply = central.lease(request)
    assert [point.task for point in reply.points] == [task] * len(losses)
    results = [
        Result(
            attempt=f"{point.lease}.1",  # type: ignore[arg-type]  # a NewType of str
            lease=point.lease,
            state="succeeded",
            final=True,
            loss=loss,
            allocation="haaaaa-bbbbbb",
            node="n1",
            started="2026-01-01T00:00:00.000Z",
            ended="2026-01-01T00:01:00.000Z",
        )
        for point, loss in zip(reply.points, losses, strict=True)
    ]
    assert {receipt.verdict for receipt in central.deliver(results)} == {"counted"}


def test_results_come_best_first_as_text_csv_and_json(
    environ: Mapping[str, str], service: Path, task: str
) -> None:
    evaluate(service, task, [0.5, 0.25])
    found = answer(environ, "task", "results", task)
    jsonschema.validate(found, json.loads((SCHEMAS / "results.schema.json").read_text()))
    assert [point["loss"] for point in found["results"]] == [0.25, 0.5]
    assert len(answer(environ, "task", "results", task, "--limit", "1")["results"]) == 1
    rows = list(csv.DictReader(call(environ, "task", "results", task, "--csv").stdout.splitlines()))
    assert [float(row["loss"]) for row in rows] == [0.25, 0.5]
    assert all(0 <= float(row["lr"]) <= 1 for row in rows)
    text = call(environ, "task", "results", task).stdout.splitlines()
    assert [line.split()[3] for line in text] == ["loss", "0.25", "0.5"]


def test_task_and_point_show_their_attempts_in_the_published_form(
    environ: Mapping[str, str], service: Path, task: str
) -> None:
    evaluate(service, task, [0.5, 0.25])
    schema = json.loads((SCHEMAS / "results.schema.json").read_text())
    found = answer(environ, "task", "show", task)
    assert (found["state"], found["counts"]["done"]) == ("finished", 2)
    point = found["points"][0]
    jsonschema.validate({"task": task, "results": [point]}, schema)
    assert point["attempts"][0]["allocation"] == "haaaaa-bbbbbb"
    alone = answer(environ, "point", "show", f"{task}.{point['point']}")
    assert alone["attempts"] == point["attempts"]
    assert "best      loss 0.25" in call(environ, "task", "show", task).stdout


def test_points_can_be_listed_by_state(
    environ: Mapping[str, str], service: Path, task: str
) -> None:
    wait_until(lambda: len(answer(environ, "task", "points", task)["points"]) == 2)
    assert answer(environ, "task", "points", task, "--state", "done")["points"] == []


def test_life_of_a_task_by_hand(environ: Mapping[str, str], service: Path, task: str) -> None:
    for action, state in (("pause", "paused"), ("resume", "running"), ("kill", "cancelled")):
        (found,) = answer(environ, "task", action, task)["tasks"]
        assert found["state"] == state
    assert task in [item["task"] for item in answer(environ, "task", "list")["tasks"]]
    assert call(environ, "task", "log", task).stdout
    assert "would delete 0 results" in call(environ, "task", "delete", task, "--dry-run").stderr
    assert call(environ, "task", "delete", task).returncode == 0
    done = call(environ, "task", "show", task)
    assert (done.returncode, done.stdout) == (66, "")
    assert "harvester task list" in done.stderr


@pytest.mark.fault("token wrong, expired or unsafe")
def test_wrong_token_is_77_and_not_printed(
    environ: Mapping[str, str], service: Path, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("e30.rubbish.rubbish\n")
    token.chmod(0o600)
    done = call(environ, "task", "list", "--token-file", str(token))
    assert (done.returncode, done.stdout) == (77, "")
    assert "rubbish" not in done.stderr


def test_service_that_does_not_answer_is_75(
    environ: Mapping[str, str], service: Path, tmp_path: Path
) -> None:
    token = json.loads(service.read_text())["token_file"]
    words = ("task", "list", "--central", "http://127.0.0.1:9", "--token-file", token)
    assert call(environ, *words).returncode == 75


@pytest.mark.parametrize("arguments", ["status", "--help", "nonsense"])
def test_a_closed_standard_output_changes_no_exit_code(
    environ: Mapping[str, str], arguments: str
) -> None:
    command = ("sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "harvester", arguments)
    done = subprocess.run(
        command, env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert "should not have happened" not in done.stderr
    assert done.returncode == (64 if arguments == "nonsense" else 0)
