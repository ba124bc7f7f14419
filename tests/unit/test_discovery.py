"""What a login node tells of its site, and the first site file that comes of it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from harvester.batch.commands import Completed
from harvester.cli.site_init import init
from harvester.config import load_site_file
from harvester.discovery import (
    WEEK_S,
    QueueFound,
    look_around,
    read_limit,
    read_lustre_quota,
    read_pbsnodes,
    read_qstat_queues,
    read_sinfo,
)
from harvester.errors import BatchUnavailable, UsageError

SINFO = """\
cpu|up|100|2|64|515000+|2-00:00:00|(null)
gpu*|up|40|2|32|480000|1-00:00:00|gpu:a100:4(S:0-1)
gpu*|up|8|2|32|470000|1-00:00:00|gpu:a100:4(S:0-1)
gpu*|up|2|2|32|480000|1-00:00:00|gpu:a100:2
debug|up|2|2|32|480000|30:00|gpu:a100:4
old|down|2|2|32|480000|infinite|gpu:v100:4
A site's banner | with a bar
"""
QSTAT_Q = """\
Queue: prod
    queue_type = Route
    enabled = True
    resources_max.nodect = 496
    resources_max.walltime = 24:00:00

Queue: broken
    enabled = False

Queue: debug
    queue_type = Execution
    enabled = True
    resources_max.walltime = 01:00:00
"""
PBSNODES = """\
x3001
     Mom = x3001
     resources_available.mem = 527672488kb
     resources_available.ncpus = 64
     resources_available.ngpus = 4

x3002
     resources_available.mem = 527672488kb
     resources_available.ncpus = 64
     resources_available.ngpus = 4

login
     resources_available.mem = 1tb
     resources_available.ncpus = 128
