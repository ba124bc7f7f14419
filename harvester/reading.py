"""Reads files that somebody names: what is no regular file is refused, for it may never end."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def read_regular(path: Path, limit: int | None = None) -> bytes:
    """The bytes of a file, at most ``limit`` of them. Does not wait for the writer of a pipe.

    Raises:
        OSError: it cannot be read, or is a directory, pipe, socket or device.
    """
    # Not to block is a word to pipes; regular files do not listen to it.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is no regular file but a pipe or device", str(path))
        return file.read() if limit is None else file.read(limit)
