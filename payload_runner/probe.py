"""The probe job of ``harvester site probe``: measures what a site file claims of its nodes.

The lead, on the job's first node, starts one process a node through the site's launcher, calls the
launcher a second time while they run (as multi-node payloads will), and waits for the login node's
answer to a file that it writes. Everything has its time: the job is to last less than a minute.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, List, Optional, Sequence, Tuple

from payload_runner.files import RealFiles
from payload_runner.launching import calls_by_host, is_by_host, launcher_words, virtual_hosts
from payload_runner.probing import NodeFound, look
from payload_runner.protocol import AllocationPaths, AllocationPlan, dump_json, load_json

NODES_S = 30.0  # for the processes on the nodes
NESTED_S = 15.0
ANSWER_S = 25.0
_POLL_S = 0.1
_LIMIT = 1 << 20
_WORDS = 2000


@dataclass(frozen=True)
class ProbePaths(AllocationPaths):
    """The probe's directory: ``allocation.json``, script and output as an allocation has them."""

    @property
    def hello(self) -> Path:
        """Appears when the job runs."""
        return self.root / "hello"

    @property
    def answer(self) -> Path:
        """There from the start, as order logs are; grows when the login node saw ``hello``."""
        return self.root / "answer"

    @property
    def nested_done(self) -> Path:
        """Appears when the processes on the nodes may leave."""
        return self.root / "nested"

    @property
    def report(self) -> Path:
        return self.root / "report.json"

    def node(self, name: str) -> Path:
        return self.root / f"node.{name}.json"

    def nodes(self, names: Sequence[str]) -> Tuple[Path, ...]:
        """Those of a listing that nodes wrote."""
        found = sorted(n for n in names if n.startswith("node.") and n.endswith(".json"))
        return tuple(self.root / name for name in found)


@dataclass(frozen=True)
class Launch:
    """How one call of the launcher went."""

    code: Optional[int]  # None: it did not end in time
    processes: int = 0  # that said a word
    seconds: float = 0.0
    words: str = ""  # the end of its standard error


@dataclass(frozen=True)
class ProbeReport:
    """What the lead found besides the nodes themselves."""

    host: str
    nodes: Launch
    nested: Optional[Launch] = None  # None: there is no launcher
    answer_s: Optional[float] = None  # from a new file here to an answer seen here; None: none came


def lead(paths: ProbePaths, runner: Sequence[str]) -> None:
    """Run the probe and write the report; ``runner`` starts this runner.

    Raises:
        OSError: the probe's directory or the launcher fails.
        BadRecord: the plan in it is none.
    """
    files = RealFiles()
    plan = load_json(files.read(paths.plan, 0, _LIMIT), AllocationPlan)
    files.create_exclusive(paths.hello, b"")
    answered: List[float] = []
    waiting = threading.Thread(target=_await_answer, args=(paths, answered), daemon=True)
    waiting.start()
    nodes = _start(plan, [*runner, "probe", str(paths.root), "--on-node"])
    nested = None
    if plan.launcher:
        # Not before the first ones run, or it would be no second call beside them.
        _await(lambda: len(paths.nodes(files.listdir(paths.root))) >= plan.nodes, NODES_S / 2)
        nested = _nested(plan, runner)
    files.create_exclusive(paths.nested_done, b"")
    outcome = _finish(nodes, NODES_S)
    written = len(paths.nodes(files.listdir(paths.root)))
    waiting.join(ANSWER_S)
    report = ProbeReport(
        host=os.uname().nodename,
        nodes=replace(outcome, processes=written),
        nested=nested,
        answer_s=answered[0] if answered else None,
    )
    files.replace(paths.report, dump_json(report))


def on_node(paths: ProbePaths, host: Optional[str]) -> None:
    """One node's part: look, write it down, and stay until the second call of the launcher."""
    files = RealFiles()
    plan = load_json(files.read(paths.plan, 0, _LIMIT), AllocationPlan)
    found = look(os.environ, plan.node_local_dir)
    if host:
        found = replace(found, host=host)
    files.replace(paths.node(f"{found.host}.{os.getpid()}"), dump_json(found))
    _await(lambda: files.exists(paths.nested_done), NODES_S / 2 + NESTED_S)


def read_node(data: bytes) -> NodeFound:
    """What a node wrote. Raises BadRecord."""
    return load_json(data, NodeFound)


def _await_answer(paths: ProbePaths, answered: List[float]) -> None:
    files = RealFiles()
    began = time.monotonic()
    if _await(lambda: bool(files.read(paths.answer, 0, 1)), ANSWER_S):
        answered.append(round(time.monotonic() - began, 2))


def _start(plan: AllocationPlan, command: Sequence[str]) -> List[subprocess.Popen[str]]:
    if plan.launcher:
        return _launch(plan, command)
    hosts = virtual_hosts(os.environ, plan.nodes)
    return [_popen([*command, *(["--host", host] if host else [])]) for host in hosts]


def _nested(plan: AllocationPlan, runner: Sequence[str]) -> Launch:
    began = time.monotonic()
    outcome = _finish(_launch(plan, [*runner, "--version"]), NESTED_S)
    return replace(outcome, seconds=round(time.monotonic() - began, 2))


def _launch(plan: AllocationPlan, command: Sequence[str]) -> List[subprocess.Popen[str]]:
    if is_by_host(plan):
        return [_popen(call) for call in calls_by_host(plan, lambda _: command, os.environ)]
    return [_popen([*launcher_words(plan), *command])]


def _popen(argv: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )


def _finish(processes: Sequence[subprocess.Popen[str]], limit_s: float) -> Launch:
    until = time.monotonic() + limit_s
    code: Optional[int] = 0
    lines, words = 0, ""
    for process in processes:
        try:
            out, err = process.communicate(timeout=max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            code = None
        else:
            code = code if code is None else code or process.returncode
        lines += len(out.split("\n")) - 1
        words += err
    return Launch(code, lines, 0.0, words[-_WORDS:])


def _await(condition: Callable[[], bool], limit_s: float) -> bool:
    until = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() >= until:
            return False
        time.sleep(_POLL_S)
    return True
