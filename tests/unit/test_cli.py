"""The command line as people and scripts meet it: sentences, exit codes, JSON."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harvester import __version__
from harvester.cli.root import COMMANDS, run
from payload_runner.files import RealFiles
from payload_runner.logfile import LogWriter
from payload_runner.protocol import AttemptEnded, SpoolPaths, to_fields

SPACE = {"lr": {"method": "uniform", "dimension": {"low": 0.0, "high": 1.0}}}
SITE = """\
extends: local
name: small
"""


class Outcome:
    """What one command left."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    for name in ("state", "config", "cache"):
        monkeypatch.setenv(f"XDG_{name.upper()}_HOME", str(tmp_path / name))
    for name in ("HARVESTER_SITE", "HARVESTER_CENTRAL", "HARVESTER_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def call(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = run(arguments)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


def search(directory: Path, **config: Any) -> str:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "space.json").write_text(json.dumps(SPACE))
    (directory / "eval.sh").write_text("#!/bin/sh\n")
    given = {"evaluationExec": "sh eval.sh", "searchSpaceFile": "space.json", **config}
    path = directory / "config.json"
    path.write_text(json.dumps({key: value for key, value in given.items() if value is not None}))
    return str(path)


# --- usage ---


def test_version_is_one_line(cli: Cli) -> None:
    assert cli("--version").out == f"harvester {__version__}\n"


@pytest.mark.parametrize("flags", [[], ["-v"]])
def test_control_characters_of_an_error_reach_no_terminal(cli: Cli, flags: list[str]) -> None:
    found = cli(*flags, "task", "submit", "--loadJson", "absent\x1b]0;owned\x07")
    assert found.code == 65
    assert "owned" in found.err
    assert "cannot be read: No such file" in found.err
    assert ("Traceback" in found.err) is bool(flags)
    assert found.err.replace("\n", "").isprintable()


