"""Word from the kernel that a file changed, on this machine only; None where there is no inotify.

Writes of other machines on a shared file system are never seen: callers poll as well there.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Dict, List, Optional, Tuple

MODIFY = 0x2
CLOSE_WRITE = 0x8
MOVED_TO = 0x80
CREATE = 0x100
CHANGES = MODIFY | MOVED_TO | CREATE  # enough to follow append-only logs and replaced files
OVERFLOW = 0x4000

_EVENT = struct.Struct("iIII")
_READ_BYTES = 64 * 1024


class Inotify:
    """One inotify descriptor. Not for several threads."""

    def __init__(self) -> None:
        """Raises OSError when the kernel has none to give, or no such call exists."""
        try:
            self._libc = ctypes.CDLL(None, use_errno=True)
            self._fd: int = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        except AttributeError as error:
            raise OSError(errno.ENOSYS, "this C library has no inotify") from error
        if self._fd < 0:
            raise _failure("inotify_init1")
        self._paths: Dict[int, str] = {}

    def fileno(self) -> int:
        """Readable when something has changed."""
        return self._fd

    def watch(self, path: str, mask: int = CHANGES) -> None:
        """Watch a file or the names in a directory. Raises OSError (limits, absence)."""
        found = self._libc.inotify_add_watch(self._fd, os.fsencode(path), ctypes.c_uint32(mask))
        if found < 0:
            raise _failure(f"inotify_add_watch {path}")
        self._paths[found] = path

    def changes(self) -> List[Tuple[str, str, int]]:
        """What has changed since the last call: (watched path, name in it or "", mask).

        A mask with OVERFLOW means that changes were lost: look at everything.
        """
        found: List[Tuple[str, str, int]] = []
        while True:
            try:
                data = os.read(self._fd, _READ_BYTES)
            except BlockingIOError:
                return found
            at = 0
            while at < len(data):
                watch, mask, _, length = _EVENT.unpack_from(data, at)
                at += _EVENT.size
                name = os.fsdecode(data[at : at + length].rstrip(b"\0"))
                at += length
                found.append((self._paths.get(watch, ""), name, mask))

    def close(self) -> None:
        """Calling twice is safe."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def open_inotify() -> Optional[Inotify]:
    """A new descriptor, or None where inotify is missing or used up."""
    try:
        return Inotify()
    except OSError:
        return None


def _failure(what: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{what}: {os.strerror(code)}")
