"""The command line: one file per noun. Each command parses, calls one function, prints.

Start-up is what people feel: nothing but click is imported before a command is chosen.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and leave the process with its exit code (``harvester.cli.exits``)."""
    from harvester.cli.root import run

    sys.exit(run(arguments))