"""

Answering = Callable[..., Completed]


def answering(answers: Mapping[str, str], returncode: int = 0) -> Answering:
    def execute(
        argv: Sequence[str], *, timeout_s: float, environment: Mapping[str, str]
    ) -> Completed:
        assert environment["LC_ALL"] == "C"
        return Completed(argv[0], returncode, answers[argv[0]], "no")

    return execute


def having(*commands: str) -> Callable[[str], str | None]:
    return lambda name: f"/usr/bin/{name}" if name in commands else None


def test_sinfo_gives_the_default_partition_first_with_its_commonest_gpu_nodes() -> None:
    gpu, cpu, debug = read_sinfo(SINFO)
    assert gpu == QueueFound(
        name="gpu",
        nodes=48,
        walltime_s=86_400.0,
        cores=64,
        gpus=4,
        memory_mb=470_000,
        gpu_kind="a100",
    )
    assert (cpu.name, cpu.gpus, cpu.memory_mb, cpu.walltime_s) == ("cpu", 0, 515_000, 172_800.0)
    assert (debug.name, debug.walltime_s) == ("debug", 1800.0)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1-12:00:00", 129_600.0),
        ("12:00:00", 43_200.0),
        ("30:00", 1800.0),
        ("infinite", WEEK_S),
        ("UNLIMITED", WEEK_S),
        ("n/a", None),
        ("", None),
    ],
)
def test_time_limits_are_read_as_sinfo_prints_them(text: str, seconds: float | None) -> None:
    assert read_limit(text) == seconds


def test_qstat_and_pbsnodes_give_enabled_queues_with_the_gpu_nodes_shape() -> None:
    prod, debug = read_pbsnodes(PBSNODES, read_qstat_queues(QSTAT_Q))
    assert prod == QueueFound(
        name="prod", nodes=496, walltime_s=86_400.0, cores=64, gpus=4, memory_mb=515_305
    )
    assert (debug.name, debug.nodes, debug.walltime_s) == ("debug", None, 3600.0)


@pytest.mark.parametrize(
    ("commands", "system"),
    [
        ((), "local"),
        (("sbatch", "sinfo", "qsub", "qstat"), "slurm"),
        (("qsub", "qstat", "pbsnodes"), "pbs"),
        (("qsub", "qstat", "qconf"), "gridengine"),
        (("bsub", "bqueues"), "lsf"),
        (("flux",), "flux"),
    ],
)
def test_commands_give_the_batch_system_away(commands: tuple[str, ...], system: str) -> None:
    texts = {"sinfo": SINFO, "qstat": QSTAT_Q, "pbsnodes": PBSNODES, "qconf": "", "bqueues": ""}
    found = look_around({}, which=having(*commands), execute=answering(texts))
    assert found.batch_system == system


@pytest.mark.parametrize("text", ["", "garbage\n", "a|b\n", "|||||||\n"])
def test_scheduler_that_makes_no_sense_leaves_a_remark(text: str) -> None:
    found = look_around({}, which=having("sbatch", "sinfo"), execute=answering({"sinfo": text}))
    assert (found.queues, found.remarks) == ((), ("sinfo lists no queue that takes jobs",))


def test_scheduler_that_fails_leaves_a_remark() -> None:
    def refuse(*_: object, **__: object) -> Completed:
        raise BatchUnavailable("did not answer")

    which = having("sbatch", "sinfo")
    failed = look_around({}, which=which, execute=answering({"sinfo": ""}, returncode=1))
    assert failed.remarks == ("sinfo failed: no",)
    assert look_around({}, which=which, execute=refuse).remarks == (
        "sinfo cannot be asked: did not answer",
    )


def test_first_scratch_variable_that_can_be_written_counts(tmp_path: Path) -> None:
    environ = {"SCRATCH": "/nowhere", "PSCRATCH": "", "WORK": str(tmp_path)}
    found = look_around(environ, which=having()).scratch
    assert found is not None
    assert (found.variable, found.path) == ("WORK", tmp_path)
    assert found.free_bytes > 0


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("  /lustre 100 1000 2000 - 5 10 20 -\n", (900.0, 5.0)),
        ("/a/long/path\n   2500* 1000 2000 6d23h [5] 0 20 -\n", (0.0, 15.0)),
        ("  /lustre 100 0 0 - 5 0 0 -\n", (float("inf"), float("inf"))),
        ("  /lustre 100 0 0\n", None),
        ("  /lustre 1.5T 0k 2T - 5 0 0 -\n", None),
        ("", None),
    ],
)
def test_quota_is_read_as_lustre_prints_it(text: str, left: tuple[float, float] | None) -> None:
    assert read_lustre_quota(text) == left


def test_room_on_scratch_ends_where_the_quota_does(tmp_path: Path) -> None:
    told = answering({"lfs": f"{tmp_path} 100 0 164 - 5 0 20 -\n"})
    found = look_around({"SCRATCH": str(tmp_path)}, which=having("lfs"), execute=told).scratch
    assert found is not None
    assert (found.free_bytes, found.free_files, found.quota) == (64 * 1024, 15, True)
    silent = answering({"lfs": ""}, returncode=1)
    unknown = look_around({"SCRATCH": str(tmp_path)}, which=having("lfs"), execute=silent).scratch
    assert unknown is not None
    assert not unknown.quota


# --- the command ---


Init = Callable[..., Result]


@pytest.fixture
def run_init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Init:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in (("sbatch", ""), ("sinfo", SINFO)):
        path = commands / name
        path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\n")
        path.chmod(stat.S_IRWXU)
    (tmp_path / "scratch").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(init, arguments)

    return run


def written(tmp_path: Path, name: str = "mine") -> Path:
    return tmp_path / ".config/harvester/sites" / f"{name}.yaml"


def test_init_writes_a_file_that_validates_and_names_its_sources(
    run_init: Init, tmp_path: Path
) -> None:
    assert run_init("--name", "mine", "--account", "abc").exit_code == 0
    path = written(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = load_site_file("mine", os.environ)
    site = found.site
    assert (site.name, site.batch_system, site.account) == ("mine", "slurm", "abc")
    assert (site.node.gpus, site.node.cores, site.node.memory_mb) == (4, 64, 492_830)
    # The partition without GPUs has another kind of node.
    assert [queue.name for queue in site.queues] == ["gpu", "debug"]
    assert site.queues[0].bins[0].nodes_max == 48
    assert site.spool == tmp_path / "scratch/harvester"
    sources = {origin.key: origin.source for origin in found.origins}
    assert sources["node.gpus"] == sources["queues.gpu.bins"] == "sinfo"
    assert [path.name for path in path.parent.iterdir()] == ["mine.yaml"]


def test_init_never_writes_over_a_file_unless_forced(run_init: Init, tmp_path: Path) -> None:
    path = written(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text("mine\n")
    refused = run_init("--name", "mine")
    assert isinstance(refused.exception, UsageError)
    assert "--force writes over it" in str(refused.exception)
    assert path.read_text() == "mine\n"
    assert run_init("--name", "mine", "--force").exit_code == 0
    assert "batch_system: slurm" in path.read_text()


def test_flags_win_over_what_was_found(run_init: Init, tmp_path: Path) -> None:
    arguments = ("--gpus", "2", "--cores", "16", "--queue", "cpu", "--spool", "/scratch/x")
    assert run_init("--name", "mine", *arguments).exit_code == 0
    site = load_site_file("mine", os.environ).site
    assert (site.node.gpus, site.node.cores, site.spool) == (2, 16, Path("/scratch/x"))
    assert [queue.name for queue in site.queues] == ["cpu"]


def test_what_flags_say_is_not_the_schedulers_word(run_init: Init) -> None:
    arguments = ("--gpus", "2", "--cores", "64", "--queue", "gpu", "--queue", "secret")
    found = run_init("--name", "mine", *arguments)
    assert found.exit_code == 0
    assert "queue secret: the scheduler tells only of" in found.stderr
    sources = {item.key: item.source for item in load_site_file("mine", os.environ).origins}
    assert (sources["node.gpus"], sources["node.cores"]) == ("unsourced", "sinfo")
    assert (sources["queues.gpu.bins"], sources["queues.secret.bins"]) == ("sinfo", "unsourced")


def test_dry_run_shows_no_file_that_would_not_validate(run_init: Init, tmp_path: Path) -> None:
    refused = run_init("--name", "mine", "--account", "a b", "--dry-run")
    assert refused.stdout == ""
    assert f"{written(tmp_path)}:6: account: got 'a b'" in str(refused.exception)


def test_dry_run_prints_and_writes_nothing(run_init: Init, tmp_path: Path) -> None:
    found = run_init("--name", "mine", "--dry-run")
    assert "batch_system: slurm" in found.stdout
    assert not written(tmp_path).exists()


def test_batch_system_that_tells_only_names_gets_cautious_limits(
    run_init: Init, tmp_path: Path
) -> None:
    arguments = ("--batch-system", "flux", "--queue", "batch", "--cores", "8")
    assert run_init("--name", "mine", *arguments).exit_code == 0
    assert "these are cautious" in written(tmp_path).read_text()
    (item,) = load_site_file("mine", os.environ).site.queues[0].bins
    assert (item.nodes_max, item.walltime_max_s) == (1, 3600.0)


def test_machine_without_a_batch_system_becomes_a_local_site(
    run_init: Init, tmp_path: Path
) -> None:
    assert run_init("--name", "mine", "--batch-system", "local").exit_code == 0
    assert load_site_file("mine", os.environ).site.batch_system == "local"


def test_bad_answer_is_refused_with_the_key_and_leaves_nothing_behind(
    run_init: Init, tmp_path: Path
) -> None:
    refused = run_init("--name", "mine", "--account", "not an account")
    assert "sites/mine.yaml:6: account: got 'not an account'" in str(refused.exception)
    assert list(written(tmp_path).parent.iterdir()) == []


def test_name_that_is_no_file_name_is_refused(run_init: Init) -> None:
    assert "--name" in str(run_init("--name", "../x").exception)
