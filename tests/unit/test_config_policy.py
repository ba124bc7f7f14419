"""The administrator's policy: users can tighten it and never loosen it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from harvester.config import load_site, load_site_file
from harvester.config_compile import compile_site
from harvester.config_policy import PolicyFile, Ruling
from harvester.errors import ConfigurationError

SITE = """\
batch_system: slurm
spool: {path: /scratch/h}
node: {gpus: 4, cores: 32}
runner: {launcher: srun}
containers: {runtime: apptainer}
budgets: {query_interval: 60s, jobs_in_flight: 10, submissions_per_hour: 5}
queues:
  - {name: gpu, bins: [{nodes: 1-8, walltime: "02:00:00"}]}
  - {name: big, bins: [{nodes: 9-64, walltime: "02:00:00"}]}
"""


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Path("mine.yaml").write_text(SITE)
    return {"HOME": str(tmp_path / "home"), "PATH": os.environ["PATH"]}


@pytest.fixture
def policy(tmp_path: Path) -> PolicyFile:
    base = tmp_path / "etc"
    base.mkdir(mode=0o755)
    return PolicyFile(base / "policy.yaml", os.getuid())


def rule(policy: PolicyFile, text: str) -> None:
    policy.path.write_text(text)
    policy.path.chmod(0o644)


def test_without_a_policy_a_site_is_as_its_file_says(
    environ: Mapping[str, str], policy: PolicyFile
) -> None:
    found = load_site_file("mine", environ, policy)
    assert (found.site.budgets.jobs_in_flight, found.rulings) == (10, ())


def test_looser_values_are_bounded_and_stricter_ones_stay(
    environ: Mapping[str, str], policy: PolicyFile
) -> None:
    rule(
        policy,
        "budgets: {query_interval: 2m, jobs_in_flight: 4, submissions_per_hour: 30,"
        " node_hours_per_day: 100}\nplanning: {nodes_max: 16, walltime_max: 1h}\n",
    )
    found = load_site_file("mine", environ, policy)
    budgets, planning = found.site.budgets, found.site.planning
    assert (budgets.query_interval_s, budgets.jobs_in_flight) == (120.0, 4)
    assert (budgets.submissions_per_hour, budgets.node_hours_per_day) == (5, 100.0)
    assert (planning.nodes_max, planning.walltime_max_s) == (16, 3600.0)
    assert found.rulings == (
        Ruling(key="budgets.query_interval", value="2 min", instead_of="60 s"),
        Ruling(key="budgets.jobs_in_flight", value="4", instead_of="10"),
        Ruling(key="budgets.node_hours_per_day", value="100", instead_of="no limit"),
        Ruling(key="planning.nodes_max", value="16", instead_of="no limit"),
        Ruling(key="planning.walltime_max", value="60 min", instead_of="no limit"),
    )


def test_limits_of_one_site_come_on_top_of_those_of_all(
    environ: Mapping[str, str], policy: PolicyFile
) -> None:
    rule(
        policy,
        "budgets: {jobs_in_flight: 4}\nsites:\n  mine: {budgets: {jobs_in_flight: 2}}\n"
        "  other: {budgets: {jobs_in_flight: 1}}\n",
    )
    assert load_site("mine", environ, policy).budgets.jobs_in_flight == 2


def test_limits_of_one_site_bind_files_that_extend_it_under_another_name(
    environ: Mapping[str, str], policy: PolicyFile
) -> None:
    rule(policy, "sites: {mine: {budgets: {jobs_in_flight: 2}}}\n")
    Path("free.yaml").write_text("extends: mine\nname: free\n")
    assert load_site("free", environ, policy).budgets.jobs_in_flight == 2


def test_limits_of_one_site_cannot_loosen_those_of_all(
    environ: Mapping[str, str], policy: PolicyFile
) -> None:
    rule(policy, "budgets: {jobs_in_flight: 4}\nsites: {mine: {budgets: {jobs_in_flight: 9}}}\n")
    assert load_site("mine", environ, policy).budgets.jobs_in_flight == 4


def test_policy_can_have_everything_submitted_held(
    environ: Mapping[str, str], policy: PolicyFile
) -> None:
    rule(policy, "submission: {held: true}\n")
    found = load_site_file("mine", environ, policy)
    assert found.site.submission.held
    assert found.rulings == (Ruling(key="submission.held", value="true", instead_of="false"),)

    Path("cautious.yaml").write_text("extends: mine\nsubmission: {held: true}\n")
    rule(policy, "submission: {held: false}\n")
    assert load_site("cautious", environ, policy).submission.held


def test_only_allowed_queues_are_left(environ: Mapping[str, str], policy: PolicyFile) -> None:
    rule(policy, "queues: [gpu, debug]\n")
    found = load_site_file("mine", environ, policy)
    assert [queue.name for queue in found.site.queues] == ["gpu"]
    assert found.rulings == (Ruling(key="queues", value="gpu", instead_of="gpu, big"),)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("queues: [debug]\n", "queues: got debug; site mine has none of these queues"),
        ("queues: []\n", "queues: site mine has none of these queues"),
        ("payloads: {runtimes: [podman]}\n", "uses apptainer, which this policy does not allow"),
        ("payloads: {runtimes: []}\n", "uses apptainer, which this policy does not allow"),
        ("planning: {walltime_max: 2m}\n", "site mine spends 2 min of each allocation"),
        ("sites: {mine: {planning: {walltime_max: 60s}}}\n", "so nothing could run there"),
        (
            "queues: [big]\nplanning: {nodes_max: 8}\n",
            "planning.nodes_max: got 8; site mine has no allocations of fewer than 9 nodes",
        ),
    ],
)
def test_policy_that_leaves_a_site_nothing_is_one_sentence(
    text: str, sentence: str, environ: Mapping[str, str], policy: PolicyFile
) -> None:
    rule(policy, text)
    with pytest.raises(ConfigurationError) as raised:
        load_site("mine", environ, policy)
    assert sentence in str(raised.value)


def test_queue_that_is_planned_with_only_when_named_has_to_be_named(
    environ: Mapping[str, str], policy: PolicyFile
) -> None:
    Path("mine.yaml").write_text(SITE.replace("{name: big", "{name: big, planned: false"))
    rule(policy, "queues: [big]\n")
    with pytest.raises(ConfigurationError, match="name some under"):
        load_site("mine", environ, policy)
    Path("own.yaml").write_text("extends: mine\nplanning: {queues: [big]}\n")
    assert load_site("own", environ, policy).planning.queues == ("big",)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"", "policy.yaml:1: expected `key: value` lines at the top level of a policy file"),
        (b"null\n", "at the top level of a policy file"),
        (b"- 5\n", "at the top level of a policy file"),
        (b"\xff", "expected UTF-8 text"),
        (b"budgets: {jobs_in_flight: 1", "policy.yaml:1: not valid YAML"),
        (b"a: &a [*a]\n", "policy.yaml:1: too large or too deep"),
        (b"queues: [gpu]\nqueues: [big]\n", "policy.yaml:2: queues: this key stands here twice"),
        (b"extends: mine\n", "extends: unknown key"),
        (b"budgets: 5\n", "budgets: got 5; expected `key: value` lines"),
        (b"budgets: {jobs: 4}\n", "policy.yaml:1: budgets.jobs: unknown key"),
        (b"budgets: {query_interval_min: 5s}\n", "did you mean query_interval?"),
        (b"budgets: {jobs_in_flight: many}\n", "expected a whole number"),
        (b"budgets: {jobs_in_flight: 0}\n", "expected at least 1"),
        (b"budgets: {submissions_per_hour: 1.5}\n", "expected a whole number"),
        (b"budgets: {node_hours_per_day: -1}\n", "expected more than 0"),
        (b"budgets: {node_hours_total: .nan}\n", "expected a number"),
        (b"budgets: {queries_per_minute: .inf}\n", "expected a number"),
        (b"budgets: {query_interval: soon}\n", "expected a duration"),
        (b"planning: {nodes_max: 0}\n", "expected at least 1"),
        (b'planning: {walltime_max: "12:00"}\n', "expected a duration"),
        (b"queues: gpu\n", "queues: got 'gpu'; expected a list"),
        (b"queues: [a b]\n", "expected one word"),
        (b"payloads: {containers_only: maybe}\n", "expected true or false"),
        (b"payloads: {runtimes: [docker]}\n", "expected 'none', 'apptainer'"),
        (b"sites: {mine: 5}\n", "sites.mine: got 5"),
        (b"sites: {mine: {budget: {}}}\n", "did you mean budgets?"),
    ],
)
def test_broken_policy_is_one_sentence_and_lets_no_site_load(
    text: bytes, sentence: str, environ: Mapping[str, str], policy: PolicyFile
) -> None:
    policy.path.write_bytes(text)
    policy.path.chmod(0o644)
    with pytest.raises(ConfigurationError) as raised:
        compile_site("mine", environ, policy)
    assert sentence in str(raised.value)
    assert {problem.file for problem in raised.value.problems} == {str(policy.path)}


def test_containers_only_needs_a_container_runtime(
    environ: Mapping[str, str], policy: PolicyFile
) -> None:
    rule(policy, "payloads: {containers_only: true}\n")
    assert load_site("mine", environ, policy).containers_only
    Path("mine.yaml").write_text(SITE.replace("apptainer", "none"))
    with pytest.raises(ConfigurationError, match="nothing could run there"):
        load_site("mine", environ, policy)


def test_policy_that_appears_or_changes_later_is_noticed(
    environ: Mapping[str, str], policy: PolicyFile
) -> None:
    assert load_site("mine", environ, policy).budgets.jobs_in_flight == 10
    rule(policy, "budgets: {jobs_in_flight: 4}\n")
    assert load_site("mine", environ, policy).budgets.jobs_in_flight == 4
    rule(policy, "budgets: {jobs_in_flight: 3}\n")
    assert load_site("mine", environ, policy).budgets.jobs_in_flight == 3


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_policy_that_others_can_write_is_refused_even_when_cached(
    mode: int, environ: Mapping[str, str], policy: PolicyFile
) -> None:
    rule(policy, "budgets: {jobs_in_flight: 4}\n")
    load_site("mine", environ, policy)
    policy.path.chmod(mode)
    with pytest.raises(ConfigurationError, match="that only its owner can change"):
        load_site("mine", environ, policy)


def test_policy_of_another_owner_is_refused(environ: Mapping[str, str], policy: PolicyFile) -> None:
    rule(policy, "budgets: {jobs_in_flight: 4}\n")
    with pytest.raises(ConfigurationError, match="that only its owner can change"):
        load_site("mine", environ, replace(policy, owner=os.getuid() + 1))


def test_policy_in_a_directory_that_others_can_write_is_refused(
    environ: Mapping[str, str], policy: PolicyFile
) -> None:
    rule(policy, "")
    policy.path.parent.chmod(0o777)
    with pytest.raises(ConfigurationError, match="that only its owner can change"):
        load_site("mine", environ, policy)


def test_link_is_no_policy(environ: Mapping[str, str], policy: PolicyFile) -> None:
    policy.path.symlink_to(Path("mine.yaml").absolute())
    with pytest.raises(ConfigurationError, match="not a link"):
        load_site("mine", environ, policy)


def test_environment_cannot_name_another_policy() -> None:
    assert PolicyFile() == PolicyFile(Path("/etc/harvester/policy.yaml"), 0)
