"""What the runners of one allocation have written down, for people. Reads, never writes."""

from __future__ import annotations

import time
from pathlib import Path

from payload_runner.files import RealFiles
from payload_runner.logfile import LogReader, Record
from payload_runner.protocol import SpoolPaths


def read_runner_events(spool: Path, tag: str) -> list[Record]:
    """Every event of every start of an allocation, log by log; [] where its logs are gone.

    Raises:
        BadRecord: the tag is none of ours.
        OSError: the spool cannot be read.
    """
    files, paths = RealFiles(), SpoolPaths(spool).allocation(tag)
    found: list[Record] = []
    if not files.exists(paths.root):
        return found
    for start in paths.incarnations(files.listdir(paths.root)):
        for log in start.event_logs(files.listdir(start.root)):
            reader = LogReader(files, log, time.monotonic)
            while records := reader.poll().records:
                found += records
    return found
