"""A root file system under a directory, filled layer by layer as the OCI image specification says.

Layers are read as if a stranger had made them: names and links are resolved as a chroot would, so
nothing is ever written or read outside the directory.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tarfile
from pathlib import Path

from payload_runner.commits import Broken

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_MAX_LINKS = 40  # as the kernel has it
_CHUNK = 1024 * 1024


class RootFs:
    """Owns everything below ``root``, which must exist."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def apply(self, layer: tarfile.TarFile) -> None:
        """Lay one layer over what is there.

        Device files and FIFOs are left out: a container has its own ``/dev``.

        Raises:
            Broken: a name or link that has no place here, or a torn archive.
            OSError: it cannot be written.
        """
        written: set[str] = set()
        for item in layer:
            folder, _, name = item.name.strip("/").rpartition("/")
            if name in ("", ".") and not folder:
                continue
            if name == _OPAQUE:
                self._hide_all(folder, written)
            elif name.startswith(_WHITEOUT):
                _remove(self.place(f"{folder}/{name[len(_WHITEOUT) :]}"))
            else:
                written.add(self._put(layer, item))

    def place(self, name: str) -> str:
        """Where a name of the image lies on the host; its last part is not followed.

        Raises:
            Broken: links that lead in circles.
        """
        return self._place(name, follow=False)

    def find(self, name: str) -> Path | None:
        """The file that a program in the container finds under a name; None if there is none."""
        try:
            path = Path(self._place(name, follow=True))
        except Broken:
            return None
        return path if path.exists() and not path.is_symlink() else None

    def make_directory(self, name: str) -> None:
        """Make a directory and those above it. Raises OSError."""
        parts = name.strip("/").split("/")
        for count in range(1, len(parts) + 1):
            with contextlib.suppress(FileExistsError):
                os.mkdir(self._place("/".join(parts[:count]), follow=True), 0o755)

    def _place(self, name: str, *, follow: bool) -> str:
        waiting = [part for part in name.split("/") if part not in ("", ".")]
        at: list[str] = []
        links = 0
        while waiting:
            part = waiting.pop(0)
            if part == "..":
                at = at[:-1]  # above the root is the root
                continue
            path = os.path.join(self.root, *at, part)
            if (waiting or follow) and os.path.islink(path):
                links += 1
                if links > _MAX_LINKS:
                    raise Broken(f"image entry {name!r:.200}: its links lead in circles")
                target = os.readlink(path)
                at = [] if target.startswith("/") else at
                waiting = [word for word in target.split("/") if word not in ("", ".")] + waiting
            else:
                at.append(part)
        return os.path.join(self.root, *at)

    def _put(self, layer: tarfile.TarFile, item: tarfile.TarInfo) -> str:
        path = self.place(item.name)
        if path == str(self.root):
            return path
        if item.isdir() and os.path.isdir(path) and not os.path.islink(path):
            return path
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _remove(path)
        if item.isdir():
            # Whoever unpacks must be able to go on, and to remove it again.
            os.mkdir(path, item.mode & 0o777 | 0o700)
        elif item.issym():
            os.symlink(item.linkname, path)
        elif item.islnk():
            self._link(item, path)
        elif item.isreg():
            _write(layer, item, path)
        return path

    def _link(self, item: tarfile.TarInfo, path: str) -> None:
        target = self.place(item.linkname)
        if not os.path.lexists(target) or os.path.isdir(target):
            raise Broken(f"image entry {item.name!r:.200}: a hard link to nothing")
        os.link(target, path, follow_symlinks=False)

    def _hide_all(self, folder: str, written: set[str]) -> None:
        """Hide what lower layers have in a directory; this layer's own entries may come first."""
        directory = self.place(folder)
        if os.path.islink(directory) or not os.path.isdir(directory):
            return
        for entry in os.scandir(directory):
            if not any(mine == entry.path or mine.startswith(f"{entry.path}/") for mine in written):
                _remove(entry.path)


def _write(layer: tarfile.TarFile, item: tarfile.TarInfo, path: str) -> None:
    content = layer.extractfile(item)
    assert content is not None
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    # Neither set-user-id nor set-group-id: whoever unpacks would be lent out.
    with open(os.open(path, flags, 0o600), "wb") as file:
        left = item.size
        while left:
            chunk = content.read(min(_CHUNK, left))
            if not chunk:
                raise Broken(f"image entry {item.name!r:.200} is cut short")
            file.write(chunk)
            left -= len(chunk)
        os.fchmod(file.fileno(), item.mode & 0o777 | 0o600)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        shutil.rmtree(path)