def test_help_lists_every_command(cli: Cli) -> None:
    found = cli("--help")
    assert found.code == 0
    assert all(f"\n  {name} " in found.out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(cli: Cli, name: str) -> None:
    found = cli(name, "--help")
    assert (found.code, found.err) == (0, "")
    assert "Usage: harvester" in found.out


@pytest.mark.parametrize(
    "arguments",
    [
        ["stauts"],
        ["status", "--nope"],
        ["task", "show"],
        ["task", "results", "1", "--csv", "--json"],
        ["task", "results", "1", "--limit", "0"],
        ["central", "serve", "--port", "70000"],
        ["central", "token", "create", "--user", "a", "--role", "king", "--out", "x"],
        ["point", "logs", "17"],
        ["point", "show", "1.2.3"],
        ["completion", "tcsh"],
        ["task", "submit", "--maxPoints", "many"],
    ],
)
def test_wrong_command_line_is_64_and_prints_nothing_on_stdout(
    cli: Cli, arguments: list[str]
) -> None:
    found = cli(*arguments)
    assert (found.code, found.out) == (64, "")
    assert "Traceback" not in found.err
    assert found.err


def test_misspelt_command_is_answered_with_the_nearest(cli: Cli) -> None:
    assert "'status'" in cli("stauts").err


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_is_a_script_for_that_shell(cli: Cli, shell: str) -> None:
    assert "_HARVESTER_COMPLETE" in cli("completion", shell).out


# --- errors ---


def test_fault_of_ours_is_70_with_a_traceback_only_on_request(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError("by hand")

    monkeypatch.setattr("harvester.cli.status.find_states", fail)
    quiet, loud = cli("status"), cli("-v", "status")
    assert (quiet.code, loud.code) == (70, 70)
    assert "ZeroDivisionError: by hand" in quiet.err
    assert "Traceback" not in quiet.err
    assert "Traceback" in loud.err


def test_interrupt_is_130(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("harvester.cli.status.find_states", interrupt)
    assert cli("status").code == 130


@pytest.mark.fault("disk full at the login node")
def test_full_disk_is_74_and_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise OSError(28, "No space left on device", "/scratch/x")

    monkeypatch.setattr("harvester.cli.status.find_states", fail)
    found = cli("status")
    assert (found.code, found.err) == (74, "harvester: /scratch/x: No space left on device\n")


# --- site ---


def test_site_list_and_show_answer_in_json(cli: Cli) -> None:
    assert "local" in [item["name"] for item in cli("site", "list", "--json").json["sites"]]
    shown = cli("site", "show", "local", "--json").json
    assert (shown["name"], shown["local"]["nodes"]) == ("local", 2)
    assert shown["layers"][0].endswith("local.yaml")


def test_site_show_names_the_files_it_read(cli: Cli) -> None:
    Path("small.yaml").write_text(SITE)
    shown = cli("site", "show", "small").out
    assert "work/small.yaml" in shown
    assert "site_configs/local.yaml" in shown


def test_site_validate_is_78_with_file_line_key_and_value(cli: Cli) -> None:
    Path("small.yaml").write_text(f"{SITE}lcoal: {{nodes: 3}}\nnode: {{gpus: -2}}\n")
    found = cli("site", "validate", "small", "local", "--json")
    assert found.code == 78
    assert "small.yaml:3: lcoal: unknown key; did you mean local?" in found.err
    assert "small.yaml:4: node.gpus: got -2; expected at least 0" in found.err
    assert [item["line"] for item in found.json["problems"]] == [3, 4]
    assert found.json["valid"] is False


def test_site_validate_of_a_good_file_is_0(cli: Cli) -> None:
    Path("small.yaml").write_text(SITE)
    assert cli("site", "validate", "./small.yaml", "local").code == 0


def test_unknown_site_is_78_with_the_nearest(cli: Cli) -> None:
    found = cli("site", "show", "lokal")
    assert (found.code, found.out) == (78, "")
    assert "did you mean local?" in found.err


def test_site_schema_is_json(cli: Cli) -> None:
    assert cli("site", "schema").json["title"] == "Site"


SLURM = """\
extends: slurm
account: abc
directives: ["--constraint=gpu"]
spool: {path: /scratch/h}
runner: {prologue: ["module load python"]}
"""


def test_site_render_shows_script_and_submit_command(cli: Cli) -> None:
    Path("mine.yaml").write_text(SLURM)
    found = cli("site", "render", "mine", "--nodes", "2", "--walltime", "90m", "--json").json
    lines = found["script"].splitlines()
    assert lines[0] == "#!/bin/bash"
    assert {"#SBATCH --nodes=2", "#SBATCH --account=abc", "#SBATCH --constraint=gpu"} <= {*lines}
    assert "module load python" in lines
    assert lines[-1].startswith("exec python3 /scratch/h/runner/payload_runner.pyz lead /scratch/h")
    assert found["submit"][0] == "sbatch"
    assert (found["queue"], found["walltime_s"]) == ("batch", 5400)


def test_site_render_of_a_local_site_needs_no_command(cli: Cli) -> None:
    found = cli("site", "render", "local")
    assert (found.code, found.err) == (0, "")
    assert found.out.startswith("#!/bin/bash\n")


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["--nodes", "3"], 65, "nodes: got 3; expected one of the bins 1-2 (local)"),
        (["--walltime", "2h"], 65, "expected at most 60 min, the bin of 1-2 nodes in local"),
        (["--queue", "gpu"], 65, "queue: got 'gpu'; expected local"),
        (["--walltime", "soon"], 64, "--walltime: got 'soon'; expected a duration"),
        (["--nodes", "0"], 64, "--nodes"),
    ],
)
def test_shape_that_no_queue_takes_is_refused_with_the_bin(
    cli: Cli, arguments: list[str], code: int, expected: str
) -> None:
    found = cli("site", "render", "local", *arguments)
    assert (found.code, found.out) == (code, "")
    assert expected in found.err


# --- task submit --dry-run ---


def test_dry_run_shows_the_search_and_needs_no_service(cli: Cli) -> None:
    found = cli("task", "submit", "--loadJson", search(Path("s"), maxPoints=7), "--dry-run")
    assert found.code == 0
    assert "7, 1 at a time" in found.out
    assert "eval.sh" in found.out
    assert "nParallelEvaluation is 1" in found.err


def test_dry_run_in_json_carries_document_payload_and_warnings(cli: Cli) -> None:
    path = search(Path("s"), nParallelEvaluation=4)
    found = cli("task", "submit", "--loadJson", path, "--dry-run", "--json", "--site", "local").json
    assert found["dry_run"] is True
    assert found["task"]["config"]["nParallelEvaluation"] == 4
    assert found["task"]["site"] == ["local"]
    assert found["payloads"][0]["command"] == "sh eval.sh"
    assert isinstance(found["warnings"], list)


