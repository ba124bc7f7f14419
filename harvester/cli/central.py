"""``harvester central``: the embedded central service and its tokens."""

from __future__ import annotations

import os
from pathlib import Path

import click

from harvester.cli.options import FILE
from harvester.cli.output import print_text


@click.group()
def central() -> None:
    """Run the embedded central service."""


@central.command()
@click.option("--db", "database_url", metavar="URL", help="Database.  [default: SQLite, own file]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8787,
    show_default=True,
    help="Port; 0: any free one.",
)
@click.option("--tls-cert", type=FILE, metavar="FILE", help="Certificate chain (PEM).")
@click.option("--tls-key", type=FILE, metavar="FILE", help="Its key (PEM, 0600).")
@click.pass_context
def serve(
    context: click.Context,
    database_url: str | None,
    host: str,
    port: int,
    tls_cert: Path | None,
    tls_key: Path | None,
) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Writes where it listens and where its admin token lies to $XDG_STATE_HOME/harvester/central.json
    (0600); the other commands on this machine find it there.
    """
    from harvester.cli.logs import set_up_logs
    from harvester.paths import state_home
    from harvester.steering.serve import serve as serve_until_stopped

    set_up_logs(context.obj.verbose, os.environ)
    serve_until_stopped(
        database_url,
        host,
        port,
        tls_cert=tls_cert,
        tls_key=tls_key,
        state_home=state_home(os.environ),
    )


@central.group()
def token() -> None:
    """Make tokens for the embedded central service."""


@token.command()
@click.option("--user", required=True, metavar="NAME", help="Whose tasks the bearer owns.")
@click.option(
    "--role",
    type=click.Choice(("submit", "evaluate", "admin")),
    required=True,
    help="submit: own tasks; evaluate: lease points and tell results; admin: everything.",
)
@click.option(
    "--days", type=click.FloatRange(0, 3650, min_open=True), default=30.0, show_default=True
)
@click.option("--out", type=FILE, required=True, metavar="FILE", help="New file (0600) for it.")
def create(user: str, role: str, days: float, out: Path) -> None:
    """Make a token and write it to a new file, which --token-file then names."""
    from harvester.errors import Problem, UsageError
    from harvester.paths import state_home
    from harvester.steering.tokens import create_token

    text = create_token(user, role, days, state_home=state_home(os.environ))
    try:
        descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        problem = Problem(
            "command line", "--out", str(out), "expected a file that is not there yet"
        )
        raise UsageError(problem) from None
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{text}\n")
    print_text(f"Wrote a token of {user} ({role}, {days:g} days) to {out}.")
