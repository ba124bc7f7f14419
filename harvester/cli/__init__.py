"""The command line: one file per noun. Each command parses, calls one function, prints.

Start-up is what people feel: nothing but click is imported before a command is chosen.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from typing import NoReturn

# Objects between two searches for garbage cycles. Python's 700 is for programs that make garbage;
# starting makes modules, functions and classes, which stay. A tenth of a quick command's time.
COLLECT_EVERY = 20_000


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and leave the process with its exit code (``harvester.cli.exits``)."""
    gc.set_threshold(COLLECT_EVERY)
    from harvester.cli.root import run

    code = run(arguments)
    # The interpreter's last search would walk through all of it once more: another tenth.
    gc.freeze()
    sys.exit(code)
