"""``harvester site init``: a first site file from what the machine and its user say."""

from __future__ import annotations

import os
import re
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harvester.cli.output import note, print_text

if TYPE_CHECKING:
    from harvester.discovery import Machine, QueueFound
    from harvester.views.site_file import Answers

SYSTEMS = ("local", "slurm", "gridengine", "pbs", "lsf", "flux")
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


@click.command()
@click.option("--name", metavar="NAME", help="Of the site and its file.  [default: the host's]")
@click.option("--batch-system", type=click.Choice(SYSTEMS), help="[default: as found]")
@click.option("--account", metavar="ACCOUNT", help="Your project at the centre.")
@click.option("--spool", metavar="PATH", help="On scratch; $NAMES may stay.  [default: as found]")
@click.option("--gpus", type=click.IntRange(min=0), help="Of a node.  [default: as found]")
@click.option("--cores", type=click.IntRange(min=1), help="Of a node.  [default: as found]")
@click.option("--queue", "queues", multiple=True, metavar="QUEUE", help="Only these queues.")
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="[default: yours]")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@click.option("--dry-run", is_flag=True, help="Print the file, write nothing.")
def init(
    name: str | None,
    batch_system: str | None,
    output: Path | None,
    force: bool,
    dry_run: bool,
    **given: Any,
) -> None:
    """Look at this login node and write a first site file that validates.

    Asks for what it cannot find when a terminal is there to answer.
    """
    from harvester.discovery import look_around
    from harvester.paths import config_home
    from harvester.views.site_file import site_file

    machine = look_around(os.environ, batch_system=batch_system)
    _tell(machine)
    answers = _answers(machine, _site_name(name), **given)
    host, date = socket.gethostname(), time.strftime("%Y-%m-%d", time.gmtime())
    text = site_file(machine, answers, host=host, date=date)
    target = output or config_home(os.environ) / "sites" / f"{answers.name}.yaml"
    if dry_run:
        with tempfile.TemporaryDirectory() as directory:
            _check(text, Path(directory) / target.name, target)
        print_text(text.rstrip("\n"))
        return
    _write(text, target, force=force)
    note(f"Wrote {target}; look at it, then: harvester site show {output or answers.name}")


def _tell(machine: Machine) -> None:
    note(f"Batch system: {machine.batch_system}")
    scratch = machine.scratch
    if scratch is not None:
        room = f"{scratch.free_bytes / 1e9:.0f} GB and {scratch.free_files} files free"
        note(f"Scratch: ${scratch.variable} = {scratch.path}, {room} (your quota may be less)")
    for remark in machine.remarks:
        note(f"warning: {remark}")


def _site_name(given: str | None) -> str:
    from harvester.cli.options import wrong_argument

    found = re.sub(r"[^a-z0-9_.-]", "-", socket.gethostname().split(".")[0].lower()).strip("-._")
    name = given or _ask("Name of the site", found or "mysite")
    if not _NAME.fullmatch(name):
        expected = "expected small letters, digits, '_', '.' and '-'"
        raise wrong_argument("--name", name, expected)
    return name


def _answers(
    machine: Machine,
    name: str,
    *,
    account: str | None,
    spool: str | None,
    gpus: int | None,
    cores: int | None,
    queues: tuple[str, ...],
) -> Answers:
    from harvester.views.site_file import CORES, Answers

    chosen = _queues(machine, queues)
    first = next((queue for queue in chosen if queue.cores), None)
    if machine.batch_system != "local":
        account = account or _ask("Your account (project)", "") or None
        spool = spool or _ask("Spool directory on the shared file system", _spool(machine))
        cores = cores or _ask_number("Cores of a node", first.cores if first else None, CORES)
        if gpus is None:
            gpus = _ask_number("GPUs of a node", first.gpus if first else None, 0)
    return Answers(
        name=name,
        account=account,
        spool=spool or "",
        gpus=gpus or 0,
        cores=cores or CORES,
        memory_mb=first.memory_mb if first else None,
        queues=chosen,
    )


def _queues(machine: Machine, names: tuple[str, ...]) -> tuple[QueueFound, ...]:
    from harvester.discovery import QueueFound

    known = {queue.name: queue for queue in machine.queues}
    if names:
        for name in names if known else ():
            if name not in known:
                others = ", ".join(known)
                note(f"warning: queue {name}: the scheduler tells only of {others}; a slip?")
        return tuple(known.get(name, QueueFound(name=name)) for name in names)
    # One site file describes one kind of node: that of the first queue with the most GPUs.
    most = max((queue.gpus or 0 for queue in known.values()), default=0)
    alike = tuple(queue for queue in known.values() if (queue.gpus or 0) == most)
    for queue in known.values():
        if queue not in alike:
            note(f"Leaves out queue {queue.name}: its nodes have {queue.gpus or 0} GPUs")
    return alike or (QueueFound(name=_ask("Queue", "batch")),)


def _spool(machine: Machine) -> str:
    return f"${machine.scratch.variable}/harvester" if machine.scratch else "$HOME/harvester-spool"


def _ask(question: str, default: str) -> str:
    if not sys.stdin.isatty():
        return default
    answer: str = click.prompt(question, default=default, err=True)
    return answer


def _ask_number(question: str, found: int | None, fallback: int) -> int:
    if found is not None:
        return found
    if not sys.stdin.isatty():
        note(f"warning: {question.lower()}: not found, {fallback} is written; correct it")
        return fallback
    answer: int = click.prompt(question, default=fallback, type=click.IntRange(min=0), err=True)
    return answer


def _write(text: str, target: Path, *, force: bool) -> None:
    """Put a file that validates in place, all at once; never over another one unless told so."""
    from harvester.cli.options import wrong_argument
    from harvester.errors import StorageUnavailable

    part = target.with_name(f".{target.name}.{os.getpid()}.yaml")
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check(text, part, target)
        if force:
            part.replace(target)
        else:
            os.link(part, target)
    except FileExistsError:
        expected = "there is a file already; --force writes over it"
        raise wrong_argument("--output", str(target), expected) from None
    except OSError as error:
        raise StorageUnavailable(f"{target}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def _check(text: str, part: Path, target: Path) -> None:
    """Write ``part`` and refuse what does not validate, under the name that it is to have."""
    from harvester.config import load_site
    from harvester.errors import ConfigurationError

    part.write_text(text)
    part.chmod(0o600)
    try:
        load_site(str(part), os.environ)
    except ConfigurationError as error:
        found = (
            item._replace(file=str(target)) if item.file == str(part) else item
            for item in error.problems
        )
        raise ConfigurationError(found) from None
