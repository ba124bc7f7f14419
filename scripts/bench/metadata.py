"""Metadata operations on the spool for each payload, with working directories on a local disk.

  scripts/bench/metadata --points N --width W

Runs daemon, batch system, runner and payloads under strace and counts the calls that name a file
under the spool (open, stat, mkdir, rename, unlink ...), for 100 points and for 100 + N. Prints one
JSON line: the operations of each, and the slope between them, so that start and end do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from common import PAYLOAD, site_text, write_search
from stack import Account, Stack

SHORT = 100  # points of the run that start and end are taken from
# Call, directory that a relative name starts from (as -y shows it), and the name.
_CALL = re.compile(r"^\d+ +(\w+)\((?:(?:AT_FDCWD|\d+)<([^>]*)>, )?\"([^\"]*)\"")
# -D: strace is the child of what it traces, so that a signal to that reaches it.
STRACE = ("strace", "-D", "-f", "-qq", "-y", "-A", "-e", "trace=%file", "-e", "signal=none", "-o")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--width", type=int, default=4, help="payloads at the same time")
    options = parser.parse_args()
    if shutil.which("strace") is None:
        print("strace is not installed: nothing can be counted", file=sys.stderr)
        return 69
    short = _operations(SHORT, options.width)
    long = _operations(SHORT + options.points, options.width)
    more = (long.total() - short.total()) / options.points
    line = {
        "points": options.points,
        "operations_short": short.total(),
        "operations_long": long.total(),
        "per_payload": round(more, 3),
        "long_by_call": dict(long.most_common()),
    }
    print(json.dumps(line))
    return 0


def _operations(points: int, width: int) -> Counter[str]:
    """Calls that name a file under the spool while so many points are evaluated, by system call."""
    with tempfile.TemporaryDirectory(prefix="harvester-bench-") as temporary:
        root = Path(temporary)
        kept = root / "node-local"
        kept.mkdir()
        trace = root / "trace"
        stack = Stack(root, site_text(width, keep=kept))
        with stack:
            stack.start_central()
            task = stack.submit(write_search(root / "search", points, PAYLOAD))
            stack.account = Account(enter=(*STRACE, str(trace)))
            stack.start_daemon()
            client = stack.client()
            stack.wait(
                lambda: client.show(task)["state"] == "finished", 600, "the points did not finish"
            )
            spool = str(stack.site.spool)
        return _count(trace, spool)


def _count(trace: Path, spool: str) -> Counter[str]:
    found: Counter[str] = Counter()
    with trace.open(errors="replace") as lines:
        for line in lines:
            call = _CALL.match(line)
            if call is not None and os.path.join(call[2] or "", call[3]).startswith(spool):
                found[call[1]] += 1
    return found


if __name__ == "__main__":
    sys.exit(main())
