"""The variables that reach a payload, and those that must not."""

from __future__ import annotations

import pytest

from payload_runner.environment import BadSegment, fill_command, inherited, of_attempt, of_rank
from payload_runner.placement import Slot
from payload_runner.protocol import Order

ORDER = Order("1.2.1.1", "1", "2", "p", {"x": 1})


@pytest.mark.parametrize(
    "name",
    [
        "HARVESTER_TOKEN",
        "HARVESTER_CENTRAL",
        "GITHUB_TOKEN",
        "my_secret",
        "DB_PASSWORD",
        "AWS_SECRET_ACCESS_KEY",
        "X509_USER_PROXY",
        "SLURM_JWT",
        "OPENAI_API_KEY",
        "SSH_AUTH_SOCK",
        "PMI_RANK",
        "PMIX_NAMESPACE",
        "OMPI_COMM_WORLD_RANK",
        "PALS_RANKID",
        "SLURM_PROCID",
        "SLURM_NTASKS",
        "SLURM_STEP_ID",
        "CUDA_VISIBLE_DEVICES",
        "HIP_VISIBLE_DEVICES",
    ],
)
def test_secrets_and_outer_ranks_stay_with_the_agent(name: str) -> None:
    assert name not in inherited({name: "x", "PATH": "/bin"}, {}, {})


@pytest.mark.parametrize(
    "name", ["HOME", "LANG", "SLURM_JOB_ID", "TOKENIZERS_PARALLELISM", "http_proxy", "TMPDIR"]
)
def test_ordinary_variables_pass(name: str) -> None:
    assert inherited({name: "x"}, {}, {})[name] == "x"


def test_task_wins_over_site_wins_over_agent() -> None:
    found = inherited(
        {"A": "agent", "B": "agent", "C": "agent"}, {"B": "site", "C": "site"}, {"C": "task"}
    )
    assert {name: found[name] for name in "ABC"} == {"A": "agent", "B": "site", "C": "task"}


def test_physicist_may_hand_in_a_token_of_their_own() -> None:
    assert inherited({}, {}, {"HF_TOKEN": "mine"})["HF_TOKEN"] == "mine"


def test_directory_itself_is_on_the_path() -> None:
    assert inherited({"PATH": "/bin"}, {}, {})["PATH"] == "/bin:."
    assert inherited({}, {}, {})["PATH"].endswith("/bin:.")


def attempt(shared: dict[str, str], threads: int = 2) -> dict[str, str]:
    return of_attempt(
        shared,
        ORDER,
        workdir="/w",
        deadline=99.7,
        threads=threads,
        gpus={"CUDA_VISIBLE_DEVICES": "1"},
    )


def test_attempt_knows_itself_and_its_deadline() -> None:
    assert attempt({"A": "b"}, threads=0) == {
        "A": "b",
        "CUDA_VISIBLE_DEVICES": "1",
        "HARVESTER_ATTEMPT": "1.2.1.1",
        "HARVESTER_POINT": "2",
        "HARVESTER_DEADLINE": "100",
        "HARVESTER_WORKDIR": "/w",
    }


def test_threads_follow_the_slot_unless_somebody_chose() -> None:
    assert attempt({})["OMP_NUM_THREADS"] == "2"
    assert attempt({"OMP_NUM_THREADS": "7"})["OMP_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS" not in attempt({"OMP_NUM_THREADS": "7"})


def test_ranks_are_numbered_over_all_nodes() -> None:
    slot = Slot(1, ranks=4, first_rank=4, world_size=8, hosts=("n0", "n1"), master_port=4711)
    assert of_rank(slot, 2, "/w/hosts", slot.hosts[0]) == {
        "MASTER_ADDR": "n0",
        "MASTER_PORT": "4711",
        "WORLD_SIZE": "8",
        "RANK": "6",
        "LOCAL_RANK": "2",
        "LOCAL_WORLD_SIZE": "4",
        "NODE_RANK": "1",
        "HARVESTER_HOSTFILE": "/w/hosts",
    }


def test_segment_name_is_filled_in_everywhere() -> None:
    assert (
        fill_command("run %SEGMENT_NAME in %SEGMENT_NAME", "jets_2.0-a")
        == "run jets_2.0-a in jets_2.0-a"
    )
    assert fill_command("run %SEGMENT_NAME", None) == "run "


@pytest.mark.parametrize("segment", ["a b", "$(id)", "a;b", "", "ä", "a\nb"])
def test_segment_name_never_brings_shell_words(segment: str) -> None:
    with pytest.raises(BadSegment, match=r"only letters, digits and \._- are allowed"):
        fill_command("run %SEGMENT_NAME", segment)
