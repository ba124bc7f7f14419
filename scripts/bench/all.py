"""Every benchmark, and the peers that are installed on request, as one table.

  scripts/bench/all [--points N] [--width W] [--peers DIR]

Measures the CPU of whole process trees, since wall time on a shared machine lies, and compares with
the floor of its own moment: the C loop of posix_spawn runs again before each line. With --peers,
those of hyperqueue, parsl, ray and executorlib that pip offers are installed in an environment in
DIR and run the same payloads; one that cannot be installed or fails is listed with the reason.
Prints each benchmark's JSON line on stderr as it comes, and the table on stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import venv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import floor, tree_cpu

HERE = Path(__file__).resolve().parent
PEERS = ("hyperqueue", "parsl", "ray", "executorlib")
# Of the many figures of the runner's line.
RUNNER_KEYS = ("cpu_ms_per_payload", "cpu_ratio", "agent_mb", "leader_mb")


@dataclass(frozen=True)
class Line:
    """One line of the table: what was measured, and its figures or why there are none."""

    name: str
    figures: str


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--width", type=int, default=4, help="payloads at the same time")
    parser.add_argument("--peers", type=Path, help="where the peers' environment is kept")
    options = parser.parse_args()
    lines = [
        _throughput(options.points, options.width),
        *_peers(options.peers, options.points, options.width),
        _runner(options.points, options.width),
        _metadata(points=options.points, width=options.width),
        _latency(),
        _footprint(),
        _startup(),
    ]
    _print(lines)
    return 0


def _throughput(points: int, width: int) -> Line:
    found = _json("throughput", f"--points={points}", f"--width={width}")
    if isinstance(found, str):
        return Line("throughput", found)
    return Line("throughput", _against_floor(found["cpu_s"], found["wall_s"], found["floor"]))


def _runner(points: int, width: int) -> Line:
    found = _json("runner", f"--points={points}", f"--width={width}")
    if isinstance(found, str):
        return Line("runner alone", found)
    return Line("runner alone", _named(found, RUNNER_KEYS))


def _metadata(points: int, width: int) -> Line:
    found = _json("metadata", f"--points={points}", f"--width={width}")
    if isinstance(found, str):
        return Line("spool metadata", found)
    return Line("spool metadata", f"{found['per_payload']} operations a payload")


def _latency() -> Line:
    done = _run(sys.executable, str(HERE / "latency.py"), "--points=100")
    return Line("latency", _last(done.stderr))


def _footprint() -> Line:
    found = _json("footprint")
    return Line("idle daemon", found if isinstance(found, str) else _named(found, found))


def _startup() -> Line:
    found = _json("startup")
    if isinstance(found, str):
        return Line("start-up", found)
    each = found["startup_ms"].items()
    return Line("start-up", ", ".join(f"{name} {item['cpu']['min']} ms" for name, item in each))


# --- peers ---


def _peers(directory: Path | None, points: int, width: int) -> Iterable[Line]:
    if directory is None:
        yield Line("peers", "not asked for; --peers DIR installs and runs them")
        return
    python = directory / "bin" / "python"
    if not python.exists():
        venv.create(directory, with_pip=True)
    for name in PEERS:
        yield Line(name, _install(python, name) or _measure_peer(python, name, points, width))


def _install(python: Path, name: str) -> str:
    """Install a peer; why that is not possible, or nothing."""
    done = _run(str(python), "-m", "pip", "install", "--quiet", name)
    return "" if done.returncode == 0 else f"not installable: {_last(done.stderr)}"


def _measure_peer(python: Path, name: str, points: int, width: int) -> str:
    lowest = floor(points, width)
    # Some of them look for their own programs on the path.
    path = f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    command = (str(python), str(HERE / "peers.py"), name, f"--points={points}", f"--width={width}")
    began = time.monotonic()
    with tree_cpu() as cpu:
        done = _run(*command, PATH=path)
        wall_s = time.monotonic() - began
    if done.returncode != 0:
        return f"failed: {_last(done.stderr)}"
    return _against_floor(cpu.seconds, wall_s, lowest)


# --- running and printing ---


def _json(name: str, *arguments: str) -> dict[str, Any] | str:
    """The line that a benchmark prints, or why it failed."""
    done = _run(sys.executable, str(HERE / f"{name}.py"), *arguments)
    if done.returncode != 0:
        return f"failed: {_last(done.stderr)}"
    found: dict[str, Any] = json.loads(_last(done.stdout))
    return found


def _run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    print(f"{Path(command[1]).name}: {_last(done.stdout)}", file=sys.stderr)
    return done


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def _named(found: dict[str, Any], keys: Iterable[str]) -> str:
    return ", ".join(f"{key} {found[key]}" for key in keys)


def _against_floor(cpu_s: float, wall_s: float, lowest: dict[str, float] | None) -> str:
    ratio = "no C compiler" if lowest is None else f"{cpu_s / lowest['cpu_s']:.2f} x the floor"
    return f"{ratio}, cpu {cpu_s:.2f} s, wall {wall_s:.2f} s"


def _print(lines: Sequence[Line]) -> None:
    width = max(len(line.name) for line in lines)
    for line in lines:
        print(f"{line.name:<{width}}  {line.figures}")


if __name__ == "__main__":
    sys.exit(main())
