"""flux batch, flux jobs, flux cancel and flux getattr as flux-core 0.60 speaks."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from tests.fakes.engine import CPUS, GPUS, NODES, Cluster, Job

_STATES = {"pending": "SCHED", "held": "SCHED", "running": "RUN", "cancelling": "CLEANUP"}
_RESULTS = {"completed": "COMPLETED", "failed": "FAILED", "cancelled": "CANCELED"}
_QUEUES = ("batch", "debug")
_DIGITS = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_SHIFT = 24  # the ids of Flux are large: time in their upper bits


def batch(cluster: Cluster, argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="flux-batch", exit_on_error=False, allow_abbrev=False)
    for option in (
        "job-name",
        "time-limit",
        "queue",
        "cwd",
        "output",
        "requires",
        "setattr",
        "urgency",
    ):
        parser.add_argument(f"--{option}", default="")
    for option in ("nodes", "nslots", "cores-per-slot", "gpus-per-slot"):
        parser.add_argument(f"--{option}", type=int, default=0)
    parser.add_argument("--exclusive", action="store_true")
    path = Path(argv[-1])
    try:
        text = path.read_text(errors="surrogateescape")
    except OSError:
        return _fail(f"flux-batch: ERROR: [Errno 2] No such file or directory: '{path}'")
    header = [line[8:] for line in text.splitlines() if line.startswith("# flux:")]
    words = [word for line in header for word in shlex.split(line)]
    options, unknown = parser.parse_known_args([*words, *argv[:-1]])
    if unknown:
        return _fail(f"flux-batch: error: unrecognized arguments: {unknown[0]}")
    if options.queue not in ("", *_QUEUES):
        return _fail(f"flux-batch: ERROR: [Errno 22] Invalid queue requested: {options.queue}")
    if options.gpus_per_slot > GPUS or options.nodes > len(NODES):
        return _fail("flux-batch: ERROR: [Errno 22] unsatisfiable request")
    if not re.fullmatch(r"[\d.]+[smhd]?", options.time_limit):
        return _fail(f"flux-batch: ERROR: invalid Flux standard duration {options.time_limit}")
    job_id = cluster.add(
        {
            "name": options.job_name,
            "script": text,
            "directory": options.cwd,
            "output": options.output,
            "nodes": options.nodes,
            "gpus": GPUS,  # --exclusive
            "cpus": CPUS,
            "exclude": options.requires.removeprefix("-host:").split(","),
            "queue": options.queue or "batch",
            "account": options.setattr.removeprefix("system.bank="),
            "held": options.urgency == "hold",
        }
    )
    print(f"\N{LATIN SMALL LETTER F WITH HOOK}{_f58(job_id)}")
    return 0


def jobs(cluster: Cluster, argv: list[str]) -> int:
    listed = cluster.jobs_of(None if "-A" in argv else getpass.getuser())
    print(json.dumps({"jobs": [_record(job) for job in listed]}))
    return 0


def cancel(cluster: Cluster, argv: list[str]) -> int:
    code = 0
    for word in argv:
        job = next((job for job in cluster.jobs if f"f{_f58(job['id'])}" == word), None)
        if job is None:
            code = _fail(f"flux-cancel: ERROR: {word}: unknown job id")
        elif job["state"] not in _STATES:
            code = _fail(f"flux-cancel: ERROR: {word}: job is inactive")
        else:
            cluster.cancel(job)
    return code


def job(cluster: Cluster, argv: list[str]) -> int:
    """``flux job urgency ID default``, which says what the urgency was."""
    found = next((known for known in cluster.jobs if f"f{_f58(known['id'])}" == argv[1]), None)
    if found is None:
        return _fail("flux-job: ERROR: unknown job")
    if found["state"] not in _STATES:
        return _fail("flux-job: ERROR: job is inactive")
    print(f"old urgency: {0 if found['state'] == 'held' else 16}", file=sys.stderr)
    cluster.release(found)
    return 0


def getattr_(cluster: Cluster, argv: list[str]) -> int:
    """In a batch script ``flux getattr jobid`` says which job it is."""
    print(f"\N{LATIN SMALL LETTER F WITH HOOK}{_f58(os.environ['FAKE_JOB_ID'])}")
    return 0


def _record(job: Job) -> dict[str, object]:
    found: dict[str, object] = {
        "id": int(job["id"]) << _SHIFT,
        "userid": os.getuid() + (job["user"] != getpass.getuser()),
        "username": job["user"],
        "bank": job["account"],
        "urgency": 0 if job["state"] == "held" else 16,
        "priority": 16,
        "t_submit": 1700000000.25,
        "state": _STATES.get(job["state"], "INACTIVE"),
        "name": job["name"],
        "queue": job["queue"],
        "ntasks": job["nodes"],
        "duration": 60.0,
        "nnodes": job["nodes"],
    }
    if job["on"]:
        found |= {"nodelist": ",".join(job["on"]), "annotations": {"sched": {"queue": "batch"}}}
    if job["state"] == "pending":
        found["annotations"] = {"sched": {"reason_pending": "insufficient resources"}}
    if job["state"] in _RESULTS:
        cancelled = job["state"] == "cancelled"
        words = ["cancel", "", 0] if cancelled else ["", "", ""]
        found |= {
            "result": _RESULTS[job["state"]],
            "success": job["state"] == "completed",
            "returncode": -15 if cancelled else job["exit"],
            "exception": {
                "occurred": cancelled,
                **dict(zip(("type", "note", "severity"), words, strict=True)),
            },
        }
    return found


def _f58(job_id: str) -> str:
    number, text = int(job_id) << _SHIFT, ""
    while number:
        number, digit = divmod(number, 58)
        text = _DIGITS[digit] + text
    return text


def _fail(text: str) -> int:
    print(text, file=sys.stderr)
    return 1


PROGRAMS = ("flux",)
COMMANDS: dict[str, Callable[[Cluster, list[str]], int]] = {
    "batch": batch,
    "jobs": jobs,
    "cancel": cancel,
    "getattr": getattr_,
    "job": job,
}
_DOWN = "ERROR: Unable to connect to Flux: broker socket /run/flux/local was not found"
DOWN = {name: (f"flux-{name}: {_DOWN}", 1) for name in COMMANDS}
LOST = {name: f"flux-{name}: ERROR: [Errno 110] Connection timed out" for name in COMMANDS}
