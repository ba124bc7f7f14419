"""Options that several nouns share, and what commands that drive a site check first."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from harvester.errors import Problem, UsageError

if TYPE_CHECKING:
    from harvester.site import Site

_F = TypeVar("_F", bound=Callable[..., Any])


class _FileName(click.Path):
    """The name of a file; an empty one would be the current directory's."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:  # Any: as click has it
        if value == "":
            self.fail("expected the name of a file, got an empty text", param, ctx)
        return super().convert(value, param, ctx)


FILE = _FileName(dir_okay=False, path_type=Path)


def central_options(function: _F) -> _F:
    """``--central`` and ``--token-file``."""
    function = click.option(
        "--token-file",
        type=FILE,
        metavar="FILE",
        help="File (0600) with the token.  [env: HARVESTER_TOKEN_FILE]",
    )(function)
    return click.option(
        "--central",
        metavar="URL",
        help="The central service.  [env: HARVESTER_CENTRAL; default: the one on this machine]",
    )(function)


def site_option(function: _F) -> _F:
    """``--site`` for commands that act on exactly one site."""
    return click.option(
        "--site",
        metavar="NAME",
        envvar="HARVESTER_SITE",
        show_envvar=True,
        default="local",
        show_default=True,
        help="Name or path of the site file.",
    )(function)


def states_option(function: _F) -> _F:
    """``--site`` for commands that look at every site by default."""
    return click.option("--site", metavar="NAME", help="Only this site.  [default: all]")(function)


def task_client(central: str | None, token_file: Path | None) -> Any:
    """A client of the central service that these options name.

    Any: the client's class lives beyond what the command line imports at start.
    """
    from harvester.wiring import CentralOverrides, make_task_client

    return make_task_client(CentralOverrides(url=central, token_file=token_file), os.environ)


def seconds_of(walltime: str | None) -> float | None:
    """The value of ``--walltime`` in seconds.

    Raises:
        UsageError: it is no duration.
    """
    from harvester.quantities import parse_duration_s

    if walltime is None:
        return None
    try:
        return parse_duration_s(float(walltime) if walltime.isdigit() else walltime)
    except ValueError as error:
        raise wrong_argument("--walltime", walltime, f"expected {error}") from None


def wrong_argument(argument: str, value: str, expected: str) -> UsageError:
    """An argument that parses but cannot be meant."""
    return UsageError(Problem("command line", argument, repr(value), expected))


def refuse_second(site: Site) -> None:
    """Say at once who drives this spool from this host; the lease alone would take its period."""
    from harvester.errors import Fenced
    from harvester.paths import site_states
    from harvester.views.site_states import Health, read_state

    found = read_state(site.name, site_states(os.environ) / site.name)
    status = found.status
    if found.health is not Health.ALIVE or not status or status.get("host") != os.uname().nodename:
        return
    raise Fenced(
        f"process {status.get('pid')} on {status.get('host')} drives {site.spool} since "
        f"{status.get('started')}; stop it first (kill {status.get('pid')})"
    )
