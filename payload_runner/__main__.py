"""``python payload_runner.pyz lead SPOOL TAG``: the entry point of the zipapp."""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
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
    if words[:1] == ["tunnel"]:
        from payload_runner.launched import runner_command
        from payload_runner.tunnel import main as run_tunnel

        return run_tunnel(words[1:], runner_command(__file__, sys.executable))
    if words[:1] == ["rank"]:
        # It becomes a payload: nothing but what that takes.
        from payload_runner.rank import main as run_rank

        return run_rank(words[1:])
    given = _parser().parse_args(words)
    if given.command == "probe":
        return _probe(given)
    if given.command == "replay":
        return _replay(given)
    if given.command == "files":
        return _serve_files(given)
    return _lead(given) if given.command == "lead" else _join(given)


def _serve_files(given: argparse.Namespace) -> int:
    from payload_runner.files import RealFiles
    from payload_runner.fileserver import serve

    os.umask(0o077)
    try:
        serve(RealFiles(), given.spool, sys.stdin.buffer, sys.stdout.buffer)
    except OSError as error:
        return _refuse(EX_IOERR, error)
    return EX_OK


def _probe(given: argparse.Namespace) -> int:
    from payload_runner import probe, probing
    from payload_runner.launched import runner_command
    from payload_runner.protocol import BadRecord, to_fields

    if given.directory is None:
        print(json.dumps(to_fields(probing.look(os.environ)), indent=1))
        return EX_OK
    paths = probe.ProbePaths(given.directory.resolve())
    try:
        if given.on_node:
            probe.on_node(paths, given.host)
        else:
            probe.lead(paths, runner_command(__file__, sys.executable))
    except BadRecord as error:
        return _refuse(EX_DATAERR, error)
    except OSError as error:
        return _refuse(EX_IOERR, error)
    return EX_OK


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="payload-runner", description="Runs payloads inside a batch allocation.")
    parser.add_argument("--version", action="version", version=f"payload-runner {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    lead = commands.add_parser("lead", help="run an allocation; what its batch script executes")
    lead.add_argument("spool", type=Path, help="the spool directory on the shared file system")
    lead.add_argument("tag", help="the allocation's tag")
    lead.add_argument("--job-id", help="the batch job (default: as its environment says)")
    lead.add_argument("--restart", type=int, help="how often this job was started before")
    join = commands.add_parser("join", help="let this job of yours work for a spool")
    join.add_argument("spool", type=Path, help="the spool directory on the shared file system")
    join.add_argument("--nodes", type=_positive, help="(default: as the environment says)")
    join.add_argument("--walltime", help="time left: HH:MM:SS or 90m (default: as for --nodes)")
    join.add_argument("--job-id", help="the batch job (default: as its environment says)")
    commands.add_parser("agent", help="one node of an allocation; started by the leader")
    commands.add_parser("tunnel", help="an agent reached through MPI; started by the leader")
    commands.add_parser("rank", help="one rank of an MPI payload; started by the site's launcher")
    files = commands.add_parser("files", help="serve a spool's files to a harvester over ssh")
    files.add_argument("spool", type=Path, help="the spool directory on the shared file system")
    probe = commands.add_parser("probe", help="print what this node looks like, as JSON")
    probe.add_argument(
        "directory", type=Path, nargs="?", help="of `harvester site probe`: answer it"
    )
    probe.add_argument("--on-node", action="store_true", help="started by the launcher")
    probe.add_argument("--host", help="the node's name (default: as the machine says)")
    replay = commands.add_parser("replay", help="run by hand what an attempt ran")
    replay.add_argument("spool", type=Path, help="the spool directory on the shared file system")
    replay.add_argument("attempt", help="TASK.POINT (its newest attempt) or a whole attempt id")
    replay.add_argument("--directory", type=Path, help="a new one (default: ./replay-ATTEMPT)")
    replay.add_argument("--fresh", action="store_true", help="without the checkpoint")
    replay.add_argument("--dry-run", action="store_true", help="only say what would be run")
    return parser


def _replay(given: argparse.Namespace) -> int:
    from payload_runner import replay
    from payload_runner.commits import Broken
    from payload_runner.files import RealFiles
    from payload_runner.images import BadContainer
    from payload_runner.protocol import SpoolPaths

    spool = SpoolPaths(given.spool.resolve())
    try:
        found = replay.find_attempt(RealFiles(), spool, given.attempt)
        return replay.replay_visibly(
            spool, found, os.environ, given.directory, fresh=given.fresh, dry_run=given.dry_run
        )
    except replay.NothingToReplay as error:
        return _refuse(EX_DATAERR, error)
    except (BadContainer, Broken) as error:
        return _refuse(EX_CONFIG, error)
    except OSError as error:
        return _refuse(EX_IOERR, error)


def _lead(given: argparse.Namespace) -> int:
    from payload_runner import incarnation, leader
    from payload_runner.launched import runner_command
    from payload_runner.protocol import BadRecord

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


def _join(given: argparse.Namespace) -> int:
    from payload_runner import enlisting, incarnation, leader
    from payload_runner.files import RealFiles
    from payload_runner.launched import runner_command
    from payload_runner.protocol import BadRecord, SpoolPaths

    spool = given.spool.resolve()
    asked = enlisting.Given(nodes=given.nodes, walltime=given.walltime)
    try:
        job = incarnation.job_from(os.environ, given.job_id)
        tag = enlisting.enlist(
            RealFiles(),
            SpoolPaths(spool),
            job,
            asked,
            os.environ,
            now=time.time(),
            host=socket.gethostname(),
        )
        print(f"payload-runner: joined as {tag}; work comes within a minute or two", flush=True)
        command = runner_command(__file__, sys.executable)
        return leader.lead(leader.Setup(spool, tag, job, command, os.environ))
    except (incarnation.NoJob, enlisting.CannotJoin) as error:
        return _refuse(EX_CONFIG, error)
    except (BadRecord, ValueError) as error:
        return _refuse(EX_DATAERR, error)
    except OSError as error:
        return _refuse(EX_IOERR, error)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r:.40}; expected a number from 1")
    return int(text)


def _refuse(code: int, error: Exception) -> int:
    print(f"payload-runner: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
