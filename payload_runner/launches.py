"""The launcher calls of MPI payloads: one per payload, made by the leader and by nobody else.

Agents run in a call of their own that holds their nodes, so a launcher must be told to overlap
with it (``runner.mpi_launcher`` of the site). What it starts is a shim per rank (``rank``), which
sits down with the agent of its node.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from payload_runner.attempts import LaunchEnd
from payload_runner.environment import for_launcher
from payload_runner.placement import Slot
from payload_runner.protocol import AllocationPlan
from payload_runner.rank import argv_of

TERMINATE_S = 3.0
SAID_LIMIT = 1000  # characters of a launcher's last words
_READ_BYTES = 4096


@dataclass
class _Call:
    process: subprocess.Popen[bytes]
    words: IO[bytes]
    kill_at: Optional[float] = None


class Launches:
    """Launcher processes by attempt. One thread; nothing here waits."""

    def __init__(
        self,
        plan: AllocationPlan,
        command: Sequence[str],
        environ: Mapping[str, str],
        directory: Path,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``command`` starts this runner; ``directory``: for files that a launcher reads."""
        self._plan = plan
        self._command = tuple(command)
        self._environment = for_launcher(environ)
        self._directory = directory
        self._monotonic = monotonic
        self._calls: Dict[str, _Call] = {}
        self._over: List[LaunchEnd] = []

    def start(self, attempt: str, slots: Sequence[Slot]) -> None:
        """Call the launcher for an attempt whose agents wait for its ranks."""
        words = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the call
        try:
            self._calls[attempt] = _Call(self._spawn(attempt, slots, words), words)
        except OSError as error:
            words.close()
            self._over.append(LaunchEnd(attempt, None, str(error)))

    def abort(self, attempt: str) -> None:
        """End the call: its ranks are dead, or nobody wants them. Calling twice is safe."""
        call = self._calls.get(attempt)
        if call is not None and call.kill_at is None:
            call.kill_at = self._monotonic() + TERMINATE_S
            _signal(call.process, signal.SIGTERM)

    def ended(self) -> List[LaunchEnd]:
        """Calls that are over, each once; and force on those that should be."""
        for attempt, call in list(self._calls.items()):
            code = call.process.poll()
            if code is not None:
                del self._calls[attempt]
                self._over.append(LaunchEnd(attempt, _shell_code(code), _last_words(call.words)))
            elif call.kill_at is not None and self._monotonic() >= call.kill_at:
                _signal(call.process, signal.SIGKILL)
        over, self._over = self._over, []
        return over

    def wait_s(self) -> Optional[float]:
        """Seconds until :meth:`ended` is due although no child has ended."""
        if self._over:
            return 0.0
        due = [call.kill_at for call in self._calls.values() if call.kill_at is not None]
        return max(0.05, min(due) - self._monotonic()) if due else None

    def close(self) -> None:
        """Kill what is left; agents end the ranks."""
        for call in self._calls.values():
            _signal(call.process, signal.SIGKILL)
            call.process.wait()
            call.words.close()
        self._calls.clear()

    def _spawn(
        self, attempt: str, slots: Sequence[Slot], words: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        nodes = [slot.node for slot in slots]
        seated = argv_of(self._plan.tag, attempt, slots[0].ranks, nodes)
        launcher = launch_words(self._plan, slots, self._directory / f"{attempt}.erf")
        if any("{erf}" in word for word in self._plan.mpi_launcher):
            (self._directory / f"{attempt}.erf").write_text(resource_file(self._plan, slots))
        return subprocess.Popen(
            [*launcher, *self._command, "rank", *seated],
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            env=self._environment,
            start_new_session=True,
        )


def launch_words(plan: AllocationPlan, slots: Sequence[Slot], erf: Path) -> Tuple[str, ...]:
    """The site's MPI launcher with its placeholders filled in for these slots (rank order).

    ``{nodes}``, ``{ranks}``, ``{ranks_per_node}``, ``{cores}`` and ``{gpus}`` (of a node),
    ``{hosts}`` as ``a,b``, ``{host_slots}`` as ``a:2,b:2``, ``{erf}`` jsrun's resource file.
    """
    each, hosts = slots[0].ranks, slots[0].hosts
    values = {
        "{nodes}": str(len(slots)),
        "{ranks}": str(each * len(slots)),
        "{ranks_per_node}": str(each),
        "{hosts}": ",".join(hosts),
        "{host_slots}": ",".join(f"{host}:{each}" for host in hosts),
        "{cores}": str(plan.node.cores),
        "{gpus}": str(plan.node.gpus),
        "{erf}": str(erf),
    }
    words = []
    for word in plan.mpi_launcher:
        for name, value in values.items():
            word = word.replace(name, value)
        words.append(word)
    return tuple(words)


def resource_file(plan: AllocationPlan, slots: Sequence[Slot]) -> str:
    """An explicit resource file for ``jsrun --erf_input``: whole nodes, shared with the agents.

    Source: IBM Spectrum LSF, Job Step Manager, "Explicit Resource File (ERF) format"; ``host``
    there is a host's number in the job, ``hostname`` its name. Cores and GPUs of the ranks are the
    agents' to pin.
    """
    lines = [
        "cpu_index_using: logical",
        "overlapping_rs: allow",
        "oversubscribe_cpu: allow",
        "oversubscribe_gpu: allow",
        "oversubscribe_mem: allow",
        "launch_distribution: packed",
    ]
    gpus = ",".join(str(gpu) for gpu in range(plan.node.gpus))
    whole = f"cpu: {{0-{plan.node.cores - 1}}}" + (f" ; gpu: {{{gpus}}}" if gpus else "")
    for host, slot in zip(slots[0].hosts, slots):
        for rank in range(slot.first_rank, slot.first_rank + slot.ranks):
            lines.append(f"rank: {rank}: {{ hostname: {host} ; {whole} }}")
    return "\n".join(lines) + "\n"


def _shell_code(code: int) -> int:
    return 128 - code if code < 0 else code


def _last_words(words: IO[bytes]) -> str:
    with words:
        size = words.seek(0, os.SEEK_END)
        words.seek(max(0, size - _READ_BYTES))
        return words.read().decode("utf-8", "replace").strip()[-SAID_LIMIT:]


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
