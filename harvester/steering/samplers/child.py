"""Samplers in a child process, so that the service never stalls or dies with one.

``Suggester`` is the service's side; ``python -m harvester.steering.samplers.child`` is the child.
They speak JSON lines over the child's standard input and output. What the child answers is
checked against the space; what is wrong with it is mended or replaced, and the note says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from harvester.errors import InputError
from harvester.steering.problems import is_clean_json
from harvester.steering.samplers import runs_in_process, suggest
from harvester.steering.samplers.ask import Trial, make_ask
from harvester.steering.samplers.distinct import distinct, point_key
from harvester.steering.samplers.registry import SAMPLERS
from harvester.steering.space import SearchSpace, parse_space

IDLE_EXIT_S = 60.0
_ANSWER_MAX_BYTES = 64_000_000
_CHUNK = 1 << 16
_MODULE = "harvester.steering.samplers.child"
# Not the service's own environment: its keys and database address may stand there.
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "LD_LIBRARY_PATH")
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Suggestion:
    """Points to evaluate, who made each of them, and what went wrong on the way (for the log)."""

    points: list[dict[str, Any]]
    origin: list[str]  # the sampler's name, "<name>, repaired", or "quasi-random"
    note: str | None = None
    exhausted: bool = False  # fewer points than asked for: there are no more


class ChildFailed(Exception):
    """The child gave no answer; the message says why, for the task's log."""


