"""The bundle file: a zip with a manifest, one JSON document and files named by their content.

Nothing of it is believed before it is checked, and nothing is written under a name that the file
chose: files are taken by their SHA-256. It holds no credentials.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import lzma
import os
import re
import secrets
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from harvester.errors import InputError, Problem, StorageUnavailable
from payload_runner.protocol import BadRecord, dump_json, load_json

FORMAT = "harvester-bundle"
VERSION = 1
MANIFEST, CONTENTS = "manifest.json", "contents.json"
# More than a million points or results with their output; beyond it something is wrong.
_DOCUMENT_LIMIT_BYTES = 2 * 1024 * 1024 * 1024
_MANIFEST_LIMIT_BYTES = 64 * 1024 * 1024
_CHUNK_BYTES = 1024 * 1024
# What the zip library says of bytes that were changed on their way: in a checksum, a name, the
# stream, or in what names compression, encryption and version.
_DAMAGED = (
    EOFError,
    KeyError,
    OSError,
    RuntimeError,
    ValueError,
    lzma.LZMAError,
    zipfile.BadZipFile,
    zlib.error,
)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Member:
    """A file of the bundle by its content."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """What the bundle is, and the checksums of all that it holds."""

    format: str
    version: int
    kind: str  # points | results
    site: str
    bundle: str  # its id
    created: str  # ISO 8601 UTC
    contents: Member
    files: tuple[Member, ...] = ()


class BadBundle(InputError):
    """The file is no bundle, is damaged, or is not meant for this."""


def new_id() -> str:
    """A bundle's id, or the key of a request for one."""
    return f"bundle-{secrets.token_hex(8)}"


def write_bundle(
    target: Path,
    manifest: Mapping[str, str],
    contents: Mapping[str, Any],
    files: Mapping[str, Path],
) -> None:
    """Write a bundle to ``target`` (0600), whole or not at all.

    ``manifest``: kind, site, bundle and created. ``files``: SHA-256 to the file that has it.

    Raises:
        StorageUnavailable: it cannot be written, or one of the files cannot be read.
    """
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    document = json.dumps(contents, allow_nan=False).encode()
    members = tuple(Member(sha256, path.stat().st_size) for sha256, path in sorted(files.items()))
    head = Manifest(
        format=FORMAT, version=VERSION, contents=_member(document), files=members, **manifest
    )
    try:
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "r+b") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(MANIFEST, dump_json(head))
                archive.writestr(CONTENTS, document)
                for member in members:
                    archive.write(files[member.sha256], _name(member))
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise StorageUnavailable(f"cannot write {target}: {error.strerror}") from error


class Bundle:
    """A bundle opened for reading; a context manager."""

    def __init__(self, path: Path) -> None:
        """Open a file and check its manifest.

        Raises:
            BadBundle: naming the file and what is wrong.
        """
        self.path = path
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise self._bad("", "", "expected a bundle, which is a regular file")
        try:
            self._archive = zipfile.ZipFile(path)
        except _DAMAGED as error:
            raise self._bad("", str(error), "expected a bundle that was carried whole") from error
        try:
            self.manifest = self._manifest()
        except BaseException:
            self._archive.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()

    def require(self, kind: str, site: str) -> None:
        """Raise BadBundle unless it is of this kind and for this site."""
        if self.manifest.kind != kind:
            expected = f"expected a bundle of {kind}: this is what the other side imports"
            raise self._bad("kind", self.manifest.kind, expected)
        if self.manifest.site != site:
            raise self._bad("site", self.manifest.site, f"expected a bundle of site {site}")

    def contents(self) -> Mapping[str, Any]:
        """The checked JSON document. Raises BadBundle."""
        member = self.manifest.contents
        data = b"".join(self._chunks(CONTENTS, member, _DOCUMENT_LIMIT_BYTES))
        try:
            found = json.loads(data)
        except ValueError as error:
            raise self._bad(CONTENTS, "", f"expected JSON: {error}") from None
        if not isinstance(found, dict):
            raise self._bad(CONTENTS, "", "expected an object")
        return found

    def take(self, member: Member, target: Path) -> None:
        """Write a file of the bundle to ``target`` (0600), checked, whole or not at all.

        Raises:
            BadBundle: it is not what the manifest says.
            OSError: ``target`` cannot be written.
        """
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                for chunk in self._chunks(_name(member), member, member.size):
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def bad_contents(self, error: Exception) -> BadBundle:
        """The error that says that the contents are not what this version knows."""
        return self._bad(CONTENTS, f"{type(error).__name__}: {error}", "expected another form")

    def _manifest(self) -> Manifest:
        try:
            if self._archive.getinfo(MANIFEST).file_size > _MANIFEST_LIMIT_BYTES:
                raise BadRecord("it is too large")
            found = load_json(self._archive.read(MANIFEST), Manifest)
        except (BadRecord, *_DAMAGED) as error:
            raise self._bad(MANIFEST, str(error), "expected a bundle of this program") from None
        if found.format != FORMAT or found.version != VERSION:
            value = f"{found.format} {found.version}"
            raise self._bad(MANIFEST, value, f"expected {FORMAT} {VERSION}; use the same release")
        for member in found.files:
            if not _SHA256.fullmatch(member.sha256):
                raise self._bad(MANIFEST, repr(member.sha256)[:80], "expected a SHA-256 in hex")
        return found

    def _chunks(self, name: str, member: Member, limit: int) -> Iterator[bytes]:
        digest, size = hashlib.sha256(), 0
        try:
            with self._archive.open(name) as file:
                while chunk := file.read(_CHUNK_BYTES):
                    size += len(chunk)
                    if size > min(limit, member.size):
                        break
                    digest.update(chunk)
                    yield chunk
        except _DAMAGED as error:
            raise self._bad(name, str(error), "expected a bundle that was carried whole") from None
        if size != member.size or digest.hexdigest() != member.sha256:
            raise self._bad(name, "another checksum", "expected a bundle that was carried whole")

    def _bad(self, key: str, value: str, expected: str) -> BadBundle:
        return BadBundle(Problem(str(self.path), key, value, expected))


def _member(data: bytes) -> Member:
    return Member(hashlib.sha256(data).hexdigest(), len(data))


def _name(member: Member) -> str:
    return f"files/{member.sha256}"
