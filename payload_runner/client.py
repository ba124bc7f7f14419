"""For training scripts: report progress, learn when to stop. One file to import or copy.

Needs only Python's standard library (3.6+). Outside the harvester every function does nothing::

    import client
    for step in range(first_step, 1000):
        loss = train()
        client.report(step, loss)
        if step % 50 == 0 or client.should_stop():
            save("model.part"); os.replace("model.part", "model.pt")
            client.checkpoint("model.pt")
        if client.should_stop():
            break
"""

import json
import math
import os
import signal
import threading
import time

_METRICS = "metrics.jsonl"
_STOP = ".harvester-stop"
_CHECKPOINT = ".harvester-checkpoint"
_warned = threading.Event()
_listening = False


def inside() -> bool:
    """Whether this runs as a payload of the harvester."""
    return "HARVESTER_ATTEMPT" in os.environ


def report(step: int, loss: float, **more: float) -> None:
    """Report the loss (and other numbers) reached at a step; may be answered by an early stop.

    Steps are integers that count up; the newest report of a step wins. NaN and Infinity are
    left out. Only rank 0 of a payload with several processes should call it.
    """
    if not inside():
        return
    values = {"loss": loss}
    values.update(more)
    line = {name: float(value) for name, value in values.items() if math.isfinite(value)}
    if line:
        # One write of a short line: lines of several writers do not mix.
        with open(_path(_METRICS), "a") as file:
            file.write(json.dumps(dict(line, step=int(step))) + "\n")


def should_stop() -> bool:
    """Whether the time is nearly up: save a checkpoint and leave. Cheap enough for every step."""
    if not inside():
        return False
    _listen()
    return _warned.is_set() or os.path.exists(_path(_STOP))


def checkpoint(path: str) -> None:
    """Say that the checkpoint at ``path`` is whole now, so that it is saved soon.

    Only files named by the task's ``checkPointToSave`` are saved.
    """
    if inside():
        with open(_path(_CHECKPOINT), "w") as file:
            file.write(json.dumps({"path": str(path), "at": time.time()}))


def time_left() -> float:
    """Seconds until the payload is asked to stop; infinite outside the harvester."""
    deadline = os.environ.get("HARVESTER_DEADLINE")
    return math.inf if deadline is None else max(0.0, float(deadline) - time.time())


def _path(name: str) -> str:
    return os.path.join(os.environ.get("HARVESTER_WORKDIR", "."), name)


def _listen() -> None:
    """Take the warning signal, unless the program does so itself or this is another thread."""
    global _listening
    if _listening or threading.current_thread() is not threading.main_thread():
        return
    _listening = True
    if signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL:
        signal.signal(signal.SIGUSR2, lambda _number, _frame: _warned.set())
