"""What can go wrong, by what the caller has to decide.

::

    HarvesterError                 root; one sentence for people, exit code for the CLI
    ├── InputError                 somebody's input is wrong: file, key, value, expectation (65)
    │   ├── UsageError             wrong command line (64)
    │   └── ConfigurationError     wrong site file, policy or environment (78)
    ├── NotFound                   a task, point or allocation that is not there (66)
    ├── Unavailable                try again later: the other side does not answer (75)
    │   ├── BatchUnavailable       a scheduler command failed, hung or made no sense
    │   ├── CentralUnavailable     the central service did not answer soundly
    │   └── StorageUnavailable     a file system is full, stale or gone
    ├── Refused                    the other side said no; repeating will not help (69)
    │   ├── SubmissionRefused      the batch system will not take this job
    │   ├── CentralRefused         the central service will not take this call
    │   └── CredentialsRefused     token or certificate is not (or no longer) good (77)
    ├── Fenced                     another driver holds the spool: stop acting (75)
    └── IllegalTransition          our own fault: a life took a step that its table lacks (70)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class HarvesterError(Exception):
    """Root of all expected errors; ``str()`` is one sentence that says what to do."""

    exit_code = 70


class Problem(NamedTuple):
    """One thing wrong with an input.

    Every command imports this module; a dataclass here would add 4 ms to each start.
    """

    file: str
    key: str
    value: str
    expected: str
    line: int | None = None

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        key = f" {self.key}:" if self.key else ""
        value = f" got {self.value};" if self.value else ""
        return _one_line(f"{where}:{key}{value} {self.expected}")


def _one_line(text: str) -> str:
    """The text with what is not printable escaped: a file's name may hold line ends."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else repr(character)[1:-1] for character in text
    )


class InputError(HarvesterError):
    """One or more problems of an input, all of them at once."""

    exit_code = 65

    def __init__(self, problems: Iterable[Problem] | Problem) -> None:
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class UsageError(InputError):
    """The command line itself is wrong."""

    exit_code = 64


class ConfigurationError(InputError):
    """A site file, policy file or environment variable is wrong."""

    exit_code = 78


class NotFound(HarvesterError):
    """Something named does not exist."""

    exit_code = 66


class Unavailable(HarvesterError):
    """The other side does not answer soundly; later it may."""

    exit_code = 75


class BatchUnavailable(Unavailable):
    """A scheduler command failed, timed out or printed what cannot be parsed.

    After a submission this means "not known whether it was taken": find the job by its tag.
    """

    def __init__(
        self, message: str, *, command: str = "", returncode: int | None = None, stderr: str = ""
    ) -> None:
        super().__init__(message)
        self.command = command
        self.returncode = returncode
        self.stderr = stderr


class CentralUnavailable(Unavailable):
    """The central service could not be reached, timed out or answered 5xx or nonsense."""


class StorageUnavailable(Unavailable):
    """A file system refuses or stalls (ENOSPC, EDQUOT, EIO, ESTALE, a deadline)."""


class Refused(HarvesterError):
    """The other side understood and said no."""

    exit_code = 69


class SubmissionRefused(Refused):
    """The batch system refuses this job (limits, account, arguments) and did not take it."""


class CentralRefused(Refused):
    """The central service refuses this call (4xx)."""


class CredentialsRefused(Refused):
    """A token or certificate is not accepted."""

    exit_code = 77


class Fenced(HarvesterError):
    """A newer epoch exists, or the lease may have expired: this process must not act."""

    exit_code = 75


class IllegalTransition(HarvesterError):
    """A life was asked to take a step that its table does not have."""
