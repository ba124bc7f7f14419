"""Batch scripts: golden texts, quoting, and walltimes that parse back."""

from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvester.batch.local import LocalBatch
from harvester.batch.port import BatchJob
from harvester.batch.slurm import Slurm, query_environment, sbatch_environment, walltime_text
from harvester.errors import ConfigurationError
from harvester.model import Tag
from payload_runner.protocol import NodeShape

JOB = BatchJob(
    tag=Tag("habcde-aaaaaa"),
    nodes=3,
    walltime_s=5400.0,
    directory=Path("/scratch/spool/allocations/habcde-aaaaaa"),
    command=("python3", "/scratch/runner.pyz", "lead", "/scratch/spool", "habcde-aaaaaa"),
)

GOLDEN = """\
#!/bin/bash
#SBATCH --job-name=habcde-aaaaaa
#SBATCH --nodes=3
#SBATCH --time=01:30:00
#SBATCH --ntasks-per-node=1
#SBATCH --no-requeue
#SBATCH --partition=gpu
#SBATCH --account=phy123
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=32
#SBATCH --mem=480000M
#SBATCH --signal=B:USR1@121
#SBATCH --exclude=nid001,nid002
#SBATCH --constraint="gpu&hbm80g"

umask 077
trap '' USR1
module load python/3.11
export FI_CXI_RX_MATCH_MODE=hybrid
exec python3 /scratch/runner.pyz lead /scratch/spool habcde-aaaaaa
"""


def test_slurm_script_with_everything() -> None:
    job = replace(
        JOB,
        queue="gpu",
        account="phy123",
        gpus_per_node=4,
        cores_per_node=32,
        memory_mb_per_node=480_000,
        warn_s=120.4,
        exclude_nodes=("nid001", "nid002"),
        directives=('--constraint="gpu&hbm80g"',),
        prologue=("module load python/3.11", "export FI_CXI_RX_MATCH_MODE=hybrid"),
    )
    assert Slurm().render(job) == GOLDEN


def test_what_is_not_asked_for_is_not_written() -> None:
    header = [line for line in Slurm().render(JOB).splitlines() if line.startswith("#SBATCH")]
    assert [line.split("=")[0] for line in header] == [
        "#SBATCH --job-name",
        "#SBATCH --nodes",
        "#SBATCH --time",
        "#SBATCH --ntasks-per-node",
        "#SBATCH --no-requeue",
    ]


def test_local_script_has_no_directives(tmp_path: Path) -> None:
    text = LocalBatch(tmp_path, 1, NodeShape()).render(JOB)
    assert text == f"#!/bin/bash\n\numask 077\nexec {shlex.join(JOB.command)}\n"


@pytest.mark.parametrize(
    ("field", "value"),
    [("queue", "gpu long"), ("queue", "gpu\n#SBATCH --exclusive"), ("account", "a'b")],
)
def test_option_that_is_no_plain_word_is_refused_by_name(field: str, value: str) -> None:
    job = replace(JOB, queue=value) if field == "queue" else replace(JOB, account=value)
    with pytest.raises(ConfigurationError, match=f"{field}.*one word"):
        Slurm().render(job)


def test_directive_of_two_lines_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="one line per directive"):
        Slurm().render(replace(JOB, directives=("--exclusive\nrm -rf /",)))


@given(st.lists(st.text(st.characters(blacklist_characters="\0", codec="utf-8")), min_size=1))
def test_no_argument_means_anything_to_the_shell(words: list[str]) -> None:
    line = Slurm().render(replace(JOB, command=("printf", *words))).split("\nexec ", 1)[1]
    assert shlex.split(line) == ["printf", *words]


def test_shell_agrees_with_the_quoting() -> None:
    words = ["$(id)", "`id`", "a;b", "new\nline", "'", '"', "*", "~", "!x"]
    script = Slurm().render(replace(JOB, command=("printf", "%s\\0", *words)))
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True, text=True)
    assert done.stdout.split("\0")[:-1] == words


def test_percent_in_a_path_is_no_pattern() -> None:
    command = Slurm().submit_command(replace(JOB, directory=Path("/s/100%j")), Path("/s/b.sh"))
    assert "--output=/s/100%%j/batch.out" in command
    assert "--chdir=/s/100%j" in command


@given(st.floats(min_value=0.001, max_value=60 * 86400))
def test_walltime_parses_back_to_the_minutes_that_cover_it(seconds: float) -> None:
    minutes = _parse_walltime(walltime_text(seconds))
    assert minutes * 60 >= seconds - 0.001
    assert (minutes - 1) * 60 < seconds or minutes == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1, "00:01:00"),
        (60, "00:01:00"),
        (61, "00:02:00"),
        (5400, "01:30:00"),
        (90000, "1-01:00:00"),
    ],
)
def test_walltime_texts(seconds: float, text: str) -> None:
    assert walltime_text(seconds) == text


def _parse_walltime(text: str) -> int:
    """As sbatch(1) reads it: [days-]hours:minutes:seconds, each within its range here."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d\d):([0-5]\d):00", text)
    assert found, text
    days, hours, minutes = (int(part or 0) for part in found.groups())
    assert hours < 24
    return (days * 24 + hours) * 60 + minutes


# --- environments ---

USERS = {
    "PATH": "/usr/bin",
    "LC_ALL": "de_DE.UTF-8",
    "SLURM_CONF": "/etc/slurm/slurm.conf",
    "SLURM_JOB_ID": "7",
    "SBATCH_TIMELIMIT": "1",
    "SBATCH_ACCOUNT": "phy123",
    "SQUEUE_FORMAT": "%i",
    "SLURM_TIME_FORMAT": "relative",
}


def test_queries_speak_c_and_no_users_formats() -> None:
    assert query_environment(USERS).keys() & {"SQUEUE_FORMAT", "SLURM_TIME_FORMAT"} == set()
    assert query_environment(USERS)["LC_ALL"] == "C"
    assert query_environment(USERS)["SLURM_CONF"] == USERS["SLURM_CONF"]


def test_submission_keeps_the_locale_and_drops_what_overrules_the_script() -> None:
    kept = sbatch_environment(replace(JOB, account="other"), USERS)
    assert kept == {
        "PATH": "/usr/bin",
        "LC_ALL": "de_DE.UTF-8",
        "SLURM_CONF": "/etc/slurm/slurm.conf",
        "SQUEUE_FORMAT": "%i",
    }


def test_users_default_account_counts_where_the_job_states_none() -> None:
    assert sbatch_environment(JOB, USERS)["SBATCH_ACCOUNT"] == "phy123"
    stated = replace(JOB, directives=("--account=site",))
    assert "SBATCH_ACCOUNT" not in sbatch_environment(stated, USERS)