def test_file_wins_over_the_command_line_as_with_phpo(cli: Cli) -> None:
    path = search(Path("s"), maxPoints=7)
    found = cli("task", "submit", "--loadJson", path, "--dry-run", "--maxPoints", "9", "--json")
    assert found.json["task"]["config"]["maxPoints"] == 7
    told = "maxPoints is 7 in config.json and 9 on the command line: the file wins, as with phpo"
    assert told in found.json["warnings"]
    assert f"warning: {told}" in found.err


def test_command_line_counts_where_the_file_says_nothing_or_the_same(cli: Cli) -> None:
    path = search(Path("s"), maxPoints=7, outDS="")
    words = ["--maxPoints", "7", "--outDS", "mine", "--site", "local"]
    found = cli("task", "submit", "--loadJson", path, "--dry-run", *words, "--json")
    assert found.json["task"]["name"] == "mine"
    assert "the file wins" not in found.err


def test_empty_name_of_a_file_is_told_of_its_option(cli: Cli) -> None:
    found = cli("task", "submit", "--loadJson", "", "--dry-run")
    assert (found.code, found.out) == (64, "")
    assert "'--loadJson': expected the name of a file, got an empty text" in found.err


def test_linked_directory_is_said_to_stay_at_home(cli: Cli) -> None:
    path = search(Path("s"))
    Path("s/lib").symlink_to("/usr")
    found = cli("task", "submit", "--loadJson", path, "--dry-run")
    assert found.code == 0
    assert "warning: lib is a link to a directory: no file below it travels" in found.err


@pytest.mark.parametrize("names", ["", " , "])
def test_no_name_of_a_site_is_no_unchecked_site(cli: Cli, names: str) -> None:
    found = cli("task", "submit", "--loadJson", search(Path("s")), "--dry-run", "--site", names)
    assert (found.code, found.out) == (64, "")
    assert f"--site: got {names!r}; expected names of sites" in found.err


def test_search_can_be_given_by_options_alone(cli: Cli) -> None:
    search(Path())
    Path("config.json").unlink()
    words = ["--evaluationExec", "sh eval.sh", "--searchSpaceFile", "space.json", "--noSubmit"]
    found = cli("task", "submit", *words, "--nParallelEvaluation", "3", "--json").json
    assert found["task"]["config"]["nParallelEvaluation"] == 3
    assert [file["name"] for file in found["task"]["files"]] == ["eval.sh", "space.json"]


def test_no_submit_in_the_file_submits_nothing(cli: Cli) -> None:
    found = cli("task", "submit", "--loadJson", search(Path("s"), noSubmit=True))
    assert found.code == 0
    assert "nothing was sent" in found.out
    assert "noSubmit" not in found.err


def test_phpos_outcome_file_is_written_and_its_place_checked_first(cli: Cli) -> None:
    path = search(Path("s"), dumpJson="outcome.json")
    assert cli("task", "submit", "--loadJson", path, "--dry-run").code == 0
    outcome = {"returnCode": 0, "jediTaskID": None, "task": None}
    assert json.loads(Path("outcome.json").read_text()) == outcome
    path = search(Path("s"), dumpJson="nowhere/outcome.json")
    found = cli("task", "submit", "--loadJson", path, "--dry-run")
    assert (found.code, found.out) == (65, "")
    assert "dumpJson: got 'nowhere/outcome.json'" in found.err


def test_phpos_short_flags_are_taken_and_said_to_have_no_effect(cli: Cli) -> None:
    found = cli("task", "submit", "--loadJson", search(Path("s")), "--dry-run", "-3", "-v")
    assert found.code == 0
    assert "python3 has no effect here" in found.err
    assert "verbose has no effect here" in found.err


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"maxPonits": 5}, "maxPoints"),
        ({"maxPoints": 0}, "maxPoints"),
        ({"maxPoints": "many"}, "maxPoints"),
        ({"evaluationExec": "sh nowhere.sh"}, "nowhere.sh"),
        ({"evaluationExec": None}, "evaluationExec"),
        ({"searchSpaceFile": "gone.json"}, "gone.json"),
        ({"checkPointToSave": "../../etc"}, "checkPointToSave"),
        ({"steeringExec": "run it"}, "steeringExec"),
        ({"trainingDS": "a.b.c"}, "trainingDS"),
        ({"payload": {"gpus_per_node": -1}}, "gpus_per_node"),
        ({"sampler": "skpot"}, "skopt"),
    ],
)
def test_wrong_search_is_65_and_named(cli: Cli, config: dict[str, Any], expected: str) -> None:
    found = cli("task", "submit", "--loadJson", search(Path("s"), **config), "--dry-run")
    assert (found.code, found.out) == (65, "")
    assert expected in found.err
    assert "Traceback" not in found.err


