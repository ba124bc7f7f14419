"""Serves the files of one spool over a pair of pipes, to a harvester on another host.

``payload_runner.pyz files SPOOL`` runs on a site's login node at the far end of an ssh connection.
Each request is one operation of ``files.Files``, done here by the same code that the harvester
would run on the login node itself: what was answered is on stable storage. It ends with its input.

A frame is two lengths (4 bytes each, network order), a JSON object and raw bytes. The server
speaks first: ``GREETING``, behind whatever the login shell may have printed.
"""

from __future__ import annotations

import errno
import json
import struct
from pathlib import Path
from typing import Any, BinaryIO, Callable, Mapping, Tuple

from payload_runner.files import Files

GREETING = b"\npayload-runner files 1\n"
FRAME_LIMIT_BYTES = 64 * 1024 * 1024
_LENGTHS = struct.Struct(">II")

Frame = Tuple[Mapping[str, Any], bytes]
Reader = Callable[[int], bytes]


class BrokenFrame(Exception):
    """What came is no frame: the two ends cannot understand each other any more."""


def encode_frame(head: Mapping[str, Any], body: bytes = b"") -> bytes:
    """A frame's bytes."""
    text = json.dumps(head).encode()
    if len(text) + len(body) > FRAME_LIMIT_BYTES:
        raise OSError(errno.EFBIG, f"more than {FRAME_LIMIT_BYTES} bytes at once")
    return _LENGTHS.pack(len(text), len(body)) + text + body


def read_frame(read_exactly: Reader) -> Frame:
    """The next frame. ``read_exactly(n)`` answers n bytes or raises.

    Raises:
        BrokenFrame: no frame; and whatever ``read_exactly`` raises.
    """
    text_bytes, body_bytes = _LENGTHS.unpack(read_exactly(_LENGTHS.size))
    if text_bytes + body_bytes > FRAME_LIMIT_BYTES:
        raise BrokenFrame(f"a frame of {text_bytes + body_bytes} bytes")
    text, body = read_exactly(text_bytes), read_exactly(body_bytes)
    try:
        head = json.loads(text)
    except ValueError as error:
        raise BrokenFrame(f"a frame without JSON: {error}") from error
    if not isinstance(head, dict):
        raise BrokenFrame("a frame without an object")
    return head, body


def serve(files: Files, root: Path, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests about paths under ``root`` until there are no more."""

    def read_exactly(count: int) -> bytes:
        data = requests.read(count)
        if len(data) < count:
            raise EOFError
        return data

    answers.write(GREETING)
    answers.flush()
    while True:
        try:
            head, body = read_frame(read_exactly)
        except (EOFError, BrokenFrame):
            return
        answers.write(_answer(files, root, head, body))
        answers.flush()


def _answer(files: Files, root: Path, head: Mapping[str, Any], body: bytes) -> bytes:
    try:
        operation = _OPERATIONS.get(str(head.get("op")))
        if operation is None:
            raise OSError(errno.ENOSYS, f"no operation {head.get('op')!r:.40}")
        result = operation(files, _path(root, head.get("path")), root, head, body)
        if isinstance(result, bytes):
            return encode_frame({}, result)
        return encode_frame({"result": result})
    except OSError as error:
        return encode_frame({"errno": error.errno or errno.EIO, "error": error.strerror or ""})
    except (TypeError, ValueError) as error:
        return encode_frame({"errno": errno.EINVAL, "error": str(error)})


def _path(root: Path, text: object) -> Path:
    """A path under the root; nothing else is served, whoever asks."""
    relative = Path(str(text))
    if relative.is_absolute() or ".." in relative.parts:
        raise PermissionError(errno.EPERM, f"{str(text)!r:.80} is not a path in the spool")
    return root / relative


def _read(files: Files, path: Path, root: Path, head: Mapping[str, Any], body: bytes) -> bytes:
    return files.read(path, int(head["offset"]), int(head["limit"]))


def _create_log(files: Files, path: Path, root: Path, head: Mapping[str, Any], body: bytes) -> None:
    files.create_log(path).close()


def _append(files: Files, path: Path, root: Path, head: Mapping[str, Any], body: bytes) -> None:
    """All of it, synced; after an error the log's end may be torn, as after any failed write."""
    log = files.continue_log(path)
    try:
        view = memoryview(body)
        while view:
            view = view[log.write(bytes(view)) :]
        log.sync()
    finally:
        log.close()


def _create(files: Files, path: Path, root: Path, head: Mapping[str, Any], body: bytes) -> None:
    files.create_exclusive(path, body)


def _replace(files: Files, path: Path, root: Path, head: Mapping[str, Any], body: bytes) -> None:
    files.replace(path, body)


def _rename(files: Files, path: Path, root: Path, head: Mapping[str, Any], body: bytes) -> None:
    files.rename(path, _path(root, head.get("to")))


def _listdir(
    files: Files, path: Path, root: Path, head: Mapping[str, Any], body: bytes
) -> Tuple[str, ...]:
    return files.listdir(path)


def _make_dir(files: Files, path: Path, root: Path, head: Mapping[str, Any], body: bytes) -> None:
    files.make_dir(path)


def _exists(files: Files, path: Path, root: Path, head: Mapping[str, Any], body: bytes) -> bool:
    return files.exists(path)


def _remove(files: Files, path: Path, root: Path, head: Mapping[str, Any], body: bytes) -> None:
    files.remove(path)


def _remove_tree(
    files: Files, path: Path, root: Path, head: Mapping[str, Any], body: bytes
) -> None:
    if path == root:
        raise PermissionError(errno.EPERM, "the spool itself is not removed")
    files.remove_tree(path)


_OPERATIONS: Mapping[str, Callable[[Files, Path, Path, Mapping[str, Any], bytes], object]] = {
    "append": _append,
    "create": _create,
    "create_log": _create_log,
    "exists": _exists,
    "listdir": _listdir,
    "make_dir": _make_dir,
    "read": _read,
    "remove": _remove,
    "remove_tree": _remove_tree,
    "rename": _rename,
    "replace": _replace,
}