class Suggester:
    """Asks samplers, in one child process at a time. Safe to share between threads."""

    def __init__(self, command: Sequence[str] = (sys.executable, "-m", _MODULE)) -> None:
        self._command = tuple(command)
        self._lock = threading.Lock()
        self._child: _Child | None = None

    def ask(
        self,
        name: str,
        space_json: Mapping[str, Any] | SearchSpace,
        history: Sequence[Trial],
        n: int,
        seed: int,
        n_asks: int,
        options: Mapping[str, Any] | None = None,
        deadline_s: float = 60.0,
    ) -> Suggestion:
        """``n`` points that are inside the space, whatever the sampler does.

        Blocks for ``deadline_s`` at most (and for asks of other threads before it). Samplers of
        the standard library, and the first points of a search, are made in this process at once.

        Raises:
            InputError: an unknown sampler, or a space that cannot be read.
        """
        space = space_json if isinstance(space_json, SearchSpace) else parse_space(space_json)
        if runs_in_process(name, space, history, n, options):
            points = suggest(name, space, history, n, seed, n_asks, options)
            return Suggestion(points, [name] * len(points), None, len(points) < n)
        request = {
            "name": name,
            "space": space.to_json(),
            "history": [[dict(t.parameters), t.state, t.value] for t in history],
            "n": n,
            "seed": seed,
            "n_asks": n_asks,
            "options": dict(options or {}),
        }
        note, answer = None, None
        try:
            answer = self._exchange(request, deadline_s)
        except ChildFailed as error:
            note = str(error)
        return _checked(name, space, history, n, seed, n_asks, answer, note)

    def close(self) -> None:
        """End the child. Asking again starts another one."""
        with self._lock:
            self._drop()

    def _exchange(self, request: Mapping[str, Any], deadline_s: float) -> Any:
        line = json.dumps(request, allow_nan=False).encode() + b"\n"
        until = time.monotonic() + deadline_s
        with self._lock:
            try:
                return self._try(line, until)
            except _ChildLeft:
                # It was idle for a minute and left while we wrote.
                return self._try(line, until)

    def _try(self, line: bytes, until: float) -> Any:
        if self._child is not None and not self._child.is_alive():
            self._drop()
        if self._child is None:
            self._child = _Child(self._command)
        try:
            reply = self._child.exchange(line, until)
        except ChildFailed:
            self._drop()
            raise
        if "error" in reply:
            raise ChildFailed(f"the sampler failed: {reply['error']}")
        return reply.get("points")

    def _drop(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None


class _ChildLeft(ChildFailed):
    """The child ended by itself, soundly, before it answered."""


class _Child:
    def __init__(self, command: Sequence[str]) -> None:
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the child
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=_environment(),
                start_new_session=True,
            )
        except OSError as error:
            self._stderr.close()
            raise ChildFailed(f"the sampler's process cannot start: {error}") from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        os.set_blocking(self._in.fileno(), False)
        os.set_blocking(self._out.fileno(), False)

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def exchange(self, line: bytes, until: float) -> Any:
        """Send one line, receive one; a hung or dead child is told by ``ChildFailed``."""
        answer = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(self._in, selectors.EVENT_WRITE)
            selector.register(self._out, selectors.EVENT_READ)
            while not answer.endswith(b"\n"):
                left = until - time.monotonic()
                if left <= 0:
                    raise ChildFailed("the sampler did not answer within its deadline")
                for key, _ in selector.select(left):
                    if key.fileobj is self._out:
                        self._read(answer)
                    elif not (line := self._write(line)):
                        selector.unregister(self._in)
        try:
            return dict(json.loads(answer))
        except (ValueError, TypeError) as error:
            raise ChildFailed("the sampler's process answered with nonsense") from error

    def close(self) -> None:
        """Kill it and everything it started; collect it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._in, self._out, self._stderr):
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def _write(self, line: bytes) -> bytes:
        try:
            return line[os.write(self._in.fileno(), line[:_CHUNK]) :]
        except BlockingIOError:
            return line
        except BrokenPipeError:
            raise self._death() from None

    def _read(self, answer: bytearray) -> None:
        try:
            data = os.read(self._out.fileno(), _CHUNK)
        except BlockingIOError:
            return
        if not data:
            raise self._death()
        answer += data
        if len(answer) > _ANSWER_MAX_BYTES:
            raise ChildFailed("the sampler's process answered without end")

    def _death(self) -> ChildFailed:
        try:
            code = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return ChildFailed("the sampler's process closed its output")
        if code == 0:
            return _ChildLeft("the sampler's process left without an answer")
        return ChildFailed(f"the sampler's process died (exit {code}){self._last_words()}")

    def _last_words(self) -> str:
        self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, self._stderr.tell() - 4096))
        lines = self._stderr.read().decode("utf-8", "replace").strip().splitlines()
        return f": {lines[-1][:300]}" if lines else ""


def _environment() -> dict[str, str]:
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    environment |= dict.fromkeys(_ONE_THREAD, "1")  # polite, and the same sums every time
    # The same harvester as this one, also from a checkout that is not installed.
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[3])
    environment["PYTHONSAFEPATH"] = "1"  # nothing from the current directory
    return environment


# --- checking what came back ---


def _checked(
    name: str,
    space: SearchSpace,
    history: Sequence[Trial],
    n: int,
    seed: int,
    n_asks: int,
    answer: Any,
    note: str | None,
) -> Suggestion:
    if note is None and not isinstance(answer, list):
        note = "the sampler answered with something else than a list of points"
    proposed, origins = _inside(name, space, answer if isinstance(answer, list) else [], n)
    mended = sum(origin != name for origin in origins)
    ask = make_ask(name, space, history, n, seed, n_asks, None)
    exhausts = SAMPLERS[name].exhausts and note is None
    points = distinct(ask, proposed, refill=not exhausts)
    known = {point_key(point): origin for point, origin in zip(proposed, origins, strict=True)}
    origin = [known.get(point_key(point), "quasi-random") for point in points]
    replaced = origin.count("quasi-random")
    sentences = [note] if note else []
    if mended:
        sentences.append(f"{mended} of {n} points lay outside the space and were moved inside")
    if replaced:
        sentences.append(f"{replaced} of {n} points are quasi-random instead")
    return Suggestion(points, origin, "; ".join(sentences) or None, len(points) < n)


def _inside(
    name: str, space: SearchSpace, answer: Sequence[Any], n: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """The answered points, moved into the space where they are a little off; no others."""
    points: list[dict[str, Any]] = []
    origins: list[str] = []
    names = {parameter.name for parameter in space.parameters}
    for point in answer[:n]:
        if not isinstance(point, dict) or not is_clean_json(point):
            continue
        if space.contains(point):
            points.append(point)
            origins.append(name)
        elif set(point) <= names and all(space.is_active(item, point) for item in point):
            nearest = space.nearest(point)
            if set(nearest) == set(point):
                points.append(nearest)
                origins.append(f"{name}, repaired")
    return points, origins


# --- the child ---


def main() -> int:
    """Answer requests until the service is gone or has been silent for a minute."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    requests = _Requests()
    while (line := requests.next(IDLE_EXIT_S)) is not None:
        answers.write(json.dumps(_answer(line)).encode() + b"\n")
        answers.flush()
    return 0


class _Requests:
    """Reads standard input in a thread, so that the service's death ends even a long fit."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._arrived = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def next(self, timeout: float) -> bytes | None:
        """The next request, or None after ``timeout`` seconds without one."""
        with self._arrived:
            if not self._arrived.wait_for(lambda: self._lines, timeout):
                return None
            return self._lines.pop(0)

    def _read(self) -> None:
        for line in sys.stdin.buffer:
            with self._arrived:
                self._lines.append(line)
                self._arrived.notify()
        os._exit(0)


def _answer(line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line)
        history = [Trial(*item) for item in request.pop("history")]
        points = suggest(history=history, **request)
        json.dumps(points, allow_nan=False)
    except InputError as error:
        return {"error": str(error)}
    except Exception as error:  # noqa: BLE001  # whatever a library raises: the service goes on
        return {"error": f"{type(error).__name__}: {error}"[:500]}
    return {"points": points}


if __name__ == "__main__":
    os._exit(main())  # the reading thread holds standard input: a plain exit would trip over it
