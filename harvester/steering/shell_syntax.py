"""Asks a shell whether it can parse a command, without running any of it.

What runs the command is ``/bin/sh`` on a compute node or in an image, which may be bash, dash or
busybox. bash is asked because it knows all of their grammars; where there is none, nobody is.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass

_WITHIN_S = 10.0
_MESSAGE = re.compile(r"line (\d+): (.+)")
_QUOTES = "'\"`"


@dataclass(frozen=True, slots=True)
class SyntaxFault:
    """Where a shell gives up on a command, and why."""

    line: int  # from 1
    column: int | None  # from 1; only an open quote has one
    message: str

    def __str__(self) -> str:
        column = "" if self.column is None else f", column {self.column}"
        return f"line {self.line}{column}: {self.message}"


def syntax_fault(command: str) -> SyntaxFault | None:
    """What keeps a shell from parsing the command; None if nothing does, or no bash is here.

    Blocks for some milliseconds. Nothing of the command is run or expanded.
    """
    bash = shutil.which("bash")
    if bash is None:
        return None
    try:
        done = subprocess.run(
            [bash, "--norc", "--noprofile", "-n"],
            input=command.encode("utf-8", "replace"),
            capture_output=True,
            timeout=_WITHIN_S,
            env={"LC_ALL": "C"},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None  # no verdict is no fault
    if done.returncode == 0:
        return None
    found = _MESSAGE.search(done.stderr.decode("utf-8", "replace"))
    line, said = (int(found[1]), found[2]) if found else (1, "cannot be parsed")
    return _located(command, line, said)


def _located(command: str, line: int, said: str) -> SyntaxFault:
    wanted = re.search(r"unexpected EOF while looking for matching [`'](.)'", said)
    at = open_quote(command)
    if at is None or wanted is None or command[at] != wanted[1]:
        # bash numbers the line behind the last one when the text ends too early.
        return SyntaxFault(min(line, command.count("\n") + 1), None, said)
    before = command[:at]
    column = at - (before.rfind("\n") + 1) + 1
    return SyntaxFault(before.count("\n") + 1, column, f"the quote {command[at]} is never closed")


def open_quote(command: str) -> int | None:
    """The index of the quote that is open at the end, by the plain rules of quoting."""
    opened: int | None = None
    at = 0
    while at < len(command):
        letter = command[at]
        mark = None if opened is None else command[opened]
        if letter == "\\" and mark != "'":
            at += 1
        elif mark is None and letter in _QUOTES:
            opened = at
        elif letter == mark:
            opened = None
        at += 1
    return opened
