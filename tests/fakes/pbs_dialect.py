"""qsub, qselect, qstat and qdel as OpenPBS 22.05 speaks: texts and exit codes of its sources."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from tests.fakes.engine import GPUS, NODES, Cluster, Job

SERVER = "pbs01"
_STATES = {"pending": "Q", "held": "H", "running": "R", "cancelling": "E"}
_SUBSTATES = {"running": 42, "completed": 92, "failed": 93, "cancelled": 91}
_QUEUES = ("batch", "debug")
_UNKNOWN, _FINISHED, _UNKNOWN_QUEUE, _BAD_VALUE = 153, 35, 172, 166  # PBSE_* modulo 256


def qsub(cluster: Cluster, argv: list[str]) -> int:
    path = Path(argv[-1])
    try:
        text = path.read_text(errors="surrogateescape")
    except OSError:
        return _fail(f"qsub: script file '{path}' cannot be loaded", 1)
    options = _options([*_directives(text), *argv[:-1]])
    queue = options.get("-q", "batch")
    if queue not in _QUEUES:
        return _fail("qsub: Unknown queue", _UNKNOWN_QUEUE)
    chunk = _chunk(options["-l select"])
    if chunk.get("ngpus", 0) > GPUS or chunk["nodes"] > len(NODES):
        return _fail("qsub: Job violates queue and/or server resource limits", _BAD_VALUE)
    job_id = cluster.add(
        {
            "name": options["-N"],
            "script": text,
            "directory": str(Path.home()),
            "output": options["-o"],
            "nodes": chunk["nodes"],
            "gpus": chunk.get("ngpus", 0),
            "cpus": chunk.get("ncpus", 1),
            "exclude": [],
            "queue": queue,
            "account": options.get("-A", ""),
            "walltime": options["-l walltime"],
            "held": "-h" in options,
        }
    )
    print(f"{job_id}.{SERVER}")
    return 0


def qselect(cluster: Cluster, argv: list[str]) -> int:
    name = argv[argv.index("-N") + 1] if "-N" in argv else None
    user = argv[argv.index("-u") + 1] if "-u" in argv else None
    account = argv[argv.index("-A") + 1] if "-A" in argv else None
    for job in cluster.jobs_of(user, account):
        if ("-x" in argv or _is_listed(job)) and name in (None, job["name"]):
            print(f"{job['id']}.{SERVER}")
    return 0


def qstat(cluster: Cluster, argv: list[str]) -> int:
    shown: dict[str, object] = {}
    code = 0
    for word in argv:
        if not word[0].isdigit():
            continue
        job = cluster.find(word.split(".")[0])
        if job is None:
            code = _fail(f"qstat: Unknown Job Id {word}", _UNKNOWN)
        elif "-x" not in argv and not _is_listed(job):
            cure = "use -x or -H to obtain historical job information"
            code = _fail(f"qstat: {word} Job has finished, {cure}", _FINISHED)
        else:
            shown[f"{job['id']}.{SERVER}"] = _attributes(job)
    answer: dict[str, object] = {"timestamp": 1, "pbs_version": "22.05.11", "pbs_server": SERVER}
    print(json.dumps({**answer, **({"Jobs": shown} if shown else {})}, indent=4))
    return code


def qdel(cluster: Cluster, argv: list[str]) -> int:
    code = 0
    for word in argv:
        job = cluster.find(word.split(".")[0])
        if job is None:
            code = _fail(f"qdel: Unknown Job Id {word}", _UNKNOWN)
        elif not _is_listed(job):
            code = _fail(f"qdel: Job has finished {word}", _FINISHED)
        else:
            cluster.cancel(job)
    return code


def qrls(cluster: Cluster, argv: list[str]) -> int:
    code = 0
    for word in argv[2:]:
        job = cluster.find(word.split(".")[0])
        if job is None:
            code = _fail(f"qrls: Unknown Job Id {word}", _UNKNOWN)
        elif not _is_listed(job):
            code = _fail(f"qrls: Job has finished {word}", _FINISHED)
        else:
            cluster.release(job)
    return code


def _directives(text: str) -> list[str]:
    header = [line[5:] for line in text.splitlines() if line.startswith("#PBS ")]
    return [word for line in header for word in shlex.split(line)]


def _options(words: list[str]) -> dict[str, str]:
    """All but -h take a value; later ones win, and ``-l`` is one option per resource."""
    found = {}
    if "-h" in words:  # the one without a value
        words = [word for word in words if word != "-h"]
        found["-h"] = ""
    for option, value in zip(words[::2], words[1::2], strict=True):
        assert re.fullmatch(r"-[NSlqAjkWro]", option), option
        name = f"{option} {value.split('=')[0]}" if option == "-l" else option
        found[name] = value.split("=", 1)[1] if option == "-l" else value
    return found


def _chunk(select: str) -> dict[str, int]:
    nodes, *parts = select.split(":")
    amounts = dict(part.split("=") for part in parts)
    numbers = {name: int(re.sub(r"\D", "", value)) for name, value in amounts.items()}
    return {"nodes": int(nodes), **numbers}


def _is_listed(job: Job) -> bool:
    return job["state"] in _STATES


def _attributes(job: Job) -> dict[str, object]:
    found: dict[str, object] = {
        "Job_Name": job["name"],
        "Job_Owner": f"{job['user']}@login1",
        **({"Account_Name": job["account"]} if job["account"] else {}),
        "job_state": _STATES.get(job["state"], "F"),
        "queue": job["queue"],
        "substate": _SUBSTATES.get(job["state"], 10),
        "Resource_List": {"nodect": job["nodes"], "walltime": job["walltime"]},
        "resources_used": {"walltime": "00:00:01"},
        "Variable_List": {"PBS_O_HOME": "/home/user", "PBS_O_SHELL": "/bin/bash"},
    }
    if job["state"] == "held":
        found["Hold_Types"] = "u"
    if job["state"] == "pending":
        found["comment"] = "Not Running: Insufficient amount of resource: ngpus"
    if job["on"]:
        found["run_count"] = job["restarts"] + 1
        found["exec_host"] = "+".join(f"{name}/0*{job['cpus']}" for name in job["on"])
    if job["exit"] is not None:
        deleted = job["state"] == "cancelled"
        found["Exit_status"] = 271 if deleted else job["exit"]
    return found


def _fail(text: str, code: int) -> int:
    print(text, file=sys.stderr)
    return code


COMMANDS: dict[str, Callable[[Cluster, list[str]], int]] = {
    "qsub": qsub,
    "qselect": qselect,
    "qstat": qstat,
    "qdel": qdel,
    "qrls": qrls,
}
PROGRAMS = tuple(COMMANDS)
DOWN = {
    name: (f"Connection refused\n{name}: cannot connect to server {SERVER} (errno=15010)", 2)
    for name in COMMANDS
}
LOST = {name: f"{name}: End of File" for name in COMMANDS}
