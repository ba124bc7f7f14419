"""From a phpo configuration to a task: what is read, what is refused, what a user is told."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from harvester.errors import InputError
from harvester.site import Queue, Site, WalltimeBin
from harvester.steering.evaluation_script import local_script
from harvester.steering.taskfile import (
    TaskDefinition,
    check_against_site,
    input_paths,
    load_task,
    payload_spec,
    payload_specs,
    warnings,
)
from payload_runner.protocol import CheckpointRule, Container, NodeShape, from_fields, to_fields
from tests.search_files import CONFIG, SPACE, problems_of, write_search


def site(**changes: Any) -> Site:
    fields: dict[str, Any] = {
        "name": "here",
        "batch_system": "local",
        "node": NodeShape(gpus=4, cores=32, memory_mb=100_000),
        "queues": (
            Queue(name="short", bins=(WalltimeBin(nodes_min=1, nodes_max=8, walltime_max_s=3600),)),
        ),
        "spool": Path("/scratch"),
    }
    return Site(**{**fields, **changes})


def test_a_command_and_a_space_are_enough_and_the_rest_has_phpos_defaults(tmp_path: Path) -> None:
    task = load_task(write_search(tmp_path))
    assert task.command == "bash ./run.sh"
    assert task.name == tmp_path.name
    assert (task.parallel, task.max_points, task.max_evaluation_jobs) == (1, 10, 20)
    assert (task.points_per_iteration, task.min_unevaluated_points) == (None, 0)
    assert (task.input_name, task.training_name, task.output_name) == (
        "input.json",
        "input_ds.json",
        "output.json",
    )
    assert (task.meta_name, task.metrics_name, task.checkpoint, task.container) == (None,) * 4
    assert [space.to_json() for space in task.spaces] == [SPACE]
    assert task.sampler.name == "auto"
    assert [file.name for file in task.files] == ["config.json", "run.sh", "space.json", "train.py"]


def test_every_implemented_option_arrives(tmp_path: Path) -> None:
    task = load_task(
        write_search(
            tmp_path,
            nParallelEvaluation=8,
            maxPoints=40,
            maxEvaluationJobs=60,
            nPointsPerIteration=10,
            minUnevaluatedPoints=3,
            evaluationContainer="docker://pytorch/pytorch:2.4",
            evaluationInput="in.json",
            evaluationTrainingData="data.json",
            evaluationOutput="out.json",
            evaluationMeta="meta.json",
            evaluationMetrics="metrics.tgz",
            checkPointToSave="model.pt, ./logs/",
            checkPointToLoad="old.tgz",
            checkPointInterval=0.5,
            outDS="user.alice.search/",
            site="A,B",
            includedSite=["C"],
            sampler={"name": "skopt", "options": {"base_estimator": "RF"}},
            seed=5,
            payload={"gpus_per_node": 0.5, "memory": "8GB", "cores": 2, "expected_minutes": 3},
        )
    )
    assert (task.parallel, task.max_points, task.charge_limit) == (8, 40, 60)
    assert (task.points_per_iteration, task.min_unevaluated_points) == (10, 3)
    assert task.container == Container(image="docker://pytorch/pytorch:2.4")
    assert (task.input_name, task.training_name, task.output_name) == (
        "in.json",
        "data.json",
        "out.json",
    )
    assert (task.meta_name, task.metrics_name) == ("meta.json", "metrics.tgz")
    assert task.checkpoint == CheckpointRule(
        paths=("model.pt", "logs"), load_as="old.tgz", interval_s=30.0
    )
    assert (task.name, task.sites) == ("user.alice.search", ("A", "B", "C"))
    assert (task.sampler.name, task.sampler.options) == ("skopt", {"base_estimator": "RF"})
    assert task.seed == 5
    shape = task.payload.shape
    assert (shape.gpus_per_node, shape.cores_per_node, shape.memory_mb_per_node) == (0.5, 2, 8000)
    assert task.payload.expected_s == 180


def test_the_document_reads_as_the_same_task_after_json(tmp_path: Path) -> None:
    task = load_task(write_search(tmp_path, payload={"nodes": 2}, seed=1))
    document = json.loads(json.dumps(task.to_document(), allow_nan=False))
    assert TaskDefinition.from_document(document) == task
    assert document["config"] == CONFIG


def test_the_file_wins_over_the_command_line(tmp_path: Path) -> None:
    path = write_search(tmp_path, maxPoints=7)
    task = load_task(path, {"maxPoints": 99, "nParallelEvaluation": 3, "site": None})
    assert (task.max_points, task.parallel) == (7, 3)


def test_a_bad_value_of_the_command_line_is_told_of_its_option(tmp_path: Path) -> None:
    given = {"maxPoints": -4, "outDS": "x" * 300, "nParallelEvaluation": -2}
    path = write_search(tmp_path, nParallelEvaluation=-1, maxPoints=None)
    assert {key: sentence.split(";")[0] for key, sentence in problems_of(path, given).items()} == {
        "--maxPoints": "command line: --maxPoints: got -4",
        "nParallelEvaluation": "config.json: nParallelEvaluation: got -1",
        "name": f'config.json: name: got "{"x" * 76}...',
    }


def test_a_search_may_come_from_the_command_line_alone(tmp_path: Path) -> None:
    write_search(tmp_path)
    task = load_task(None, {**CONFIG, "maxPoints": 3}, directory=tmp_path)
    assert task.max_points == 3


def test_files_travel_recursively_with_hash_and_mode_and_leave_hidden_and_own_names(
    tmp_path: Path,
) -> None:
    path = write_search(tmp_path)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "model.py").write_text("x = 1\n")
    (tmp_path / "lib" / "notes.txt").write_text("no")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "hook.sh").write_text("no")
    (tmp_path / ".secret.json").write_text("{}")
    (tmp_path / "output.json").write_text('{"loss": 0}')
    (tmp_path / "run.sh").chmod(0o755)
    task = load_task(path)
    assert [file.name for file in task.files] == [
        "config.json",
        "lib/model.py",
        "run.sh",
        "space.json",
        "train.py",
    ]
    model, run = task.files[1:3]
    assert model.sha256 == hashlib.sha256(b"x = 1\n").hexdigest()
    assert (model.size, model.executable, run.executable) == (6, False, True)
    assert input_paths(task.files, tmp_path)[model.sha256] == tmp_path / "lib" / "model.py"


def test_a_link_out_of_the_directory_is_refused_and_one_inside_travels(tmp_path: Path) -> None:
    search = tmp_path / "search"
    search.mkdir()
    (tmp_path / "passwords.json").write_text("{}")
    path = write_search(search)
    (search / "same.py").symlink_to("train.py")
    assert "same.py" in [file.name for file in load_task(path).files]
    (search / "stolen.json").symlink_to("../passwords.json")
    (search / "broken.sh").symlink_to("nowhere")
    found = problems_of(path)
    assert set(found) == {"stolen.json", "broken.sh"}
    assert "leaves the configuration's directory" in found["stolen.json"]


def test_a_fifo_among_the_files_is_refused_not_waited_for(tmp_path: Path) -> None:
    path = write_search(tmp_path)
    os.mkfifo(tmp_path / "pipe.json")
    assert problems_of(path) == {"pipe.json": "config.json: pipe.json: is not a plain file"}


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"nParalelEvaluation": 3}, "nParalelEvaluation", "did you mean 'nParallelEvaluation'?"),
        ({"maxPoints": 0}, "maxPoints", "got 0; expected a whole number from 1"),
        ({"maxPoints": "10"}, "maxPoints", 'got "10"; expected a whole number'),
        ({"maxPoints": True}, "maxPoints", "expected a whole number"),
        ({"maxPoints": 2.5}, "maxPoints", "expected a whole number"),
        ({"official": "yes"}, "official", "expected true or false"),
        ({"minUnevaluatedPoints": 2}, "minUnevaluatedPoints", "less than nPointsPerIteration (2)"),
        ({"trainingDS": "mc.data"}, "trainingDS", "not implemented yet"),
        ({"steeringExec": "run"}, "steeringExec", "not implemented yet"),
        ({"steeringContainer": "img"}, "steeringContainer", "not implemented yet"),
        ({"evaluationExec": None}, "evaluationExec", "is missing"),
        ({"evaluationExec": "   "}, "evaluationExec", "expected a command"),
        ({"evaluationExec": "./missing.sh"}, "evaluationExec", "there is no file 'missing.sh'"),
        ({"evaluationExec": "bash rum.sh"}, "evaluationExec", "did you mean 'run.sh'?"),
        ({"evaluationExec": "./train"}, "evaluationExec", "only *.json, *.sh, *.py, *.yaml travel"),
        ({"evaluationExec": "sh ../run.sh"}, "evaluationExec", "outside the working directory"),
        ({"evaluationExec": "echo %SEGMENT_NAME"}, "evaluationExec", "needs a segmentSpecFile"),
        ({"searchSpaceFile": "nowhere.json"}, "searchSpaceFile", "cannot be read: No such file"),
        ({"searchSpaceFile": None}, "searchSpaceFile", "is missing"),
        ({"searchSpace": SPACE}, "searchSpace", "give one of them"),
        ({"checkPointToSave": "../x"}, "checkPointToSave", "leaves the working directory"),
        ({"checkPointToSave": "/etc/passwd"}, "checkPointToSave", "leaves the working directory"),
        ({"checkPointToSave": "a/../../x"}, "checkPointToSave", "leaves the working directory"),
        (
            {"checkPointToSave": "a", "checkPointToLoad": "../a"},
            "checkPointToLoad",
            "leaves the working directory",
        ),
        ({"checkPointInterval": 5}, "checkPointInterval", "needs checkPointToSave"),
        (
            {"checkPointToSave": "a", "checkPointInterval": 0},
            "checkPointInterval",
            "a number above 0",
        ),
        ({"evaluationOutput": "../out.json"}, "evaluationOutput", "inside the working directory"),
        ({"evaluationOutput": "input.json"}, "evaluationOutput", "name of evaluationInput already"),
        ({"evaluationMetrics": "metrics.jsonl"}, "evaluationMetrics", "the metrics lines already"),
        ({"evaluationContainer": "-v /:/x img"}, "evaluationContainer", "expected an image"),
        ({"seed": -1}, "seed", "expected a whole number from 0"),
        ({"site": ["../x"]}, "site", "names"),
        ({"sampler": "skpot"}, "sampler.name", "did you mean 'skopt'?"),
        ({"sampler": {"name": "skopt", "options": {"base_estimator": "X"}}}, *("", "")),
        ({"payload": 3}, "payload", "expected an object"),
        ({"payload": {"gpus": 1}}, "payload.gpus", "is not a known key"),
        ({"payload": {"gpus_per_node": 1.5}}, "payload.gpus_per_node", "a share below 1"),
        ({"payload": {"gpus_per_node": -1}}, "payload.gpus_per_node", "a number from 0"),
        ({"payload": {"nodes": 0}}, "payload.nodes", "a whole number from 1"),
        ({"payload": {"memory": "8 gigs"}}, "payload.memory", "a size with its unit"),
        ({"payload": {"memory": 1000}}, "payload.memory", "number of megabytes is memory_mb"),
        ({"payload": {"min_nodes": 2}}, "payload.min_nodes", 'expected "elastic": {"min_nodes"'),
        ({"payload": {"expected_minutes": 1e6}}, "payload.expected_minutes", "at most 527040 (a"),
        ({"payload": {"memory": "8GB", "memory_mb": 1}}, "payload.memory_mb", "give one of them"),
        ({"payload": {"elastic": 4}}, "payload.elastic", "expected {"),
        (
            {"payload": {"elastic": {"min_nodes": 1, "max_nodes": 4, "max": 4}}},
            "payload.elastic.max",
            "known are max_nodes, min_nodes",
        ),
        (
            {"payload": {"elastic": {"min_nodes": 4, "max_nodes": 2}}},
            "payload.elastic.min_nodes",
            "is above max_nodes (2)",
        ),
        (
            {"payload": {"elastic": {"min_nodes": 0, "max_nodes": 2}}},
            "payload.elastic.min_nodes",
            "expected a whole number",
        ),
        (
            {"payload": {"elastic": {"min_nodes": 1, "max_nodes": 2}, "start": "single"}},
            "payload.start",
            "and elastic",
        ),
        (
            {"payload": {"nodes": 2, "start": "ssh"}},
            "payload.start",
            "one of single, processes, mpi",
        ),
        ({"payload": {"start": "single", "ranks_per_node": 2}}, "payload.ranks_per_node", "use"),
        ({"payload": {"environment": {"A-B": "x"}}}, "payload.environment.A-B", "is not a name"),
        ({"payload": {"environment": {"A": 1}}}, "payload.environment.A", "expected a text"),
        (
            {"payload": {"environment": {"HARVESTER_X": "1"}}},
            "payload.environment.HARVESTER_X",
            "the harvester's own",
        ),
        ({"payload": {"keep_output": "never"}}, "payload.keep_output", "one of failures, always"),
        ({"payload": {"contract": "pilot"}}, "payload.contract", "one of idds, runhpo"),
        ({"payload": {"warn_signal": "SIGKILL"}}, "payload.warn_signal", "one of SIGUSR1"),
        (
            {"payload": {"expected_minutes": 9, "max_minutes": 3}},
            "payload.expected_minutes",
            "above max_minutes",
        ),
        ({"segmentSpecFile": "none.json"}, "segmentSpecFile", "cannot be read"),
    ],
)
def test_a_bad_value_is_named_by_file_key_and_expectation(
    tmp_path: Path, changes: dict[str, Any], key: str, words: str
) -> None:
    if key == "":
        key, words = "sampler.options.base_estimator", "one of GP, RF, ET"
    found = problems_of(write_search(tmp_path, **changes))
    assert list(found) == [key]
    assert found[key].startswith("config.json")
    assert words in found[key]


def test_problems_of_all_files_come_at_once(tmp_path: Path) -> None:
    path = write_search(tmp_path, maxPoints=-1, wrong=1, payload={"nodes": 0})
    (tmp_path / "space.json").write_text('{"lr": {"method": "nope"}}')
    with pytest.raises(InputError) as caught:
        load_task(path)
    assert [(problem.file, problem.key) for problem in caught.value.problems] == [
        ("config.json", "wrong"),
        ("config.json", "maxPoints"),
        ("config.json", "payload.nodes"),
        ("space.json", "lr.method"),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "config.json:1: is not JSON"),
        ("[]", "expected a JSON object"),
        ('{"maxPoints": 1,\n "maxPoints": 2}', "the key 'maxPoints' is there twice"),
        ("[" * 100_000, "config.json: is nested too deeply"),
        ('{"payload": ' * 20_000, "config.json: is nested too deeply"),
        (f'{{"maxPoints": {"9" * 6000}}}', "maxPoints: got Infinity; expected a finite number"),
        (f'{{"seed": -{"9" * 600}}}', "seed: got -99999999"),
        (
            '{"evaluationExec": "true", "searchSpace": {}, "seed": NaN}',
            "seed: got NaN; expected a finite number",
        ),
        ("\udcff", "is not JSON"),
    ],
)
def test_a_configuration_that_is_no_sound_json_is_refused(
    tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "config.json"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(InputError) as caught:
        load_task(path)
    assert words in str(caught.value)


def test_a_missing_configuration_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json: cannot be read: No such file"):
        load_task(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("command", "script"),
    [
        ("./run.sh", "./run.sh"),
        ("run.sh --lr 3", "run.sh"),
        ("bash -x ./sub/run.sh a b", "./sub/run.sh"),
        ("OMP_NUM_THREADS=1 python3.11 -u train.py", "train.py"),
        ("/usr/bin/python3 train.py > log 2>&1", "train.py"),
        ("python train.py && echo done", "train.py"),
        ("python -m train", None),
        ("python -c 'import x'", None),
        ("bash -c './run.sh'", None),
        ("/opt/program", None),
        ("cd sub && ./run.sh", None),
        ("echo hi", None),
        ("python %SEGMENT_NAME.py", None),
        ("bash $HOME/run.sh", None),
        ("echo 'open quote", None),
        ("", None),
    ],
)
def test_the_users_script_is_found_where_it_is_evident(command: str, script: str | None) -> None:
    assert local_script(command) == script


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ('python train.py --name "a b', 'line 1, column 24: the quote " is never closed'),
        ("echo a\necho 'b", "line 2, column 6: the quote ' is never closed"),
        ("echo `date", "line 1, column 6: the quote ` is never closed"),
        ("echo $(date", "line 1: unexpected EOF while looking for matching `)'"),
        ("if true; then bash run.sh", "line 1: syntax error: unexpected end of file"),
        ("bash run.sh )", "line 1: syntax error near unexpected token `)'"),
        ("bash run.sh |", "line 1: syntax error: unexpected end of file"),
    ],
)
def test_a_command_that_no_shell_can_parse_is_refused_with_the_place(
    tmp_path: Path, command: str, words: str
) -> None:
    found = problems_of(write_search(tmp_path, evaluationExec=command))
    assert set(found) == {"evaluationExec"}
    assert f"config.json: evaluationExec: got {json.dumps(command)}" in found["evaluationExec"]
    assert words in found["evaluationExec"]


@pytest.mark.parametrize(
    "command",
    [
        'bash run.sh "it\'s" \'say "hi"\' \\" ${HOME:-x}',
        'cat <<END\nan open " quote\nEND',
        "[[ -e run.sh ]] && x=(1 2) && diff <(true) <(true)",
        "bash run.sh \"$(printf '%s\"' x)\" # isn't",
    ],
)
def test_a_command_of_any_shells_grammar_is_taken(tmp_path: Path, command: str) -> None:
    assert load_task(write_search(tmp_path, evaluationExec=command)).command == command


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"config": {"evaluationExec": "true " + "x" * 70_000}}, "evaluationExec"),
        (
            {"files": [{"name": f"{n}.py", "sha256": f"{n:064}", "size": 1} for n in range(700)]},
            "files",
        ),
        ({"segments": [{"name": "a", "files": [f"{n:09}" for n in range(9_000)]}]}, "segments"),
    ],
)
def test_what_fits_no_record_of_the_file_protocol_is_refused_by_its_largest_part(
    change: dict[str, Any], key: str
) -> None:
    document = {"name": "n", "config": {"evaluationExec": "true"}, "search_space": SPACE}
    with pytest.raises(InputError) as caught:
        TaskDefinition.from_document({**document, "files": [], **change})
    (problem,) = caught.value.problems
    assert problem.key == key
    assert "expected at most 61440" in problem.expected


def test_a_bare_name_in_a_container_may_be_a_program_of_the_image() -> None:
    assert local_script("train.py", in_container=True) is None
    assert local_script("python train.py", in_container=True) == "train.py"


# --- segments ---


def write_segments(directory: Path, segments: Any, **more: Any) -> Path:
    (directory / "segments.json").write_text(json.dumps(segments))
    command = "python train.py %SEGMENT_NAME"
    return write_search(directory, segmentSpecFile="segments.json", evaluationExec=command, **more)


def test_segments_have_their_files_and_share_or_own_a_space(tmp_path: Path) -> None:
    path = write_segments(tmp_path, [{"name": "barrel", "files": ["/data/b"]}, {"name": "endcap"}])
    task = load_task(path)
    assert (task.total_points, task.charge_limit) == (20, 40)
    assert [space.to_json() for space in task.spaces] == [SPACE, SPACE]
    specs = payload_specs(task)
    assert {name: spec.training_files for name, spec in specs.items()} == {
        "barrel": ("/data/b",),
        "endcap": (),
    }
    assert specs["barrel"].payload_id != specs["endcap"].payload_id
    other = {"x": {"method": "fixed", "dimension": {"value": 1}}}
    models = [{"model_id": 1, "search_space": other}, {"model_id": 0, "search_space": SPACE}]
    (tmp_path / "space.json").write_text(json.dumps(models))
    assert [space.to_json() for space in load_task(path).spaces] == [SPACE, other]


@pytest.mark.parametrize(
    ("segments", "key", "words"),
    [
        ([], "", "expected a list"),
        ([{"name": "a/b"}], "[0].name", "letters, digits"),
        ([{"name": "$(rm)"}], "[0].name", "letters, digits"),
        ([{"name": "a"}, {"name": "a"}], "[1].name", "is there twice"),
        ([{"name": "a", "files": "x"}], "[0].files", "expected a list"),
        ([{"name": "a", "datasets": ["d"]}], "[0].datasets", "not implemented yet"),
        ([{"name": "a", "file": []}], "[0].file", "did you mean 'files'?"),
        ([3], "[0]", "expected"),
    ],
)
def test_a_bad_segment_is_named(tmp_path: Path, segments: Any, key: str, words: str) -> None:
    found = problems_of(write_segments(tmp_path, segments))
    assert found[key].startswith("segments.json:")
    assert words in found[key]


def test_models_must_match_the_segments(tmp_path: Path) -> None:
    path = write_segments(tmp_path, [{"name": "a"}, {"name": "b"}])
    models = [{"model_id": 7, "search_space": SPACE}, {"model_id": "a", "search_space": {"x": 1}}]
    (tmp_path / "space.json").write_text(json.dumps(models))
    with pytest.raises(InputError) as caught:
        load_task(path)
    assert [(problem.key, problem.file) for problem in caught.value.problems] == [
        ("[0].model_id", "space.json"),
        ("[1].search_space.x", "space.json"),
        ("", "space.json"),
    ]


# --- the document from the wire ---


@pytest.mark.fault("content damaged or forged")
@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"extra": 1}, "extra"),
        ({"name": ""}, "name"),
        ({"config": 3}, "config"),
        ({"files": [{"name": "../x.py", "sha256": "0" * 64, "size": 1}]}, "files[0].name"),
        ({"files": [{"name": "/x.py", "sha256": "0" * 64, "size": 1}]}, "files[0].name"),
        ({"files": [{"name": "x.py", "sha256": "Z", "size": 1}]}, "files[0].sha256"),
        ({"files": [{"name": "x.py", "sha256": "0" * 64, "size": -1}]}, "files[0].size"),
        ({"files": [{"name": "x.py", "sha256": "0" * 64, "size": 10**8}]}, "files"),
        ({"files": [{"name": "x.py"}]}, "files[0]"),
        ({"files": [{"name": "output.json", "sha256": "0" * 64, "size": 1}]}, "files"),
        ({"files": [{"name": n, "sha256": "0" * 64, "size": 1} for n in ("a.py", "a.py/b.py")]},
         "files"),
        ({"site": "A"}, "site"),
        ({"seed": 2**70}, "seed"),
        ({"search_space": None}, ""),
        ({"payload": []}, "payload"),
    ],
)  # fmt: skip
def test_a_forged_document_is_refused(change: dict[str, Any], key: str) -> None:
    document = {
        "name": "n",
        "config": {"evaluationExec": "true"},
        "search_space": SPACE,
        "files": [],
        **change,
    }
    with pytest.raises(InputError) as caught:
        TaskDefinition.from_document(document)
    assert key in [problem.key for problem in caught.value.problems]


@pytest.mark.parametrize("document", [None, [], "x", {"name": float("nan")}])
def test_a_document_that_is_no_object_is_refused(document: Any) -> None:
    with pytest.raises(InputError):
        TaskDefinition.from_document(document)


# --- what the runner gets ---


def test_equal_payloads_have_equal_ids_and_survive_their_json_form(tmp_path: Path) -> None:
    path = write_search(tmp_path, checkPointToSave="m.pt", payload={"max_minutes": 2})
    first, again = payload_spec(load_task(path)), payload_spec(load_task(path))
    assert first == again
    assert from_fields(type(first), json.loads(json.dumps(to_fields(first)))) == first
    assert first.time_limit_s == 120
    (tmp_path / "train.py").write_text("changed")
    assert payload_spec(load_task(path)).payload_id != first.payload_id


# --- advice ---


def test_one_at_a_time_is_said_to_keep_gpus_idle(tmp_path: Path) -> None:
    path = write_search(tmp_path)
    assert "stay idle" in warnings(load_task(path))[0]
    assert "holds 4 of these payloads: 3 places stay idle" in warnings(load_task(path), site())[0]
    assert warnings(load_task(write_search(tmp_path, nParallelEvaluation=4)), site()) == ()


def test_options_without_effect_and_short_limits_are_told(tmp_path: Path) -> None:
    space = {"x": {"method": "categorical", "dimension": {"categories": [1, 2]}}}
    config = {"evaluationExec": "true", "searchSpace": space, "nParallelEvaluation": 2}
    path = write_search(tmp_path, config, architecture="x86", noEmail=False, maxEvaluationJobs=5)
    told = warnings(load_task(path))
    assert [sentence.split(" ")[0] for sentence in told] == [
        "architecture",
        "maxEvaluationJobs",
        "the",
    ]
    assert "at most 2 points and maxPoints is 10" in told[2]


@pytest.mark.parametrize(
    ("changes", "where", "key", "words"),
    [
        ({"payload": {"gpus_per_node": 8}}, {}, "payload.gpus_per_node", "at most 4"),
        ({"payload": {"cores": 64}}, {}, "payload.cores", "at most 32"),
        ({"payload": {"memory": "1TB"}}, {}, "payload.memory", 'got "1TB"; expected at most 10'),
        ({"payload": {"memory_mb": 200_000}}, {}, "payload.memory_mb", "at most 100000 MB"),
        ({"payload": {"cores_per_node": 64}}, {}, "payload.cores_per_node", "at most 32"),
        (
            {"payload": {"elastic": {"min_nodes": 9, "max_nodes": 12}}},
            {},
            "payload.elastic.min_nodes",
            "got 9; expected at most 8 nodes",
        ),
        (
            {"payload": {"nodes": 9}},
            {},
            "payload.nodes",
            "at most 8 nodes (queue short, 1-8 nodes: 60 min)",
        ),
        (
            {"payload": {"expected_minutes": 61}},
            {},
            "payload.expected_minutes",
            "queue short, 1-8 nodes: 60 min",
        ),
        ({"evaluationContainer": "img"}, {}, "evaluationContainer", "no container runtime"),
        ({"site": "elsewhere"}, {}, "site", "expected here"),
    ],
)
def test_what_a_site_cannot_give_is_refused(
    tmp_path: Path, changes: dict[str, Any], where: dict[str, Any], key: str, words: str
) -> None:
    task = load_task(write_search(tmp_path, **changes))
    with pytest.raises(InputError) as caught:
        check_against_site(task, site(**where), file="config.json")
    assert [problem.key for problem in caught.value.problems] == [key]
    assert words in str(caught.value)
    assert str(caught.value).startswith("config.json: site here:")


def test_a_long_payload_with_checkpoints_suits_a_short_queue(tmp_path: Path) -> None:
    payload = {"expected_minutes": 600}
    task = load_task(write_search(tmp_path, payload=payload, checkPointToSave="m.pt"))
    check_against_site(task, site())


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_named_with_its_own_file_and_key(
    tmp_path: Path, number: str
) -> None:
    path = write_search(tmp_path)
    dimension = f'{{"low": 0, "high": {number}}}'
    (tmp_path / "space.json").write_text(
        f'{{"x": {{"method": "uniform", "dimension": {dimension}}}}}'
    )
    told = problems_of(path)
    assert list(told) == ["x.dimension.high"]
    assert told["x.dimension.high"].startswith("space.json: x.dimension.high: got ")
    assert told["x.dimension.high"].endswith("; expected a finite number")
