"""Memory and CPU of an idle daemon, and what one round from cron costs.

  scripts/bench/footprint [--seconds 20]

Prints one JSON line: resident megabytes of a daemon without work, its share of one core, and the
CPU seconds of one `harvester run --once` with the minutes a day that this makes every 5 minutes.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import site_text
from stack import Stack


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args()
    import psutil

    with (
        tempfile.TemporaryDirectory(prefix="harvester-bench-") as temporary,
        Stack(Path(temporary), site_text(2)) as stack,
    ):
        stack.start_central()
        once = _once_cpu(stack)
        stack.start_daemon()
        stack.wait(lambda: stack.status().get("mode") == "loop", 30, "the daemon is silent")
        time.sleep(3)
        daemon = psutil.Process(stack.daemon_pid)
        before = daemon.cpu_times()
        time.sleep(options.seconds)
        after = daemon.cpu_times()
        memory = daemon.memory_info().rss / 1e6
    used = after.user + after.system - before.user - before.system
    print(
        json.dumps(
            {
                "resident_mb": round(memory, 1),
                "idle_core_percent": round(100 * used / options.seconds, 2),
                "once_cpu_s": round(once, 2),
                "cron_cpu_minutes_a_day": round(once * 288 / 60, 1),
            }
        )
    )
    return 0


def _once_cpu(stack: Stack) -> float:
    command = (sys.executable, "-m", "harvester", "run", "--once", "--site", str(stack.site_file))
    subprocess.run(command, env=stack.environment, check=True, capture_output=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=stack.environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


if __name__ == "__main__":
    sys.exit(main())
