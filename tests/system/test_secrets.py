"""After a whole search the central service's token stands in its own file and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import psutil

from scripts.stack import Stack
from tests.support import wait_until

SITE = """\
extends: local
name: secrets
node: {gpus: 1, cores: 1, memory: 1GB}
local: {nodes: 1}
budgets: {jobs_in_flight: 1}
runner: {idle_exit: 2s, keep_workdirs: true}
"""
# What a payload finds of itself and of others comes back with its output.
EVALUATION = "env; printf '{\"loss\": 1}' > output.json"


def _search(directory: Path) -> Path:
    directory.mkdir()
    space = {"x": {"method": "uniform", "dimension": {"low": 0.0, "high": 1.0}}}
    (directory / "space.json").write_text(json.dumps(space))
    config = {
        "outDS": "user.test.secrets",
        "evaluationExec": EVALUATION,
        "searchSpaceFile": "space.json",
        "maxPoints": 1,
        "nParallelEvaluation": 1,
        "sampler": "random",
        "payload": {"expected_minutes": 0.01, "keep_output": "always"},
    }
    path = directory / "config.json"
    path.write_text(json.dumps(config))
    return path


def _command_lines() -> str:
    return "\n".join(
        " ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])
    )


def test_token_is_in_no_log_no_spool_no_command_line_and_no_payload(tmp_path: Path) -> None:
    root = tmp_path / "stack"
    root.mkdir()
    with Stack(root, SITE) as stack:
        stack.start_central()
        (token_file,) = root.rglob("central.token")
        token = token_file.read_text().strip()
        key_file = token_file.with_name("central.key")
        task = stack.submit(_search(tmp_path / "search"))
        stack.start_daemon()
        seen: list[str] = []
        looked_at: set[object] = set()

        def is_over() -> bool:
            # Looking through all processes is dear: what is seen at each new state will do.
            state = stack.status().get("updated")
            if state not in looked_at:
                looked_at.add(state)
                seen.append(_command_lines())
            return stack.client().show(task)["state"] == "finished"

        wait_until(is_over, 240)
        secrets = (token.encode(), key_file.read_bytes().strip())
        places = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
        holders = {
            path for path in places if any(secret in path.read_bytes() for secret in secrets)
        }

    assert holders == {token_file, key_file}
    assert {path.stat().st_mode & 0o777 for path in holders} == {0o600}
    assert not any(secret.decode() in lines for secret in secrets for lines in seen)
