"""Image files that a person brings: what they are, and how they become a root file system."""

from __future__ import annotations

import hashlib
import json
import tarfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from harvester.images.rootfs import RootFs
from payload_runner.commits import Broken

_JSON_BYTES = 4 * 1024 * 1024
_SIF_MAGIC, _SIF_AT = b"SIF_MAGIC", 32
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "ppc64le": "ppc64le", "s390x": "s390x"}
_Json = Mapping[str, Any]
_T = TypeVar("_T")


class Kind(Enum):
    """What an image file is."""

    DOCKER = "docker-archive"  #: of `docker save`, `podman save` or skopeo
    OCI = "oci-archive"  #: an OCI image layout in a tar file
    ROOT = "root file system"  #: in a tar file
    DIRECTORY = "directory"  #: a root file system, unpacked
    SIF = "SIF"  #: of Apptainer or Singularity


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What an image says of itself."""

    architecture: str = ""
    environment: tuple[str, ...] = ()  # NAME=value


def kind_of(path: Path) -> Kind:
    """What lies there.

    Raises:
        Broken: nothing that is an image.
        OSError: it cannot be read.
    """
    if path.is_dir():
        return Kind.DIRECTORY
    with path.open("rb") as file:
        if file.read(_SIF_AT + len(_SIF_MAGIC))[_SIF_AT:] == _SIF_MAGIC:
            return Kind.SIF
    return _reading(path, _kind_of_tar)


def unpack(path: Path, kind: Kind, root: RootFs, machine: str) -> ImageConfig:
    """Fill ``root`` from an archive. ``machine``: as ``uname -m`` says it.

    Raises:
        Broken: torn, unsafe, or for another architecture.
        OSError: it cannot be read or written.
    """

    def apply(tar: tarfile.TarFile) -> ImageConfig:
        if kind is Kind.DOCKER:
            return _docker(tar, root, machine)
        if kind is Kind.OCI:
            return _oci(tar, root, machine)
        root.apply(tar)
        return ImageConfig()

    return _reading(path, apply)


def _kind_of_tar(tar: tarfile.TarFile) -> Kind:
    names = {name.removeprefix("./") for name in tar.getnames()}
    if "manifest.json" in names:
        return Kind.DOCKER
    if "index.json" in names:
        return Kind.OCI
    if names & {"bin", "usr", "etc", "usr/bin"}:
        return Kind.ROOT
    raise Broken("a tar file, but neither an image nor a root file system")


def _reading(path: Path, use: Callable[[tarfile.TarFile], _T]) -> _T:
    try:
        with tarfile.open(path) as tar:
            return use(tar)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise Broken(f"not a whole image archive: {error}") from error


def _docker(tar: tarfile.TarFile, root: RootFs, machine: str) -> ImageConfig:
    entries = _json(tar, "manifest.json")
    if not isinstance(entries, list) or len(entries) != 1:
        raise Broken("expected one image in it")
    config = _config(_json(tar, str(entries[0].get("Config"))), machine)
    for name in entries[0].get("Layers", ()):
        _layer(tar, str(name), root)
    return config


def _oci(tar: tarfile.TarFile, root: RootFs, machine: str) -> ImageConfig:
    found = _json(tar, "index.json")
    while isinstance(found, dict) and "manifests" in found:
        found = _json(tar, _blob(_for_machine(found["manifests"], machine)), check=True)
    if not isinstance(found, dict) or "layers" not in found:
        raise Broken("its index names no image")
    config = _config(_json(tar, _blob(found["config"]), check=True), machine)
    for entry in found["layers"]:
        if str(entry.get("mediaType", "")).endswith("+zstd"):
            raise Broken("packed with zstd; save it again with gzip")
        _layer(tar, _blob(entry), root)
    return config


def _for_machine(entries: Any, machine: str) -> _Json:
    # Any: a list of JSON that a stranger wrote.
    wanted = _MACHINES.get(machine, machine)
    offered = [item.get("platform", {}).get("architecture") for item in entries]
    for item, architecture in zip(entries, offered, strict=True):
        if architecture in (None, wanted):
            return dict(item)
    raise Broken(f"the image is for {', '.join(map(str, offered))}; this machine is {wanted}")


def _blob(descriptor: _Json) -> str:
    algorithm, _, digest = str(descriptor.get("digest", "")).partition(":")
    return f"blobs/{algorithm}/{digest}"


def _config(found: Any, machine: str) -> ImageConfig:
    # Any: JSON that a stranger wrote.
    if not isinstance(found, dict):
        raise Broken("the image's configuration is no object")
    architecture = str(found.get("architecture", ""))
    wanted = _MACHINES.get(machine, machine)
    if architecture and architecture != wanted:
        raise Broken(f"the image is for {architecture}; this machine is {wanted}")
    environment = (found.get("config") or {}).get("Env") or ()
    return ImageConfig(architecture, tuple(str(line) for line in environment))


def _layer(tar: tarfile.TarFile, name: str, root: RootFs) -> None:
    with tarfile.open(fileobj=_member(tar, name), mode="r|*") as layer:
        root.apply(layer)


def _json(tar: tarfile.TarFile, name: str, *, check: bool = False) -> Any:
    # Any: whatever JSON lies there. ``check``: its name ends in its own SHA-256.
    data = _member(tar, name).read(_JSON_BYTES + 1)
    if check and hashlib.sha256(data).hexdigest() != name.rpartition("/")[2]:
        raise Broken(f"{name} is not what its digest says")
    try:
        return json.loads(data)
    except ValueError as error:
        raise Broken(f"{name} is not JSON: {error}") from None


def _member(tar: tarfile.TarFile, name: str) -> Any:
    # Any: typeshed has no name for what tarfile hands out.
    for spelled in (name, f"./{name}"):
        try:
            found = tar.extractfile(spelled)
        except KeyError:
            continue
        if found is not None:
            return found
    raise Broken(f"{name} is missing in it")
