"""bsub, bjobs and bkill as LSF 10.1 speaks: texts of its command reference."""

from __future__ import annotations

import argparse
import getpass
import json
import re
import shlex
import sys
from collections.abc import Callable

from tests.fakes.engine import GPUS, NODES, Cluster, Job

_STATES = {
    "pending": "PEND",
    "held": "PSUSP",
    "running": "RUN",
    "cancelling": "RUN",
    "completed": "DONE",
    "failed": "EXIT",
    "cancelled": "EXIT",
}
_QUEUES = ("batch", "debug")


def bsub(cluster: Cluster, argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bsub", exit_on_error=False, allow_abbrev=False)
    for option in ("J", "W", "q", "P", "cwd", "o", "gpu"):
        parser.add_argument(f"-{option}", default="")
    parser.add_argument("-R", action="append", default=[])
    parser.add_argument("-nnodes", type=int, default=0)
    parser.add_argument("-n", type=int, default=1)
    parser.add_argument("-r", action="store_true")
    parser.add_argument("-rn", action="store_true")
    parser.add_argument("-H", action="store_true")
    text = sys.stdin.buffer.read().decode(errors="surrogateescape")
    header = [line[6:] for line in text.splitlines() if line.startswith("#BSUB ")]
    words = [word for line in header for word in shlex.split(line)]
    options, unknown = parser.parse_known_args([*words, *argv])
    if unknown:
        return _fail(f"{unknown[0]}: Illegal option. Job not submitted.")
    if options.q not in ("", *_QUEUES):
        return _fail(f"{options.q}: No such queue. Job not submitted.")
    required = " ".join(options.R)
    per_node = int(_found(r"span\[ptile=(\d+)\]", required) or 1)
    gpus = int(_found(r"num=(\d+)", options.gpu) or 0)
    nodes = options.nnodes or options.n // per_node
    if gpus > GPUS or nodes > len(NODES):
        return _fail("Requested resources cannot be satisfied. Job not submitted.")
    job_id = cluster.add(
        {
            "name": options.J,
            "script": text,
            "directory": options.cwd,
            "output": options.o,
            "nodes": nodes,
            "gpus": GPUS if options.nnodes else gpus,
            "cpus": per_node,
            "exclude": re.findall(r"hname!='([^']*)'", required),
            "queue": options.q or "batch",
            "account": options.P or "default",
            "held": options.H,
        }
    )
    chosen = f"queue <{options.q}>" if options.q else "default queue <batch>"
    print(f"Job <{job_id}> is submitted to {chosen}.")
    return 0


def bjobs(cluster: Cluster, argv: list[str]) -> int:
    fields = argv[argv.index("-o") + 1].upper().split()
    records = []
    everybody = "-u" in argv and argv[argv.index("-u") + 1] == "all"
    for job in cluster.jobs_of(None if everybody else getpass.getuser()):
        values = _values(job)
        records.append({field: values[field] for field in fields})
    print(json.dumps({"COMMAND": "bjobs", "JOBS": len(records), "RECORDS": records}, indent=2))
    return 0


def bkill(cluster: Cluster, argv: list[str]) -> int:
    code = 0
    for job_id in argv:
        job = cluster.find(job_id)
        if job is None:
            code = _fail(f"Job <{job_id}>: No matching job found")
        elif job["state"] in ("completed", "failed", "cancelled"):
            code = _fail(f"Job <{job_id}>: Job has already finished")
        else:
            cluster.cancel(job)
            print(f"Job <{job_id}> is being terminated")
    return code


def bresume(cluster: Cluster, argv: list[str]) -> int:
    code = 0
    for job_id in argv:
        job = cluster.find(job_id)
        if job is None:
            code = _fail(f"Job <{job_id}>: No matching job found")
        elif job["state"] in ("completed", "failed", "cancelled"):
            code = _fail(f"Job <{job_id}>: Job has already finished")
        elif job["state"] != "held":
            code = _fail(f"Job <{job_id}>: Job is not in suspended state")
        else:
            cluster.release(job)
            print(f"Job <{job_id}> is being resumed")
    return code


def _values(job: Job) -> dict[str, str]:
    killed = job["state"] == "cancelled"
    failed = job["state"] == "failed"
    waits = "Not enough hosts to meet the job's spanning requirement;"
    by_user = "Job was suspended by the user while pending;"
    return {
        "JOBID": job["id"],
        "JOBINDEX": "0",
        "STAT": _STATES[job["state"]],
        "JOB_NAME": job["name"],
        "QUEUE": job["queue"],
        "USER": job["user"],
        "PROJ_NAME": job["account"],
        "NEXEC_HOST": str(len(job["on"])) if job["on"] else "",
        "EXEC_HOST": ":".join(f"{job['cpus']}*{name}" for name in job["on"]),
        "PEND_REASON": {"pending": waits, "held": by_user}.get(job["state"], ""),
        "SUSPEND_REASON": "",
        "EXIT_CODE": "130" if killed else str(job["exit"]) if failed else "",
        "EXIT_REASON": "TERM_OWNER: job killed by owner" if killed else "",
    }


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match.group(1) if match else ""


def _fail(text: str) -> int:
    print(text, file=sys.stderr)
    return 255


COMMANDS: dict[str, Callable[[Cluster, list[str]], int]] = {
    "bsub": bsub,
    "bjobs": bjobs,
    "bkill": bkill,
    "bresume": bresume,
}
PROGRAMS = tuple(COMMANDS)
_LOST = "Failed in an LSF library call: Communication time out"
DOWN = {
    "bsub": (f"{_LOST}. Job not submitted.", 255),
    "bjobs": ("batch system daemon not responding ... still trying", 255),
    "bkill": (f"Job <1>: {_LOST}", 255),
    "bresume": (f"Job <1>: {_LOST}", 255),
}
LOST = dict.fromkeys(COMMANDS, _LOST)
