"""qsub, qstat, qacct and qdel as Son of Grid Engine 8.1.9 speaks: texts of a cluster of it."""

from __future__ import annotations

import getpass
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import escape

from tests.fakes.engine import GPUS, NODES, Cluster, Job

_STATES = {"pending": "qw", "held": "hqw", "running": "r", "cancelling": "dr"}
_QUEUES = ("all.q", "debug")
_OUT_OF_REACH = (
    "error: commlib error: got select error (Connection refused)\n"
    'error: unable to send message to qmaster using port 6444 on host "login": got send error'
)


def qsub(cluster: Cluster, argv: list[str]) -> int:
    path = Path(argv[-1])
    try:
        text = path.read_text(errors="surrogateescape")
    except OSError:
        return _fail(f"Unable to read script file because of error: error opening {path}", 14)
    header = [line[3:] for line in text.splitlines() if line.startswith("#$ ")]
    options = _options([word for line in header for word in shlex.split(line)])
    queue, slots = options.get("-q", "all.q"), int(options.get("-pe mpi", "1"))
    if queue not in _QUEUES:
        return _refuse(f'Job was rejected because job requests unknown queue "{queue}"')
    # As under an allocation rule of one node's cores: the fake's jobs ask for one or for all.
    nodes = 1 if slots <= 1 else slots // 2
    gpus = int(options.get("-l gpu", "0"))
    if gpus > GPUS or nodes > len(NODES):
        return _refuse("error: no suitable queues")
    job = {
        "name": options["-N"],
        "script": text,
        "directory": options["-wd"],
        "output": options["-o"],
        "nodes": nodes,
        "gpus": gpus,
        "cpus": slots // nodes,
        "exclude": re.findall(r"[^!(|)]+", options.get("-l h", "")),
        "queue": queue,
        "account": options.get("-P", ""),
        "slots": slots,
        "held": "-h" in options,
    }
    print(cluster.add(job))
    return 0


def qstat(cluster: Cluster, argv: list[str]) -> int:
    user = argv[argv.index("-u") + 1]
    asked = cluster.jobs_of(None if user == "*" else user)
    listed = [job for job in asked if job["state"] in _STATES]
    print("<?xml version='1.0'?>\n<job_info xmlns:xsd=\"http://example.org/qstat.xsd\">")
    for part, waits in (("queue_info", False), ("job_info", True)):
        shown = [_listed(job) for job in listed if (job["state"] in ("pending", "held")) is waits]
        print(f"  <{part}>\n{''.join(shown)}  </{part}>")
    print("</job_info>")
    return 0


def qacct(cluster: Cluster, argv: list[str]) -> int:
    ended = [job for job in cluster.jobs if job["exit"] is not None]
    for job in ended:
        print("=" * 62)
        print("".join(f"{key:<12} {value}\n" for key, value in _record(job).items()), end="")
    print("OWNER      WALLCLOCK         UTIME         STIME\n" + "=" * 48)
    return 0


def qdel(cluster: Cluster, argv: list[str]) -> int:
    code = 0
    for word in argv:
        job = cluster.find(word)
        if job is None or job["state"] not in _STATES:
            print(f'denied: job "{word}" does not exist')
            code = 1
        elif job["state"] == "cancelling":
            print(f"job {word} is already in deletion")
        else:
            cluster.cancel(job)
            print(f"{getpass.getuser()} has registered the job {word} for deletion")
    return code


def qrls(cluster: Cluster, argv: list[str]) -> int:
    code = 0
    for word in argv[2].split(","):
        job = cluster.find(word)
        if job is None or job["state"] not in _STATES:
            print(f'denied: job "{word}" does not exist')
            code = 3
        elif job["state"] == "held":
            cluster.release(job)
            print(f"modified hold of job {word}")
    return code


def _options(words: list[str]) -> dict[str, str]:
    """``-l NAME=VALUE`` and ``-pe NAME SLOTS`` by their names; later ones win."""
    found: dict[str, str] = {}
    rest = iter(words)
    for option in rest:
        if option in ("-notify", "-h"):
            found[option] = ""
            continue
        value = next(rest)
        if option == "-l":
            name, _, amount = value.partition("=")
            found[f"-l {name}"] = amount
        elif option == "-pe":
            found[f"-pe {value}"] = next(rest)
        else:
            found[option] = value
    return found


def _listed(job: Job) -> str:
    fields = {
        "JB_job_number": job["id"],
        "JAT_prio": "0.50000",
        "JB_name": job["name"],
        "JB_owner": job["user"],
        "JB_project": job["account"],
        "state": _STATES[job["state"]],
        "queue_name": f"{job['queue']}@{job['on'][0]}" if job["on"] else "",
        "slots": str(job["slots"]),
    }
    inner = "".join(f"      <{key}>{escape(text)}</{key}>\n" for key, text in fields.items())
    return f'    <job_list state="{job["state"]}">\n{inner}    </job_list>\n'


def _record(job: Job) -> dict[str, object]:
    deleted = job["state"] == "cancelled"
    return {
        "qname": job["queue"],
        "hostname": job["on"][0],
        "owner": getpass.getuser(),
        "jobname": job["name"],
        "jobnumber": job["id"],
        "slots": job["slots"],
        "failed": "100 : assumedly after job" if deleted else "0",
        "exit_status": "137                  (Killed)" if deleted else job["exit"],
        "ru_wallclock": "1s",
        "maxvmem": "11.285MB",
        "arid": "undefined",
        "category": "-l h_rt=60",
    }


def _refuse(text: str) -> int:
    return _fail(f"Unable to run job: {text}\nExiting.", 1)


def _fail(text: str, code: int) -> int:
    print(text, file=sys.stderr)
    return code


COMMANDS: dict[str, Callable[[Cluster, list[str]], int]] = {
    "qsub": qsub,
    "qstat": qstat,
    "qacct": qacct,
    "qdel": qdel,
    "qrls": qrls,
}
PROGRAMS = tuple(COMMANDS)
DOWN = {
    **dict.fromkeys(COMMANDS, (_OUT_OF_REACH, 1)),
    "qacct": ("/opt/sge/default/common/accounting: Stale file handle", 1),
}
LOST = dict.fromkeys(COMMANDS, _OUT_OF_REACH)