@pytest.mark.parametrize("text", ["", "{", "[]", '{"maxPoints": NaN}', '{"a": 1, "a": 2}'])
def test_config_that_is_no_json_object_is_65(cli: Cli, text: str) -> None:
    Path("config.json").write_text(text)
    found = cli("task", "submit", "--loadJson", "config.json", "--dry-run")
    assert (found.code, found.out) == (65, "")
    assert "config.json" in found.err


def test_payload_larger_than_the_site_is_65_and_names_site_key_and_limit(cli: Cli) -> None:
    path = search(Path("s"), payload={"gpus_per_node": 8})
    found = cli("task", "submit", "--loadJson", path, "--dry-run", "--site", "local")
    assert found.code == 65
    assert "config.json: site local: payload.gpus_per_node: got 8; expected at most 2" in found.err


def test_submission_shows_its_forecast_and_which_budget_it_passes(cli: Cli) -> None:
    shape = {"gpus_per_node": 1, "expected_minutes": 30, "node_hours": 10}
    path = search(Path("s"), maxPoints=100, payload=shape)
    found = cli("task", "submit", "--loadJson", path, "--dry-run", "--site", "local", "--json")
    assert found.code == 0
    assert found.json["node_hours"] == {"local": 25.0}
    assert "forecast for local: about 25 node-hours, 100 evaluations of 30 min" in found.err
    assert "payload.node_hours (10) pays for about 40 evaluations only" in found.json["warnings"]


def test_bare_search_for_a_containers_only_site_is_65(cli: Cli) -> None:
    Path("only.yaml").write_text("extends: local\ncontainers: {runtime: apptainer, only: true}\n")
    path = search(Path("s"))
    found = cli("task", "submit", "--loadJson", path, "--dry-run", "--site", "only")
    assert found.code == 65
    assert "evaluationContainer: expected an image: this site runs containers only" in found.err


