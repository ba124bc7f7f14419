"""Finds the user's script in ``evaluationExec``, to miss it before anything is submitted.

The command is a line for ``/bin/sh`` and may be anything; only what is recognisably a file of the
user is looked for: the first word, or the argument of a shell or of Python.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Collection, Sequence

from harvester.steering.problems import Problems, nearest
from harvester.steering.travelling import SUFFIXES
from payload_runner.protocol import InputFile

_INTERPRETERS = re.compile(r"(?:/[\w./-]*/)?(?:sh|bash|dash|ksh|zsh|source|\.|python[\d.]*)")
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*")
_EXPANDED = re.compile(r"[$%*?`~\[{]")  # the shell or the harvester makes another word of it
_OPERATOR = re.compile(r"[;&|<>()]+")
_RUNS_NO_FILE = frozenset({"-c", "-m"})


def check_script(
    problems: Problems, command: str, files: Collection[InputFile], *, in_container: bool
) -> None:
    """Note it when the command starts a local script that does not travel along."""
    script = local_script(command, in_container=in_container)
    if script is None:
        return
    path = posixpath.normpath(script)
    names = {file.name for file in files}
    if path == ".." or path.startswith("../"):
        problems.add("evaluationExec", command, f"{script} lies outside the working directory")
    elif path not in names:
        hint = nearest(path, names) if names else "; there are no files beside the configuration"
        if not path.endswith(SUFFIXES):
            hint = f"; only {', '.join('*' + suffix for suffix in SUFFIXES)} travel"
        problems.add("evaluationExec", command, f"there is no file {path!r} to run{hint}")


def local_script(command: str, *, in_container: bool = False) -> str | None:
    """The relative path of the script that ``command`` starts, or None where none is evident."""
    words = _first_command(command)
    while words and _ASSIGNMENT.fullmatch(words[0]):
        words = words[1:]
    if not words:
        return None
    if _INTERPRETERS.fullmatch(words[0]):
        return _argument(words[1:])
    # In a container a bare name may be a program of the image.
    looks_local = "/" in words[0] or (words[0].endswith((".sh", ".py")) and not in_container)
    return words[0] if looks_local and _is_plain(words[0]) else None


def _first_command(command: str) -> Sequence[str]:
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    try:
        for word in lexer:
            if _OPERATOR.fullmatch(word):
                break
            words.append(word)
    except ValueError:  # an open quote: the shell will say so, or it is a here-document
        return ()
    return words


def _argument(words: Sequence[str]) -> str | None:
    for word in words:
        if word in _RUNS_NO_FILE:
            return None
        if not word.startswith("-"):
            return word if _is_plain(word) else None
    return None


def _is_plain(word: str) -> bool:
    return not word.startswith("/") and not _EXPANDED.search(word)
