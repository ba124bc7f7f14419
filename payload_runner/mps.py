"""NVIDIA's Multi-Process Service, which lets payloads that share a GPU compute side by side.

Without it they take turns. One control daemon per node, started when the first share of a GPU is
given out, for this agent's payloads alone; a daemon that the batch job has started itself is used
instead. Payloads in containers do without: their processes are hidden from the daemon.

Source: NVIDIA, Multi-Process Service (release 12), sections "Environment Variables" and "Control
Daemon".
"""

from __future__ import annotations

import logging
import os
import shutil
from typing import Dict, Mapping, Optional

from payload_runner.placement import Slot
from payload_runner.processes import AGENT_MARKER

PROGRAM = "nvidia-cuda-mps-control"
_VARIABLE = "CUDA_VISIBLE_DEVICES"
_PIPES = "CUDA_MPS_PIPE_DIRECTORY"
_LOGS = "CUDA_MPS_LOG_DIRECTORY"
_PERCENTAGE = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
_TIMEOUT_S = 15.0
_log = logging.getLogger(__name__)


class Mps:
    """The daemon of one node. ``close`` ends it; without shares it never starts."""

    def __init__(self, environ: Mapping[str, str], gpu_variable: str, nonce: str) -> None:
        """``nonce``: the agent's, by which its guardian finds the daemon after a crash."""
        self._environ = environ
        self._nonce = nonce
        self._program = shutil.which(PROGRAM, path=environ.get("PATH"))
        self._usable = gpu_variable == _VARIABLE and self._program is not None
        self._directory: Optional[str] = None

    def variables(self, slot: Slot) -> Dict[str, str]:
        """What a payload needs to take part with its share; {} where it has whole GPUs.

        The first call that matters starts the daemon, which takes a moment.
        """
        share = min((gpu.share for gpu in slot.gpus), default=1.0)
        if share >= 1.0:
            return {}
        percentage = {_PERCENTAGE: str(max(1, round(share * 100)))}
        if self._environ.get(_PIPES):
            return percentage  # the job has its own daemon, and payloads inherit where it is
        if self._usable and self._directory is None:
            self._start()
        return {**self._places, **percentage} if self._usable else {}

    def close(self) -> None:
        """End the daemon that was started here. Calling twice is safe."""
        directory, self._directory = self._directory, None
        if directory is not None:
            self._control(directory, words="quit\n")
            shutil.rmtree(directory, ignore_errors=True)

    @property
    def _places(self) -> Dict[str, str]:
        return {} if self._directory is None else _places_in(self._directory)

    def _start(self) -> None:
        import tempfile  # few agents ever come here

        # Not below the spool: names of sockets are short.
        directory = tempfile.mkdtemp(prefix="mps-")
        problem = self._control(directory, "-d")
        if problem is None:
            self._directory = directory
            return
        self._usable = False
        shutil.rmtree(directory, ignore_errors=True)
        _log.warning(
            "Payloads that share a GPU take turns, %s does not start: %s", PROGRAM, problem
        )

    def _control(self, directory: str, *options: str, words: str = "") -> Optional[str]:
        """Run the control program; None, or why it failed."""
        import subprocess  # few agents ever come here

        assert self._program is not None
        environ = {
            # With the variable set it would number the GPUs anew, and payloads name others.
            **{name: value for name, value in self._environ.items() if name != _VARIABLE},
            **_places_in(directory),
            AGENT_MARKER: self._nonce,
        }
        try:
            # Its output goes nowhere: the daemon would hold a pipe open for ever.
            done = subprocess.run(
                [self._program, *options],
                input=words,
                text=True,
                env=environ,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=_TIMEOUT_S,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        return f"exit code {done.returncode}" if done.returncode else None


def _places_in(directory: str) -> Dict[str, str]:
    return {_PIPES: directory, _LOGS: os.path.join(directory, "log")}