def test_site_show_says_where_values_come_from(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch/u")
    Path("mine.yaml").write_text("extends: polaris\naccount: abc\n")
    shown = cli("site", "show", "mine").out
    assert "ALCF user-guides docs/polaris/running-jobs (2026-08):" in shown
    assert "UNSOURCED, from general knowledge; check with the centre:" in shown
    assert f"set in {Path('mine.yaml').absolute()}:\n      account" in shown
    assert "compute nodes reach the outside through a proxy" in shown
    assert "prod (routes)" in shown


def test_dry_run_against_an_unknown_site_is_78(cli: Cli) -> None:
    path = search(Path("s"))
    assert cli("task", "submit", "--loadJson", path, "--dry-run", "--site", "lokal").code == 78


# --- what the daemon published ---


def published(tmp_path: Path, **status: Any) -> Path:
    state_dir, spool = tmp_path / "state/harvester/sites/local", tmp_path / "spool"
    for directory in (state_dir, spool):
        directory.mkdir(parents=True)
    (state_dir / "site.json").write_text(json.dumps({"spool": str(spool), "site_file": "local"}))
    whole = {"updated": time.time(), "host": os.uname().nodename, "pid": os.getpid(), **status}
    (spool / "status.json").write_text(json.dumps(whole))
    return spool


ALLOCATIONS = [
    {"tag": "haaaaa-aaaaaa", "state": "ended", "nodes": 1},
    {"tag": "haaaaa-bbbbbb", "state": "running", "job_id": "17", "nodes": 2},
    {"tag": "haaaaa-cccccc", "state": "submitting", "job_id": None, "nodes": 2},
]


def test_status_without_any_state_says_so_and_is_0(cli: Cli) -> None:
    found = cli("status")
    assert found.code == 0
    assert "No site has state" in found.out
    assert cli("status", "--json").json == {"sites": []}


def test_status_of_one_site_in_json(cli: Cli, tmp_path: Path) -> None:
    published(tmp_path, state="running")
    (site,) = cli("status", "--site", "local", "--json").json["sites"]
    assert (site["site"], site["health"]) == ("local", "alive")


def test_status_of_an_unknown_site_is_66(cli: Cli) -> None:
    assert cli("status", "--site", "there").code == 66


def test_alloc_list_leaves_out_what_ended_unless_asked(cli: Cli, tmp_path: Path) -> None:
    published(tmp_path, allocations=ALLOCATIONS)
    live = cli("alloc", "list", "--json").json["allocations"]
    assert [item["tag"] for item in live] == ["haaaaa-bbbbbb", "haaaaa-cccccc"]
    assert "haaaaa-aaaaaa" in cli("alloc", "list", "--all").out


def test_alloc_list_without_any_is_a_sentence(cli: Cli) -> None:
    assert cli("alloc", "list").out == "No allocations.\n"


def test_alloc_show_shows_what_runs_in_it(cli: Cli, tmp_path: Path) -> None:
    points = [{"attempt": "1.7.1.1", "tag": "haaaaa-bbbbbb", "node": "n1"}]
    published(tmp_path, allocations=ALLOCATIONS, points=points)
    assert "runs 1.7.1.1 on n1" in cli("alloc", "show", "haaaaa-bbbbbb").out
    assert cli("alloc", "show", "haaaaa-bbbbbb", "--json").json["points"] == points


def test_alloc_show_of_an_unknown_tag_is_66_and_names_known_ones(cli: Cli, tmp_path: Path) -> None:
    published(tmp_path, allocations=ALLOCATIONS)
    found = cli("alloc", "show", "hzzzzz-zzzzzz")
    assert found.code == 66
    assert "haaaaa-bbbbbb" in found.err


def test_alloc_cancel_dry_run_touches_nothing(cli: Cli, tmp_path: Path) -> None:
    published(tmp_path, allocations=ALLOCATIONS)
    found = cli("alloc", "cancel", "haaaaa-bbbbbb", "--dry-run")
    assert (found.code, found.out) == (0, "")
    assert "would cancel haaaaa-bbbbbb, job 17" in found.err


def test_alloc_that_has_ended_cannot_be_cancelled(cli: Cli, tmp_path: Path) -> None:
    published(tmp_path, allocations=ALLOCATIONS)
    found = cli("alloc", "cancel", "haaaaa-bbbbbb", "haaaaa-aaaaaa", "--dry-run")
    assert found.code == 69
    assert "haaaaa-aaaaaa" in found.err
    assert "has ended already" in found.err


def test_alloc_without_a_job_id_cannot_be_cancelled_yet(cli: Cli, tmp_path: Path) -> None:
    published(tmp_path, allocations=ALLOCATIONS)
    found = cli("alloc", "cancel", "haaaaa-cccccc")
    assert found.code == 69
    assert "has no job id yet" in found.err


def test_alloc_release_dry_run_takes_those_that_are_held(cli: Cli, tmp_path: Path) -> None:
    held = {**ALLOCATIONS[0], "tag": "haaaaa-dddddd", "state": "held", "job_id": "19"}
    published(tmp_path, allocations=[*ALLOCATIONS, held])
    found = cli("alloc", "release", "--all", "--dry-run")
    assert (found.code, found.out) == (0, "")
    assert found.err.strip() == "would release haaaaa-dddddd, job 19 at local"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("haaaaa-bbbbbb",), "runs already: nothing holds it"),
        (("haaaaa-aaaaaa",), "has ended already"),
        (("haaaaa-cccccc",), "has no job id yet"),
        ((), "name the allocations to release, or give --all"),
        (("haaaaa-bbbbbb", "--all"), "name the allocations to release, or give --all"),
    ],
)
def test_alloc_release_of_what_is_not_held_says_why_not(
    cli: Cli, tmp_path: Path, words: tuple[str, ...], why: str
) -> None:
    published(tmp_path, allocations=ALLOCATIONS)
    found = cli("alloc", "release", *words)
    assert found.code == 69
    assert why in found.err


