"""The root command, and the one place that turns errors into sentences and exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from harvester import __version__
from harvester.cli import exits
from harvester.cli.lazy import Lazy, LazyGroup
from harvester.errors import HarvesterError

WIDTH = 80  # help texts are not wider, however wide the terminal is

COMMANDS = {
    "status": Lazy("harvester.cli.status:status", "What runs, what is wrong, what to do."),
    "task": Lazy("harvester.cli.task:task", "Submit, watch and steer searches."),
    "point": Lazy("harvester.cli.point:point", "Look at one point, its attempts and files."),
    "alloc": Lazy("harvester.cli.alloc:alloc", "List, show and cancel allocations."),
    "run": Lazy("harvester.cli.run:run", "Drive a site: the daemon, or one round of it."),
    "stop": Lazy("harvester.cli.stop:stop", "Drain a site: nothing new is submitted or started."),
    "start": Lazy("harvester.cli.stop:start", "Take back `stop`."),
    "recover": Lazy("harvester.cli.recover:recover", "Rebuild a site's index from its logs."),
    "audit": Lazy("harvester.cli.audit:audit", "Prove what was delivered of a task."),
    "site": Lazy("harvester.cli.site:site", "List, show, check and render site files."),
    "image": Lazy("harvester.cli.image:image", "Bring container images to a site."),
    "bundle": Lazy("harvester.cli.bundle:bundle", "Carry points and results by hand."),
    "service": Lazy("harvester.cli.service:service", "Keep a site's daemon running."),
    "central": Lazy("harvester.cli.central:central", "Run the embedded central service."),
    "completion": Lazy("harvester.cli.completion:completion", "Print a shell completion script."),
}


class Settings:
    """What the root options say; commands find it as the context's object."""

    verbose = 0


@click.group(
    cls=LazyGroup,
    lazy=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes are those of sysexits.h. Every listing takes --json.",
)
@click.version_option(
    __version__, "--version", prog_name="harvester", message="%(prog)s %(version)s"
)
@click.option("-v", "--verbose", count=True, help="Say more: tracebacks; -vv: each command run.")
@click.pass_obj
def root(settings: Settings, verbose: int) -> None:
    """Run hyperparameter searches on supercomputers whose compute nodes have no network."""
    settings.verbose = verbose


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; every error becomes a sentence on stderr and the code that is returned."""
    settings = Settings()
    try:
        code = root.main(
            None if arguments is None else list(arguments),
            prog_name="harvester",
            standalone_mode=False,
            obj=settings,
            terminal_width=_text_width(),
        )
        # None where whoever started us closed it; typeshed does not know that.
        if sys.stdout is not None:
            sys.stdout.flush()
        # click answers --help and --version with their code, commands with what they returned.
        return code if isinstance(code, int) else exits.OK
    except BrokenPipeError:
        _forget_stdout()
        return exits.BROKEN_PIPE
    except (click.Abort, KeyboardInterrupt):
        return exits.INTERRUPTED
    except click.ClickException as error:
        error.show()
        return exits.USAGE if isinstance(error, click.UsageError) else exits.NO_INPUT
    except Exception as error:  # noqa: BLE001  # the edge of the process: nobody else is left
        return _tell(error, settings)


def _text_width() -> int:
    """Columns of help texts: as click finds them, but without shutil and what it loads (5 ms)."""
    given = os.environ.get("COLUMNS", "")
    try:
        columns = int(given) if given.isdecimal() else os.get_terminal_size().columns
    except OSError:  # standard output is no terminal
        columns = 0
    return max(50, min(columns or WIDTH, WIDTH) - 2)


def _tell(error: Exception, settings: Settings) -> int:
    if settings.verbose:
        import traceback

        from harvester.views.text import clean_lines

        told = "".join(traceback.format_exception(error))
        click.echo(clean_lines(told), err=True, nl=False)
    if isinstance(error, HarvesterError):
        _say(*str(error).splitlines())
        return error.exit_code
    if isinstance(error, OSError):
        where = f" {error.filename}:" if error.filename else ""
        _say(f"{where} {error.strerror or error}".strip())
        return exits.IO
    _say(
        f"this should not have happened: {type(error).__name__}: {error}",
        "run it again as `harvester -v ...` and report what it prints",
    )
    return exits.SOFTWARE


def _say(*lines: str) -> None:
    from harvester.views.text import clean

    for line in lines:
        click.echo(f"harvester: {clean(line)}", err=True)


def _forget_stdout() -> None:
    # Else the interpreter complains about its own last flush.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
