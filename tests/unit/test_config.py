"""Site files: layering, checking, expansion and the cache of compiled forms."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from harvester import paths
from harvester.config import list_sites, load_site, load_site_file
from harvester.config_compile import compile_site
from harvester.errors import ConfigurationError

MINIMAL = """\
batch_system: slurm
account: abc
account_required: true
spool: {path: $SCRATCH/h}
node: {gpus: 4, cores: 32, memory: 256GB}
runner: {launcher: srun}
queues:
  - name: gpu
    bins:
      - {nodes: 1-8, walltime: "02:00:00"}
"""


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return {
        "HOME": str(tmp_path / "home"),
        "SCRATCH": "/scratch/u",
        "PSCRATCH": "/pscratch/u",
        "USER": "u",
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PATH": os.environ["PATH"],
    }


def write(text: str, name: str = "here.yaml", where: Path | None = None) -> Path:
    base = where or Path.cwd()
    base.mkdir(parents=True, exist_ok=True)
    path = base / name
    path.write_text(text)
    path.chmod(0o644)
    return path


def problems(text: str, environ: Mapping[str, str]) -> list[str]:
    path = write(text)
    with pytest.raises(ConfigurationError) as raised:
        compile_site(str(path), environ)
    assert all(problem.file == str(path) for problem in raised.value.problems)
    return [f"{item.line} {item.key}: {item.expected}" for item in raised.value.problems]


def test_shipped_local_site_works_for_anybody_with_nothing_set(
    environ: Mapping[str, str], tmp_path: Path
) -> None:
    site = load_site("local", {"HOME": str(tmp_path), "PATH": environ["PATH"]})
    state = tmp_path / ".local/state/harvester/sites/local"
    assert (site.batch_system, site.local.nodes, site.node.gpus) == ("local", 2, 2)
    assert (site.state_dir, site.spool, site.index) == (
        state,
        state / "spool",
        state / "index.sqlite",
    )


@pytest.mark.parametrize("path", sorted(paths.SHIPPED_SITES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_site_is_valid(path: Path, environ: Mapping[str, str]) -> None:
    assert compile_site(str(path), environ)["site"]["name"] == path.stem


def test_real_site_keeps_its_index_off_the_shared_file_system(environ: Mapping[str, str]) -> None:
    write(MINIMAL)
    site = load_site("here", environ)
    assert site.spool == Path("/scratch/u/h")
    assert site.state_dir == Path(environ["XDG_STATE_HOME"]) / "harvester/sites/here"
    assert site.index.parent == Path(f"/var/tmp/harvester-{os.getuid()}")
    assert site.node.memory_mb == 256_000
    assert site.queues[0].bins[0].walltime_max_s == 7200


def test_user_file_changes_single_keys_of_the_shipped_site_it_extends(
    environ: Mapping[str, str],
) -> None:
    mine = Path(environ["XDG_CONFIG_HOME"]) / "harvester/sites"
    write("extends: local\nlocal: {warn: 1s}\n", "local.yaml", mine)
    found = load_site_file("local", environ)
    assert found.layers == (mine / "local.yaml", paths.SHIPPED_SITES / "local.yaml")
    assert (found.site.local.warn_s, found.site.local.nodes) == (1.0, 2)


def test_problem_of_an_extended_file_names_that_file(environ: Mapping[str, str]) -> None:
    base = write(MINIMAL.replace("cores: 32", "cores: many"), "base.yaml")
    write("extends: base\naccount: other\n")
    with pytest.raises(ConfigurationError) as raised:
        compile_site("here", environ)
    (problem,) = raised.value.problems
    assert (problem.file, problem.line, problem.key) == (str(base), 5, "node.cores")


def test_site_that_extends_itself_is_refused(environ: Mapping[str, str]) -> None:
    write("extends: other\n", "here.yaml")
    write("extends: here\n", "other.yaml")
    with pytest.raises(ConfigurationError, match="this one would extend itself"):
        compile_site("here", environ)


def test_unknown_site_is_answered_with_the_nearest_name(environ: Mapping[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="did you mean local"):
        load_site("locla", environ)


def test_all_problems_come_at_once_with_line_key_and_value(environ: Mapping[str, str]) -> None:
    text = (
        MINIMAL.replace("cores: 32", "coers: 32")
        .replace("02:00:00", "2 hours")
        .replace("slurm", "slrum")
        .replace("account: abc", "acount: abc")
    )
    assert problems(text, environ) == [
        "None account: expected your project's account: this centre requires one",
        "1 batch_system: expected 'local', 'slurm', 'gridengine', 'pbs', 'lsf' or 'flux'; "
        "did you mean slurm?",
        "2 acount: unknown key; did you mean account?",
        "5 node.cores: expected this key; it has no default",
        "5 node.coers: unknown key; did you mean cores?",
        "10 queues[0].bins[0].walltime: expected a duration such as "
        '"02:00:00", "1-12:00:00", "90m", "1h30m" or 5400 (seconds)',
    ]


@pytest.mark.parametrize(
    ("change", "to", "expected"),
    [
        ("spool: {path: $SCRATCH/h}\n", "", "spool.path: expected a directory on the shared"),
        ("launcher: srun", "launcher: srnu -n", "runner.launcher: unknown launcher 'srnu'"),
        ("runner: {launcher: srun}\n", "", "runner.launcher: expected a launcher such as srun"),
        ("1-8", "8-1", "nodes: expected nodes such as"),
        ("1-8", "0-8", "nodes: expected nodes such as"),
        ("$SCRATCH", "$NOWHERE", "spool.path: expected $NOWHERE to be set"),
        ("$SCRATCH/h", "scratch", "spool.path: expected an absolute path"),
        ('"02:00:00"', '"12:00"', "walltime: expected a duration"),
        ('"02:00:00"', "90", "walltime: expected more than boot_margin and drain_margin"),
        ('"02:00:00"', "-5", "walltime: expected a duration"),
        ("256GB", "256", "node.memory: expected a size with its unit"),
        ("gpus: 4", "gpus: -1", "node.gpus: expected at least 0"),
        ("gpus: 4", 'gpus: "4"', "node.gpus: expected a whole number"),
        ("gpus: 4", "gpus: 4, cpus: 5", "node.cpus: unknown key"),
        ("account: abc", "account: 'a b'", "account: expected one word of letters"),
        ("account: abc", "directives: ['a\\nb']", "expected your project's account"),
        ("account: abc", "name: ../x", "name: expected a name of small letters"),
        ("account: abc", "budgets: 5", "budgets: expected `key: value` lines"),
        ("name: gpu", "name: gpu: bins", "not valid YAML"),
        ("account: abc", "batch_system: local", "this key stands here twice"),
    ],
)
def test_bad_value_is_named_with_what_was_expected(
    change: str, to: str, expected: str, environ: Mapping[str, str]
) -> None:
    assert change in MINIMAL
    assert expected in "\n".join(problems(MINIMAL.replace(change, to), environ))


def test_overlapping_bins_are_refused(environ: Mapping[str, str]) -> None:
    text = MINIMAL + '      - {nodes: 8-16, walltime: "06:00:00"}\n'
    assert "8-16 nodes begins at or below the 8 nodes" in problems(text, environ)[0]


def test_queue_named_twice_is_refused(environ: Mapping[str, str]) -> None:
    text = MINIMAL + MINIMAL.partition("queues:\n")[2]
    assert problems(text, environ) == [
        "11 queues[1].name: expected each queue once; 'gpu' is here twice"
    ]


def test_queue_of_a_virtual_cluster_ends_at_its_nodes(environ: Mapping[str, str]) -> None:
    write("extends: local\nlocal: {nodes: 3}\n")
    (item,) = load_site("here", environ).queues[0].bins
    assert (item.nodes_min, item.nodes_max) == (1, 3)


def test_bin_above_all_virtual_nodes_is_refused(environ: Mapping[str, str]) -> None:
    text = "extends: local\nqueues: [{name: q, bins: [{nodes: 3-9, walltime: 1h}]}]\n"
    assert problems(text, environ) == [
        "2 queues[0].bins[0].nodes: expected no more than the 2 virtual nodes of local.nodes"
    ]


def test_secret_in_the_payloads_environment_is_refused(environ: Mapping[str, str]) -> None:
    text = MINIMAL.replace("launcher: srun", "launcher: srun, environment: {WANDB_TOKEN: x}")
    assert "expected no secrets in runner.environment (WANDB_TOKEN)" in problems(text, environ)[0]


@pytest.mark.parametrize(
    "text", ["", "- a\n", "5\n", "\t x: [\n", "a: &a [*a]\n", "x: !!python/y z\n"]
)
def test_file_that_is_no_mapping_is_one_sentence(text: str, environ: Mapping[str, str]) -> None:
    path = write(text)
    with pytest.raises(ConfigurationError) as raised:
        load_site(str(path), environ)
    assert raised.value.problems[0].file == str(path)


def test_aliases_cannot_grow_without_bound(environ: Mapping[str, str]) -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert "too large or too deep" in problems("\n".join(lines), environ)[0]


def test_second_load_starts_no_child_process(
    environ: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(MINIMAL)
    first = load_site("here", environ)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a child process was started")

    monkeypatch.setattr("subprocess.run", refuse)
    assert load_site("here", environ) == first


def test_cache_notices_files_shadows_and_environment(environ: Mapping[str, str]) -> None:
    write(MINIMAL, "base.yaml", Path(environ["XDG_CONFIG_HOME"]) / "harvester/sites")
    assert load_site("base", environ).account == "abc"
    assert load_site("base", {**environ, "SCRATCH": "/other"}).spool == Path("/other/h")
    write(MINIMAL.replace("account: abc", "account: xyz"), "base.yaml")
    assert load_site("base", environ).account == "xyz"


def test_broken_cache_entry_is_compiled_anew(environ: Mapping[str, str]) -> None:
    write(MINIMAL)
    load_site("here", environ)
    (entry,) = (Path(environ["XDG_CACHE_HOME"]) / "harvester/sites").iterdir()
    assert entry.stat().st_mode & 0o777 == 0o600
    for rubbish in ("{", "[]", json.dumps({"inputs": {}, "environment": []})):
        entry.write_text(rubbish)
        assert load_site("here", environ).account == "abc"


def test_unwritable_cache_is_no_obstacle(environ: Mapping[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    write(MINIMAL)
    assert load_site("here", {**environ, "XDG_CACHE_HOME": str(tmp_path / "file")}).account == "abc"


def test_file_others_can_write_is_not_taken_by_its_name_alone(environ: Mapping[str, str]) -> None:
    path = write(MINIMAL)
    path.chmod(0o666)
    with pytest.raises(ConfigurationError, match="can be written by others"):
        load_site("here", environ)
    assert load_site("./here.yaml", environ).account == "abc"


def test_listing_shows_the_file_that_wins_and_passes_over_other_yaml(
    environ: Mapping[str, str],
) -> None:
    mine = write("extends: local\n", "local.yaml")
    write("services: {}\n", "docker-compose.yaml")
    found = dict(list_sites(environ))
    assert found["local"] == mine
    assert "slurm" in found
    assert "docker-compose" not in found


def test_text_paths_types_and_rules_are_told_in_one_run(tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(
        "batch_system: slurm\n"
        "batch_system: pbs\n"
        "account: two words\n"
        "spool: {path: $NOT_SET_ANYWHERE/x}\n"
        "node: {gpus: 1, cores: none}\n"
        "queues:\n"
        "  - {name: q, bins: [{nodes: 1-4, walltime: 1m}]}\n"
    )
    with pytest.raises(ConfigurationError) as caught:
        compile_site(str(path), {"HOME": str(tmp_path)})
    found = [(problem.line, problem.key, problem.expected) for problem in caught.value.problems]
    assert [(line, key) for line, key, _ in found if line is not None] == [
        (2, "batch_system"),
        (3, "account"),
        (4, "spool.path"),
        (5, "node.cores"),
        (7, "queues[0].bins[0].walltime"),
    ]
    assert "one word of letters, digits and ._:@+/-" in found[2][2] + found[1][2]


def test_text_that_is_no_yaml_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_bytes(b"\0\1")
    with pytest.raises(ConfigurationError, match="not valid YAML") as caught:
        compile_site(str(path), {"HOME": str(tmp_path)})
    assert "\n" not in str(caught.value)
