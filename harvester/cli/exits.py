"""Exit codes, as in BSD's sysexits.h, and the shell's own for signals."""

from __future__ import annotations

OK = 0
DIFFERENT = 1  # a check found something that is to be corrected
USAGE = 64  # the command line is wrong
DATA = 65  # an input file is wrong
NO_INPUT = 66  # a named file, task, point or allocation does not exist
UNAVAILABLE = 69  # the other side said no
SOFTWARE = 70  # our own fault
IO = 74  # a file system refused
TEMPORARY = 75  # try again later: the other side does not answer
NO_PERMISSION = 77  # a token or certificate is not accepted
CONFIGURATION = 78  # a site file or environment variable is wrong
INTERRUPTED = 130  # 128 + SIGINT
BROKEN_PIPE = 141  # 128 + SIGPIPE: the reader of our output has left
