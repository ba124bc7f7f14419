"""Renders batch scripts: a directive header, the site's prologue, and the one command.

Pure. What varies is quoted for the shell or checked to be a plain word; only the site's own
directives and prologue lines go in verbatim.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence

from harvester.batch.port import BatchJob
from harvester.errors import ConfigurationError, Problem

# What every batch system takes as the value of an option inside a directive, unquoted.
_WORD = re.compile(r"[A-Za-z0-9_.,:+@%/=\[\]-]+")


def render_script(
    job: BatchJob, *, prefix: str, options: Sequence[str], before: Sequence[str] = ()
) -> str:
    """The batch script of ``job``.

    ``options`` are the adapter's directives and come before the site's, so that the site has the
    last word where a batch system takes the later of two. ``before`` are shell lines of the
    adapter, before the site's prologue.

    Raises:
        ConfigurationError: a directive of the site has more than one line.
    """
    directives = [*options, *(_one_line(line) for line in job.directives)]
    header = [f"{prefix} {directive}" for directive in directives]
    # A warning that comes during the prologue must not kill the script; the runner, which takes
    # the script's place, installs its own handler.
    patience = ["trap '' USR1"] if job.warn_s > 0 else []
    body = ["umask 077", *patience, *before, *job.prologue, f"exec {shlex.join(job.command)}"]
    return "\n".join(["#!/bin/bash", *header, "", *body]) + "\n"


def plain_word(key: str, value: str) -> str:
    """``value`` itself if it can stand in a directive as it is.

    Raises:
        ConfigurationError: it holds a blank, a quote, a line break or the like.
    """
    if not _WORD.fullmatch(value):
        expected = "expected one word of letters, digits and _.,:+@%/=[]-"
        raise ConfigurationError(Problem("site", key, repr(value)[:200], expected))
    return value


def whole_minutes(seconds: float) -> int:
    """Minutes that cover ``seconds``, at least one."""
    return max(1, math.ceil(round(seconds, 3) / 60))


def _one_line(directive: str) -> str:
    if "\n" in directive or "\r" in directive:
        expected = "expected one line per directive"
        raise ConfigurationError(Problem("site", "directives", repr(directive)[:200], expected))
    return directive
