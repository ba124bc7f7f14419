"""sbatch, squeue, sacct and scancel as Slurm 22.05 speaks, texts and exit codes recorded there."""

from __future__ import annotations

import argparse
import getpass
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from tests.fakes.engine import GPUS, NODES, Cluster, Job

_STATES = {
    "pending": "PENDING",
    "held": "PENDING",
    "running": "RUNNING",
    "cancelling": "COMPLETING",
    "completed": "COMPLETED",
    "failed": "FAILED",
    "cancelled": "CANCELLED",
}
_PARTITIONS = ("batch", "debug")


def sbatch(cluster: Cluster, argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="sbatch", exit_on_error=False)
    for option in ("job-name", "output", "chdir", "time", "partition", "account", "signal", "mem"):
        parser.add_argument(f"--{option}", default="")
    parser.add_argument("--open-mode")
    parser.add_argument("--gres", default="gpu:0")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--cpus-per-task", type=int, default=1)
    parser.add_argument("--ntasks-per-node", type=int, default=1)
    parser.add_argument("--exclude", default="")
    for flag in ("parsable", "requeue", "no-requeue", "hold"):
        parser.add_argument(f"--{flag}", action="store_true")
    parser.add_argument("script")
    path = next(word for word in reversed(argv) if not word.startswith("-"))
    try:
        text = Path(path).read_text(errors="surrogateescape")
    except OSError:
        return _fail("sbatch: error: Unable to open file " + path)
    header = [line[8:] for line in text.splitlines() if line.startswith("#SBATCH ")]
    words = [word for line in header for word in shlex.split(line)]
    options, unknown = parser.parse_known_args([*words, *argv])
    if unknown:
        return _fail(f"sbatch: unrecognized option '{unknown[0]}'", 255)
    if options.partition not in ("", *_PARTITIONS):
        return _say_no(
            f"invalid partition specified: {options.partition}", "Invalid partition name specified"
        )
    gpus = int(options.gres.removeprefix("gpu:"))
    if gpus > GPUS or options.nodes > len(NODES):
        return _say_no("", "Requested node configuration is not available")
    job = {
        "name": options.job_name,
        "script": text,
        "directory": options.chdir,
        "output": options.output.replace("%%", "%"),
        "nodes": options.nodes,
        "gpus": gpus,
        "cpus": options.cpus_per_task,
        "exclude": options.exclude.split(","),
        "queue": options.partition or "batch",
        "account": options.account,
        "held": options.hold,
    }
    print(cluster.add(job))
    return 0


def squeue(cluster: Cluster, argv: list[str]) -> int:
    if "--start" in argv:
        for job in cluster.jobs:
            if job["state"] in ("pending", "held"):
                print("N/A|(null)")
        return 0
    (layout,) = [word.split("=", 1)[1] for word in argv if word.startswith("--Format=")]
    fields = re.findall(r"(\w+):(\d+)([^,]*)", layout)
    for job in cluster.jobs_of(getpass.getuser() if "--me" in argv else None):
        values = _fields(job)
        values["State"] = values["State"].split()[0]  # by whom is for sacct to say
        print("".join(f"{values[name][: int(w)]:<{w}}{end}" for name, w, end in fields))
    return 0


def sacct(cluster: Cluster, argv: list[str]) -> int:
    asked = dict(word.removeprefix("--").split("=", 1) for word in argv if "=" in word)
    ids, names = asked.get("jobs", "").split(","), asked.get("name", "").split(",")
    for job in cluster.jobs:
        if job["id"] in ids or job["name"] in names:
            values = _fields(job)
            print("|".join(values[name] for name in asked["format"].split(",")))
    return 0


def scancel(cluster: Cluster, argv: list[str]) -> int:
    failed = False
    for job_id in argv:
        job = cluster.find(job_id)
        if job is None:
            failed = True
            print(
                f"scancel: error: Kill job error on job id {job_id}: Invalid job id specified",
                file=sys.stderr,
            )
        else:
            cluster.cancel(job)
    return 1 if failed else 0


def sinfo(cluster: Cluster, argv: list[str]) -> int:
    for node in NODES:
        print(f"batch|{'mixed' if cluster.is_busy(node) else 'idle'}|{node}")
    return 0


def scontrol(cluster: Cluster, argv: list[str]) -> int:
    """``scontrol release ID,ID``, silent where it did it, and ``scontrol show reservation``."""
    if argv[0] == "show":
        print("No reservations in the system")
        return 0
    failed = False
    for job_id in argv[1].split(","):
        job = cluster.find(job_id)
        why = "Invalid job id specified" if job is None else "Job has already finished"
        if job is None or job["state"] in ("completed", "failed", "cancelled"):
            failed = True
            print(f"{why} for job {job_id}\nslurm_suspend error: {why}", file=sys.stderr)
        else:
            cluster.release(job)
    return 1 if failed else 0


def _fields(job: Job) -> dict[str, str]:
    nodes = ",".join(job["on"])
    state = _STATES[job["state"]]
    reasons = {"pending": "Resources", "held": "JobHeldUser"}
    return {
        "JobArrayID": job["id"],
        "JobID": job["id"],
        "State": state if state != "CANCELLED" else "CANCELLED by 1000",
        "ExitCode": f"{job['exit'] or 0}:0",
        "Reason": reasons.get(job["state"], "None"),
        "Partition": job["queue"],
        "NumNodes": str(job["nodes"]),
        "NNodes": str(job["nodes"]),
        "RestartCnt": str(job["restarts"]),
        "NodeList": nodes,
        "Name": job["name"],
        "JobName": job["name"],
        "UserID": str(os.getuid()),
        "UserName": job["user"],
        "Account": job["account"],
    }


def _say_no(detail: str, reason: str) -> int:
    lines = [f"sbatch: error: {detail}"] if detail else []
    return _fail("\n".join([*lines, f"sbatch: error: Batch job submission failed: {reason}"]))


def _fail(text: str, code: int = 1) -> int:
    print(text, file=sys.stderr)
    return code


COMMANDS: dict[str, Callable[[Cluster, list[str]], int]] = {
    "sbatch": sbatch,
    "squeue": squeue,
    "sacct": sacct,
    "scancel": scancel,
    "scontrol": scontrol,
    "sinfo": sinfo,
}
PROGRAMS = tuple(COMMANDS)

_DOWN = "Unable to contact slurm controller (connect failure)"
DOWN = {
    "sbatch": (f"sbatch: error: Batch job submission failed: {_DOWN}", 1),
    "squeue": (f"slurm_load_jobs error: {_DOWN}", 1),
    "sacct": ("sacct: error: Problem talking to the database: Connection refused", 1),
    "scancel": (f"scancel: error: Kill job error on job id 1: {_DOWN}", 1),
    "sinfo": (f"slurm_load_partitions: {_DOWN}", 1),
    "scontrol": (f"slurm_suspend error: {_DOWN}", 1),
}
LOST = {name: f"{name}: error: Socket timed out on send/recv operation" for name in COMMANDS}
