"""PanDA's runHPO in offline mode as a payload: both layouts of its input, both dumps."""

from __future__ import annotations

import shlex
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from payload_runner.protocol import CheckpointRule, CheckpointSaved, InputFile, from_fields
from tests.node_agent import ATTEMPT, NEXT_ATTEMPT, AgentProcess

TOOL = Path(__file__).parents[1] / "fakes" / "run_hpo.py"
TRAIN = b"""#!/bin/sh
[ -e state/step ] || mkdir -p state
echo "starts at $(cat state/step 2>/dev/null) with $(cat input.json)"
echo '{"note": "mine"}' > meta.json
echo '{"loss": 0.25}' > output.json
"""
# Saves once, then waits to be stopped.
LONG = b"""#!/bin/sh
mkdir -p state; echo 7 > state/step; touch saved; sleep 1000
"""
LAYOUTS = [
    pytest.param("nested", "event_status.dump", id="as runHPO has it"),
    pytest.param("direct", "event_status.dump.json", id="as Harvester has it"),
]


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentProcess]:
    with AgentProcess(tmp_path) as running:
        yield running


def payload(agent: AgentProcess, script: bytes, **environment: str) -> Any:
    """What to hand to ``AgentProcess.start`` besides the command."""
    files: tuple[InputFile, ...] = (agent.add_input("train.sh", script, executable=True),)
    return {"files": files, "contract": "runhpo", "environment": environment}


def command(evaluation: str = "train.sh", options: str = "") -> str:
    quoted = urllib.parse.quote(evaluation)
    program = shlex.join((sys.executable, str(TOOL)))
    return (
        f'{program} -o output.json -j "" --inSampleFile input.json '
        f'-a jobO.sandbox.tar --sourceURL https://localhost -p "{quoted}" {options}'
    )


@pytest.mark.parametrize(("layout", "dump"), LAYOUTS)
def test_point_is_evaluated(agent: AgentProcess, layout: str, dump: str) -> None:
    given = payload(agent, TRAIN, LAYOUT=layout, DUMP=dump)
    ended = agent.run(
        command(options="--outMetaFile=meta.json"),
        meta_name="meta.json",
        relay_output=True,
        **given,
    )
    assert (ended.state, ended.loss, ended.metadata) == ("succeeded", 0.25, {"note": "mine"})
    assert ended.stdout == 'starts at  with {"x": 1}\n'


@pytest.mark.parametrize(("layout", "dump"), LAYOUTS)
def test_checkpoint_is_saved_and_gone_on_from(agent: AgentProcess, layout: str, dump: str) -> None:
    rule = CheckpointRule(("whatever",), interval_s=600.0)
    options = "--checkPointToSave=state --checkPointInterval=0.005"
    given = payload(agent, LONG, LAYOUT=layout, DUMP=dump)
    agent.start(command(options=options), ATTEMPT, checkpoint=rule, **given)
    saved = from_fields(CheckpointSaved, agent.wait_for("checkpoint", ATTEMPT))
    (workdir,) = agent.spool.work.glob(f"*/{ATTEMPT}")
    assert not (workdir / dump).exists()  # so that the next one can be announced
    agent.stop(ATTEMPT)
    agent.outcome(ATTEMPT)
    given = payload(agent, TRAIN, LAYOUT=layout, DUMP=dump)
    ended = agent.run(
        command(options=options),
        NEXT_ATTEMPT,
        checkpoint=rule,
        resume=saved.file,
        resume_of=ATTEMPT,
        relay_output=True,
        **given,
    )
    assert (ended.state, ended.stdout) == ("succeeded", 'starts at 7 with {"x": 1}\n')


def test_checkpoint_arrives_as_an_archive_where_runhpo_is_told_so(agent: AgentProcess) -> None:
    rule = CheckpointRule(("whatever",), interval_s=600.0)
    options = "--checkPointToSave=state --checkPointToLoad=old.tgz --checkPointInterval=0.005"
    agent.start(command(options=options), ATTEMPT, checkpoint=rule, **payload(agent, LONG))
    saved = from_fields(CheckpointSaved, agent.wait_for("checkpoint", ATTEMPT))
    agent.stop(ATTEMPT)
    agent.outcome(ATTEMPT)
    look = b"#!/bin/sh\ntar -tzf old.tgz; echo '{\"loss\": 1}' > output.json\n"
    ended = agent.run(
        command(options=options),
        NEXT_ATTEMPT,
        checkpoint=rule,
        resume=saved.file,
        relay_output=True,
        **payload(agent, look),
    )
    assert ended.stdout == "state/\nstate/step\n"


@pytest.mark.parametrize(
    ("evaluation", "state", "words"),
    [
        ("true", "failed", "exit code 150"),
        ('echo \'{"status": 3, "message": "no"}\' > output.json', "failed", "status is 3"),
    ],
)
def test_evaluation_without_a_loss_fails(
    agent: AgentProcess, evaluation: str, state: str, words: str
) -> None:
    ended = agent.run(command(evaluation), **payload(agent, TRAIN))
    assert (ended.state, ended.blame) == (state, "point")
    assert words in str(ended.reason)


def test_loss_is_taken_from_the_dump_where_the_output_has_another_name(
    agent: AgentProcess,
) -> None:
    ended = agent.run(command(), output_name="result.json", **payload(agent, TRAIN))
    assert (ended.state, ended.loss) == ("succeeded", 0.25)
