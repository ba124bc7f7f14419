"""Reads the output of payloads; keeps its beginning and its end and forgets the middle."""

from __future__ import annotations

import json
import os
from collections import deque
from typing import Deque, Dict, Tuple

from payload_runner.loop import Loop

_READ_BYTES = 64 * 1024
_READS_PER_TURN = 4  # a payload that floods its stdout shares the loop with the others
_READS_AT_END = 64  # what a pipe can hold, many times over


class Capture:
    """Bounded memory of one stream: half of ``limit_bytes`` is its head, half its tail."""

    def __init__(self, limit_bytes: int) -> None:
        self._head_limit = max(1, limit_bytes // 2)
        self._tail_limit = max(1, limit_bytes - self._head_limit)
        self._head = bytearray()
        self._tail: Deque[bytes] = deque()
        self._tail_bytes = 0
        self._left_out = 0

    def add(self, data: bytes) -> None:
        """Take the next bytes of the stream."""
        room = self._head_limit - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        if data:
            self._tail.append(data)
            self._tail_bytes += len(data)
            self._trim()

    def text(self) -> str:
        """Head and tail, with a line between them that counts what was left out."""
        tail = b"".join(self._tail)
        if not self._left_out:
            return (bytes(self._head) + tail).decode("utf-8", "replace")
        head = self._head.decode("utf-8", "replace")
        end = tail.decode("utf-8", "replace")
        return f"{head}\n[... {self._left_out} bytes left out ...]\n{end}"

    def tail(self, limit_bytes: int = 2048) -> str:
        """The end of the stream, at most ``limit_bytes`` of it."""
        kept = (
            bytes(self._head) + b"".join(self._tail) if not self._left_out else b"".join(self._tail)
        )
        return kept[-limit_bytes:].decode("utf-8", "replace")

    def _trim(self) -> None:
        while self._tail_bytes > self._tail_limit:
            excess = self._tail_bytes - self._tail_limit
            first = self._tail.popleft()
            if len(first) > excess:
                self._tail.appendleft(first[excess:])
            dropped = min(excess, len(first))
            self._tail_bytes -= dropped
            self._left_out += dropped


class Streams:
    """stdout and stderr of an attempt's processes, read in the loop as they come."""

    def __init__(self, loop: Loop, limit_bytes: int) -> None:
        self.stdout = Capture(limit_bytes)
        self.stderr = Capture(limit_bytes)
        self._loop = loop
        self._pipes: Dict[int, Capture] = {}

    def open(self) -> Tuple[int, int]:
        """Descriptors for one process's stdout and stderr; the caller closes them. May raise."""
        return self._pipe(self.stdout), self._pipe(self.stderr)

    def drain(self) -> None:
        """Read what lies in the pipes, now that nobody writes any more, and close them."""
        for fd in list(self._pipes):
            self._read(fd, _READS_AT_END)
            if fd in self._pipes:
                self._close(fd)

    def _pipe(self, capture: Capture) -> int:
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(read_end, False)
        self._pipes[read_end] = capture
        self._loop.watch(read_end, lambda: self._read(read_end, _READS_PER_TURN))
        return write_end

    def _read(self, fd: int, reads: int) -> None:
        for _ in range(reads):
            try:
                data = os.read(fd, _READ_BYTES)
            except BlockingIOError:
                return
            if not data:
                self._close(fd)
                return
            self._pipes[fd].add(data)

    def _close(self, fd: int) -> None:
        del self._pipes[fd]
        self._loop.unwatch(fd)
        os.close(fd)


def bounded_text(text: str, limit_bytes: int) -> str:
    """``text``, its middle cut so that its JSON form (ASCII) is at most ``limit_bytes`` long."""
    if not text:
        return text
    size = len(json.dumps(text))
    if size <= limit_bytes:
        return text
    mark = "\n[... cut ...]\n"
    keep = (limit_bytes - 64) * len(text) // size // 2
    while True:
        shorter = text[:keep] + mark + text[len(text) - keep :]
        if len(json.dumps(shorter)) <= limit_bytes or keep == 0:
            return shorter
        keep = keep * 3 // 4
