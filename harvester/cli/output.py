"""Printing results: JSON for programs, text for people, both on standard output."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])


def json_option(function: _F) -> _F:
    """The ``--json`` flag, as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")(
        function
    )


def print_json(value: object) -> None:
    """One JSON document; numbers are finite, as every reader expects."""
    click.echo(json.dumps(value, indent=1, allow_nan=False, default=str))


def print_text(text: str) -> None:
    """Text for people, as it is."""
    click.echo(text)


def note(text: str) -> None:
    """A remark beside the result: standard error."""
    from harvester.views.text import clean

    click.echo(clean(text), err=True)
