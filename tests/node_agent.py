"""A real agent in a process of its own, led by the test over the real TCP transport."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from payload_runner.placement import Slot
from payload_runner.processes import attempt_of
from payload_runner.protocol import (
    AllocationPlan,
    AttemptEnded,
    FileRef,
    IncarnationPaths,
    InputFile,
    NodeShape,
    Order,
    PayloadSpec,
    SpoolPaths,
    dump_json,
    from_fields,
    to_fields,
)
from payload_runner.tcp import TcpPort
from payload_runner.transport import AgentStart, make_secret
from tests.support import wait_until

TAG = "habcde-abcdef"
ROOT = Path(__file__).parents[1]
# Ids that no other test process of this machine uses: for tests that look for processes by them.
ATTEMPT, NEXT_ATTEMPT = (f"1.{os.getpid()}.1.{number}" for number in (1, 2))
GOOD = """echo '{"loss": 0.5, "message": "fine"}' > output.json"""


def make_plan(**changes: Any) -> AllocationPlan:
    """The plan of one virtual node."""
    given: dict[str, Any] = {
        "tag": TAG,
        "spool_id": "abcde",
        "nodes": 1,
        "node": NodeShape(gpus=4, cores=2),
        "walltime_s": 600.0,
        "batch_system": "local",
        "filesystem": "local",
    }
    return AllocationPlan(**{**given, **changes})


class AgentProcess:
    """Starts an agent on a spool under ``root`` and speaks to it as its leader."""

    def __init__(
        self,
        root: Path,
        plan: AllocationPlan | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        python: tuple[str, ...] = (sys.executable,),
    ) -> None:
        self.spool = SpoolPaths(root / "spool")
        self.plan = plan or make_plan()
        allocation = self.spool.allocation(TAG)
        self.paths: IncarnationPaths = allocation.incarnation("1", 0)
        self.paths.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        allocation.plan.write_bytes(dump_json(self.plan))
        secret = make_secret()
        self.paths.secret.write_bytes(secret)
        self.port = TcpPort(secret.strip(), time.monotonic, loopback=True)
        self.messages: list[tuple[str, dict[str, Any]]] = []
        self._specs: set[str] = set()
        start = AgentStart(
            self.spool.root, TAG, self.paths.name, self.port.addresses, "tcp", 0, "node0"
        )
        self.process = subprocess.Popen(
            [*python, "-m", "payload_runner", "agent", *start.argv()],
            env={**os.environ, **(environ or {}), "PYTHONPATH": str(ROOT)},
        )
        self.wait_for("hello")

    def __enter__(self) -> AgentProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.send("leave", {})
            try:
                self.process.wait(15.0)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.port.close()

    def send(self, kind: str, fields: dict[str, Any]) -> None:
        self.port.send(0, kind, fields)
        self.port.flush()

    def start(
        self,
        command: str,
        attempt: str = "1.1.1.1",
        *,
        slot: Slot | None = None,
        remaining_s: float = 500.0,
        parameters: Any = None,
        segment: str | None = None,
        resume: FileRef | None = None,
        resume_of: str | None = None,
        **spec: Any,
    ) -> str:
        """Define a payload and run one attempt at it; returns the attempt."""
        spec.setdefault("kill_s", 1.0)
        payload = PayloadSpec(attempt, command, **spec)
        order = Order(
            attempt,
            "1",
            attempt.split(".")[1],
            attempt,
            {"x": 1} if parameters is None else parameters,
            segment,
            checkpoint=resume,
            checkpoint_of=resume_of,
        )
        self.send("define", to_fields(payload))
        given = slot or Slot(node=0, hosts=("node0",))
        self.send(
            "run",
            {"order": to_fields(order), "slot": to_fields(given), "remaining_s": remaining_s},
        )
        return attempt

    def run(self, command: str, attempt: str = "1.1.1.1", **given: Any) -> AttemptEnded:
        """Run one attempt to its end."""
        return self.outcome(self.start(command, attempt, **given))

    def outcome(self, attempt: str, timeout: float = 60.0) -> AttemptEnded:
        fields = self.wait_for("attempt_ended", attempt, timeout=timeout)
        return from_fields(AttemptEnded, fields)

    def stop(self, attempt: str, outcome: str = "cancelled") -> None:
        self.send("stop", {"attempt": attempt, "outcome": outcome, "reason": "asked to"})

    def drain(self, remaining_s: float, outcome: str = "timed_out") -> None:
        fields = {"reason": "the walltime ends", "remaining_s": remaining_s, "now": True}
        self.send("drain", {**fields, "outcome": outcome})

    def wait_for(
        self, kind: str, attempt: str | None = None, *, timeout: float = 60.0
    ) -> dict[str, Any]:
        """The fields of the first message of a kind (and an attempt)."""

        def found() -> list[dict[str, Any]]:
            self.listen()
            return self.told(kind, attempt)

        return wait_until(found, timeout)[0]

    def wait_while_listening(self, predicate: Callable[[], Any], timeout: float = 60.0) -> Any:
        """As ``wait_until``, taking messages meanwhile."""

        def tried() -> Any:
            self.listen()
            return predicate()

        return wait_until(tried, timeout)

    def told(self, kind: str, attempt: str | None = None) -> list[dict[str, Any]]:
        """The messages of a kind so far."""
        return [
            fields
            for name, fields in self.messages
            if name == kind and attempt in (None, fields.get("attempt"))
        ]

    def listen(self) -> None:
        self.messages += [message for _, message in self.port.receive()]
        self.port.flush()

    def add_input(self, name: str, data: bytes, *, executable: bool = False) -> InputFile:
        """Put an input file into the spool."""
        sha256 = hashlib.sha256(data).hexdigest()
        self.spool.inputs.mkdir(parents=True, exist_ok=True)
        self.spool.input(sha256).write_bytes(data)
        return InputFile(name, sha256, len(data), executable)


def processes_of(attempt: str) -> list[int]:
    """Processes of the machine that belong to an attempt, whoever started it."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [pid for pid in pids if attempt_of(pid) == attempt]