def test_stop_and_start_make_and_remove_the_stop_file(cli: Cli, tmp_path: Path) -> None:
    spool = tmp_path / "state/harvester/sites/local/spool"
    assert cli("stop").code == 66
    spool.mkdir(parents=True)
    assert cli("stop", "--reason", "power cut").code == 0
    assert "power cut" in (spool / "STOP").read_text()
    assert (spool / "STOP").stat().st_mode & 0o777 == 0o600
    assert "already" in cli("stop").out
    assert cli("start").code == 0
    assert not (spool / "STOP").exists()
    assert "nothing to take back" in cli("start").out


def test_point_logs_print_what_the_payload_wrote(cli: Cli, tmp_path: Path) -> None:
    spool = published(tmp_path)
    ended = AttemptEnded(
        attempt="1.7.1.1",
        state="failed",
        blame="point",
        reason="exit code 3",
        stdout="hello\x1b[2J\nworld\n",
    )
    write_events(spool, [ended, AttemptEnded(attempt="1.77.1.1", state="succeeded")])
    found = cli("point", "logs", "1.7")
    assert found.code == 0
    assert "attempt 1.7.1.1 in haaaaa-bbbbbb: failed" in found.out
    assert "hello?[2J\nworld" in found.out
    assert "1.77" not in found.out
    (attempt,) = cli("point", "logs", "1.7", "--json").json["attempts"]
    assert attempt["reason"] == "exit code 3"


def test_point_logs_of_a_point_nobody_ran_is_66(cli: Cli, tmp_path: Path) -> None:
    published(tmp_path)
    assert cli("point", "logs", "1.7").code == 66


def write_events(spool: Path, ends: list[AttemptEnded]) -> None:
    files = RealFiles()
    incarnation = SpoolPaths(spool).allocation("haaaaa-bbbbbb").incarnation("17", 0)
    files.make_dir(incarnation.root)
    writer = LogWriter(files, incarnation.events("0-aaaa"), time.time, time.monotonic)
    for ended in ends:
        writer.append(ended.KIND, to_fields(ended))
    writer.close()


# --- tokens ---


def test_token_goes_to_a_new_private_file_only(cli: Cli, tmp_path: Path) -> None:
    words = ["central", "token", "create", "--user", "alice", "--role", "submit", "--out", "t"]
    made = cli(*words)
    token = Path("t").read_text().strip()
    assert made.code == 0
    assert token.count(".") == 2
    assert token not in made.out + made.err
    assert Path("t").stat().st_mode & 0o777 == 0o600
    again = cli(*words)
    assert again.code == 64
    assert Path("t").read_text().strip() == token


def test_image_for_a_site_without_containers_is_refused(cli: Cli) -> None:
    found = cli("image", "pull", "docker://x", "--site", "local")
    assert found.code == 78
    assert "site local: containers.runtime: expected the container runtime" in found.err


@pytest.mark.parametrize("name", ["-x", "/etc", "docker://", "a b"])
def test_image_name_that_cannot_be_meant_is_refused(cli: Cli, tmp_path: Path, name: str) -> None:
    site = tmp_path / "boxed.yaml"
    site.write_text(
        f"extends: local\nname: boxed\ncontainers: {{runtime: bwrap, image_dir: {tmp_path}/i}}\n"
    )
    found = cli("image", "pull", "--site", str(site), "--", name)
    assert (found.code, "expected an image such as" in found.err) == (64, True)
    assert cli("image", "list", "--site", str(site)).out == "No images.\n"


def test_image_that_is_not_at_the_site_is_told_at_submission(cli: Cli, tmp_path: Path) -> None:
    config = search(tmp_path / "search", evaluationContainer="docker://org/torch:2.1")
    site = tmp_path / "boxed.yaml"
    site.write_text(
        f"extends: local\nname: boxed\ncontainers: {{runtime: bwrap, image_dir: {tmp_path}/i}}\n"
    )
    words = ("task", "submit", "--loadJson", config, "--dry-run", "--site", str(site))
    told = "docker://org/torch:2.1 has not been brought to this site"
    first = cli(*words)
    assert (first.code, told in first.err) == (0, True), first.err
    assert "bring it with `harvester image pull docker://org/torch:2.1`" in first.err
    (tmp_path / "i" / "org_torch_2.1").mkdir(parents=True)
    assert told not in cli(*words).err
