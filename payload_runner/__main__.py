"""``python payload_runner.pyz lead SPOOL TAG``: the entry point of the zipapp."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import socket
import sys
from pathlib import Path
from typing import List, Optional

from payload_runner import __version__

EX_OK, EX_USAGE, EX_DATAERR, EX_IOERR, EX_CONFIG = 0, 64, 65, 74, 78


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]  # it leaves as well
        self.print_usage(sys.stderr)
        self.exit(EX_USAGE, f"{self.prog}: {message}\n")


def main(argv: Optional[List[str]] = None) -> int:
    """Run one command; returns its exit code."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["agent"]:
        # Not imported for the leader, which is to stay small.
        from payload_runner.agent import main as run_agent

        return run_agent(words[1:])
    given = _parser().parse_args(words)
    if given.command == "probe":
        print(json.dumps(probe(), indent=1))
        return EX_OK
    return _lead(given)


def probe() -> dict[str, object]:
    """What this node looks like from here, for a site's file."""
    return {
        "version": __version__,
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "gpus": [name for name in sorted(os.listdir("/dev")) if re.fullmatch(r"nvidia\d+", name)],
        "gpu_variables": {
            name: os.environ[name]
            for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")
            if name in os.environ
        },
    }


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="payload-runner", description="Runs payloads inside a batch allocation.")
    parser.add_argument("--version", action="version", version=f"payload-runner {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    lead = commands.add_parser("lead", help="run an allocation; what its batch script executes")
    lead.add_argument("spool", type=Path, help="the spool directory on the shared file system")
    lead.add_argument("tag", help="the allocation's tag")
    lead.add_argument("--job-id", help="the batch job (default: as its environment says)")
    lead.add_argument("--restart", type=int, help="how often this job was started before")
    commands.add_parser("agent", help="one node of an allocation; started by the leader")
    commands.add_parser("probe", help="print what this node looks like, as JSON")
    return parser


def _lead(given: argparse.Namespace) -> int:
    from payload_runner import incarnation, leader
    from payload_runner.protocol import BadRecord
    from payload_runner.transport import runner_command

    try:
        job = incarnation.job_from(os.environ, given.job_id, given.restart)
        command = runner_command(__file__, sys.executable)
        spool = given.spool.resolve()
        return leader.lead(leader.Setup(spool, given.tag, job, command, os.environ))
    except incarnation.NoJob as error:
        return _refuse(EX_CONFIG, error)
    except (BadRecord, ValueError) as error:
        return _refuse(EX_DATAERR, error)
    except OSError as error:
        return _refuse(EX_IOERR, error)


def _refuse(code: int, error: Exception) -> int:
    print(f"payload-runner: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
