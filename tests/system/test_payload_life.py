"""What a payload finds, what is relayed of it, and how it is stopped and resumed."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator

import pytest

from payload_runner.placement import GpuShare, Slot
from payload_runner.protocol import Shape
from tests.node_agent import GOOD, AgentProcess, make_plan


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    with AgentProcess(
        tmp_path_factory.mktemp("agent"),
        make_plan(environment={"SITE_WORD": "site"}),
        environ={
            "CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b,6,7",
            "MY_API_TOKEN": "secret",
            "PMI_RANK": "3",
            "SLURM_JOB_ID": "17",
            "SLURM_PROCID": "3",
        },
    ) as running:
        yield running


def attempts() -> Iterator[str]:
    number = 0
    while True:
        number += 1
        yield f"1.{number}.1.1"


IDS = attempts()


def test_working_directory_holds_the_point_and_the_files(agent: AgentProcess) -> None:
    script = agent.add_input("run.sh", b"#!/bin/sh\ncat input.json point_ds.json deep/er/x.py")
    module = agent.add_input("deep/er/x.py", b" # \xc3\xa9")
    ended = agent.run(
        "run.sh; ls; stat -c %a . run.sh; exit 9",
        next(IDS),
        parameters=[3, {"lr": 1e-3}],
        files=(
            type(script)("run.sh", script.sha256, script.size, executable=True),
            module,
        ),
        training_name="point_ds.json",
        training_files=("a.root", "b c.root"),
    )
    assert ended.stdout == (
        '[3, {"lr": 0.001}]["a.root", "b c.root"] # é'
        "deep\ninput.json\npoint_ds.json\nrun.sh\n700\n700\n"
    )


def test_second_payload_does_not_read_inputs_from_the_spool_again(agent: AgentProcess) -> None:
    item = agent.add_input("data.txt", b"words")
    first, second = next(IDS), next(IDS)
    assert agent.run("cat data.txt; exit 1", first, files=(item,)).stdout == "words"
    agent.run("echo changed >> data.txt; exit 1", next(IDS), files=(item,))
    assert agent.run("cat data.txt; exit 1", second, files=(item,)).stdout == "words"


def test_environment_is_filtered_and_complete(agent: AgentProcess) -> None:
    attempt = next(IDS)
    ended = agent.run(
        "env; exit 1",
        attempt,
        slot=Slot(0, (GpuShare(1), GpuShare(2, 0.5)), hosts=("node0",)),
        environment={"TASK_WORD": "task", "HF_TOKEN": "the physicist's own"},
        segment="model-1",
    )
    found = dict(line.split("=", 1) for line in str(ended.stdout).splitlines() if "=" in line)
    wanted = {
        "CUDA_VISIBLE_DEVICES": "GPU-b,6",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "SITE_WORD": "site",
        "TASK_WORD": "task",
        "HF_TOKEN": "the physicist's own",
        "SLURM_JOB_ID": "17",
        "SEGMENT_NAME": "model-1",
        "HARVESTER_ATTEMPT": attempt,
        "HARVESTER_POINT": attempt.split(".")[1],
    }
    assert {name: found.get(name) for name in wanted} == wanted
    assert found["HARVESTER_WORKDIR"].endswith(attempt)
    assert found["PATH"].endswith(":.")
    assert not {"MY_API_TOKEN", "PMI_RANK", "SLURM_PROCID"} & set(found)


def test_segment_name_is_filled_in(agent: AgentProcess) -> None:
    ended = agent.run("echo model %SEGMENT_NAME; exit 1", next(IDS), segment="jets_2.0")
    assert ended.stdout == "model jets_2.0\n"


def test_success_relays_output_only_on_request(agent: AgentProcess) -> None:
    attempt = next(IDS)
    ended = agent.run(f"echo words; {GOOD}", attempt)
    assert (ended.state, ended.loss, ended.message) == ("succeeded", 0.5, "fine")
    assert ended.stdout is None
    agent.send("send_output", {"attempt": attempt})
    agent.wait_while_listening(lambda: len(agent.told("attempt_ended", attempt)) == 2)
    assert agent.told("attempt_ended", attempt)[1]["stdout"] == "words\n"


def test_start_is_told_with_its_gpus(agent: AgentProcess) -> None:
    attempt = next(IDS)
    agent.run(GOOD, attempt, slot=Slot(0, (GpuShare(3, 0.25),), hosts=("node0",)))
    (started,) = agent.told("attempt_started", attempt)
    assert started == {"attempt": attempt, "nodes": ["node0"], "gpus": ["node0:3/0.25"]}


def test_success_relays_output_where_the_task_says_so(agent: AgentProcess) -> None:
    ended = agent.run(f"echo words; {GOOD}", next(IDS), relay_output=True)
    assert (ended.state, ended.stdout) == ("succeeded", "words\n")


def test_metadata_and_metrics_are_relayed(agent: AgentProcess) -> None:
    attempt = next(IDS)
    ended = agent.run(
        f"""echo '{{"accuracy": 0.9}}' > meta.json; echo curve > metrics.txt; {GOOD}""",
        attempt,
        meta_name="meta.json",
        metrics_name="metrics.txt",
    )
    assert ended.metadata == {"accuracy": 0.9}
    assert ended.metrics_file is not None
    with tarfile.open(agent.spool.committed(ended.metrics_file)) as tar:
        # As PanDA names it: the local name and the point.
        assert tar.getnames() == [f"metrics.txt_{attempt.split('.')[1]}"]


def test_large_metadata_becomes_a_file(agent: AgentProcess) -> None:
    ended = agent.run(
        f"""python3 -c 'import json; print(json.dumps(dict(a="x" * 100000)))' > m.json; {GOOD}""",
        next(IDS),
        meta_name="m.json",
    )
    assert ended.metadata is None
    assert ended.metadata_file is not None
    data = agent.spool.committed(ended.metadata_file).read_bytes()
    assert json.loads(data) == {"a": "x" * 100000}


@pytest.mark.fault("result wrong or missing")
def test_metadata_over_the_limit_is_dropped_with_a_note(agent: AgentProcess) -> None:
    ended = agent.run(f"head -c 2000000 /dev/zero > m.json; {GOOD}", next(IDS), meta_name="m.json")
    assert ended.state == "succeeded"
    assert ended.message == "fine; m.json dropped: 2000000 bytes, at most 1000000"


def test_reports_come_while_it_runs_and_all_are_in_at_its_end(agent: AgentProcess) -> None:
    attempt = next(IDS)
    line = """echo '{"step": %d, "loss": 0.5}' >> metrics.jsonl"""
    agent.start(f"{line % 1}; while [ ! -e go ]; do sleep 0.05; done; {line % 2}; {GOOD}", attempt)
    early = agent.wait_for("reports", attempt)
    assert early["values"] == [{"step": 1, "loss": 0.5}]
    (workdir,) = agent.spool.work.glob(f"*/{attempt}")
    (workdir / "go").touch()
    agent.outcome(attempt)
    values = [value for event in agent.told("reports", attempt) for value in event["values"]]
    assert values == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.5}]
    kinds = [kind for kind, fields in agent.messages if fields.get("attempt") == attempt]
    assert kinds[-1] == "attempt_ended"


def test_ranks_of_one_node_meet(agent: AgentProcess) -> None:
    slot = Slot(
        0, (GpuShare(0), GpuShare(1)), ranks=2, world_size=2, hosts=("node0",), master_port=4711
    )
    ended = agent.run(
        'echo "$RANK/$WORLD_SIZE $LOCAL_RANK $NODE_RANK $MASTER_ADDR:$MASTER_PORT'
        ' $CUDA_VISIBLE_DEVICES $(cat $HARVESTER_HOSTFILE)" >> ranks;'
        f' [ "$RANK" = 0 ] || exit 0; while [ "$(wc -l < ranks)" -lt 2 ]; do :; done;'
        f" sort ranks >&2; {GOOD}; exit 1",
        next(IDS),
        slot=slot,
        shape=Shape(gpus_per_node=2, ranks_per_node=2, start="processes"),
    )
    assert ended.stderr == (
        "0/2 0 0 127.0.0.1:4711 GPU-a,GPU-b node0\n1/2 1 0 127.0.0.1:4711 GPU-a,GPU-b node0\n"
    )


def test_rank_that_fails_takes_the_others_with_it(agent: AgentProcess) -> None:
    slot = Slot(0, ranks=3, world_size=3, hosts=("node0",), master_port=4711)
    ended = agent.run(
        '[ "$RANK" = 1 ] && exit 7; sleep 1000',
        next(IDS),
        slot=slot,
        shape=Shape(ranks_per_node=3, start="processes"),
    )
    assert (ended.state, ended.blame, ended.exit_code) == ("failed", "point", 7)


def test_further_node_reports_only_its_exit(agent: AgentProcess) -> None:
    slot = Slot(0, ranks=1, first_rank=1, world_size=2, hosts=("other", "node0"), master_port=1)
    shape = Shape(nodes_min=2, nodes_max=2, start="processes")
    ended = agent.run('[ "$NODE_RANK" = 1 ]', next(IDS), slot=slot, shape=shape)
    assert (ended.state, ended.loss) == ("succeeded", None)


def test_further_node_of_a_single_command_only_holds_its_slot(agent: AgentProcess) -> None:
    slot = Slot(0, first_rank=1, world_size=2, hosts=("other", "node0"))
    attempt = next(IDS)
    assert agent.run("exit 5", attempt, slot=slot).state == "succeeded"
    assert agent.told("attempt_started", attempt) == []


def test_working_directories_stay_when_they_are_to_be_kept(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    kept = tmp_path_factory.mktemp("kept")
    plan = make_plan(node_local_dir=str(kept), keep_workdirs=True)
    with AgentProcess(tmp_path_factory.mktemp("agent"), plan) as agent:
        assert agent.run(GOOD, "1.900.1.1").state == "succeeded"
        agent.run("sleep 3; echo left > file; exit 1", "1.901.1.1")
    names = {path.parent.name + "/" + path.name for path in kept.glob("*/*/*")}
    assert {"1.900.1.1/output.json", "1.900.1.1/input.json", "1.901.1.1/file"} <= names
