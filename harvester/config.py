"""Loads a site by name or path as plain values, compiled by a child process and cached.

The child (``harvester.config_compile``) owns YAML, layering and checking; this module holds only
what a daemon may keep in memory. The cache entry lists every file, looked-for name and environment
variable that the compilation saw, and is good for as long as none of them changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import re
import subprocess
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harvester import paths
from harvester.config_policy import SYSTEM_POLICY, PolicyFile, Ruling
from harvester.errors import ConfigurationError, HarvesterError, Problem
from harvester.reading import read_regular
from harvester.site import Site

COMPILE_LIMIT_S = 60.0  # a cold import from a shared file system takes long

# What the compiled form depends on besides the site files themselves.
_CODE = (
    "config_check.py",
    "config_compile.py",
    "config_origins.py",
    "config_policy.py",
    "config_rules.py",
    "config_schema.py",
    "config_sources.py",
    "config_values.py",
    "config_yaml.py",
    "directives.py",
    "mpi_launchers.py",
    "quantities.py",
    "site.py",
)
_LOOKS_LIKE_A_SITE = re.compile(rb"^(batch_system|extends)\s*:", re.MULTILINE)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where one value of a site comes from."""

    key: str
    file: str
    source: str | None  # the document, "unsourced" or "chosen"; None: the file does not say
    date: str | None


@dataclass(frozen=True, slots=True)
class SiteFile:
    """A site's values with the files they came from, the topmost layer first.

    ``environment`` holds the variables that reading them looked at; None: it was not set.
    """

    site: Site
    layers: tuple[Path, ...]
    origins: tuple[Origin, ...] = ()
    rulings: tuple[Ruling, ...] = ()
    environment: Mapping[str, str | None] = field(default_factory=dict)


def load_site(
    name_or_path: str,
    environ: Mapping[str, str] = os.environ,
    policy: PolicyFile = SYSTEM_POLICY,
) -> Site:
    """The site that a name (looked for in ``site_directories``) or a path describes.

    Raises:
        ConfigurationError: with every problem of the file at once.
    """
    return load_site_file(name_or_path, environ, policy).site


def load_site_file(
    name_or_path: str,
    environ: Mapping[str, str] = os.environ,
    policy: PolicyFile = SYSTEM_POLICY,
) -> SiteFile:
    """As ``load_site``, and where the values came from."""
    policy.check()  # the cache knows what is in the file, not whose it is
    entry = _cache_entry(name_or_path, environ, policy)
    document = _cached(entry, environ)
    if document is None:
        document = _compile(name_or_path, environ, policy)
        _store(entry, document)
    layers = tuple(Path(item) for item in document["layers"])
    return SiteFile(
        dataclasses.replace(_value(Site, document["site"]), file=layers[0]),
        layers,
        tuple(Origin(**item) for item in document["origins"]),
        tuple(Ruling(**item) for item in document["rulings"]),
        document["environment"],
    )


def list_sites(environ: Mapping[str, str] = os.environ) -> tuple[tuple[str, Path], ...]:
    """Names and files of all sites that can be found; the file that wins for each name."""
    found: dict[str, Path] = {}
    for base in paths.site_directories(environ):
        for path in sorted(base.glob("*.yaml")):
            if path.stem not in found and _is_site_file(path):
                found[path.stem] = path
    return tuple(sorted(found.items()))


def _is_site_file(path: Path) -> bool:
    # The working directory may hold YAML of any kind.
    try:
        return _LOOKS_LIKE_A_SITE.search(read_regular(path)) is not None
    except OSError:
        return False


# --- the compiling child ---


def _compile(name: str, environ: Mapping[str, str], policy: PolicyFile) -> dict[str, Any]:
    top = str(Path(__file__).resolve().parent.parent)
    inherited = environ.get("PYTHONPATH")
    child_environ = {
        **environ,
        "PYTHONPATH": f"{top}{os.pathsep}{inherited}" if inherited else top,
    }
    module = (sys.executable, "-P", "-m", "harvester.config_compile")
    command = (*module, name, str(policy.path), str(policy.owner))
    try:
        done = subprocess.run(
            command,
            env=child_environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMPILE_LIMIT_S,
            check=False,
        )
        document: dict[str, Any] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        raise _failed(name, f"did not finish within {COMPILE_LIMIT_S:.0f} s") from None
    except ValueError:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise _failed(name, f"ended with exit code {done.returncode}: {last}") from None
    if "problems" in document:
        raise ConfigurationError(Problem(**item) for item in document["problems"])
    return document


def _failed(name: str, what: str) -> HarvesterError:
    return HarvesterError(f"reading the site file {name!r} {what}; is the installation whole?")


# --- the cache ---


def _cache_entry(name: str, environ: Mapping[str, str], policy: PolicyFile) -> Path:
    code = hashlib.sha256()
    for module in _CODE:
        code.update((Path(__file__).parent / module).read_bytes())
    place = (os.getcwd(), str(paths.config_home(environ)), str(policy.path), str(policy.owner))
    asked = "\0".join((name, *place, code.hexdigest()))
    return paths.cache_home(environ) / "sites" / hashlib.sha256(asked.encode()).hexdigest()[:32]


def _cached(entry: Path, environ: Mapping[str, str]) -> dict[str, Any] | None:
    try:
        document: dict[str, Any] = json.loads(entry.read_bytes())
        fresh = _is_fresh(document, environ)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        log.debug("Ignores an unreadable cache entry path=%s error=%s", entry, error)
        return None
    return document if fresh else None


def _is_fresh(document: Mapping[str, Any], environ: Mapping[str, str]) -> bool:
    seen = document["environment"].items()
    if any(environ.get(variable) != value for variable, value in seen):
        return False
    return all(_digest(Path(path)) == digest for path, digest in document["inputs"].items())


def _digest(path: Path) -> str | None:
    try:
        return hashlib.sha256(read_regular(path)).hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _store(entry: Path, document: Mapping[str, Any]) -> None:
    temporary = entry.with_name(f"{entry.name}.{os.getpid()}")
    try:
        entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as out:
            json.dump(document, out)
        temporary.replace(entry)
    except OSError as error:
        # A full or read-only home costs half a second a start, nothing else.
        log.debug("Cannot cache a compiled site path=%s error=%s", entry, error)


# --- from JSON to the dataclasses of harvester.site ---


def _value(kind: Any, value: Any) -> Any:
    # Any: the annotations of dataclasses are data here.
    if value is None:
        return None
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        (kind,) = [part for part in typing.get_args(kind) if part is not types.NoneType]
        return _value(kind, value)
    if origin is tuple:
        inner = typing.get_args(kind)[0]
        return tuple(_value(inner, item) for item in value)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{name: _value(hints[name], item) for name, item in value.items()})  # type: ignore[operator]  # a class
    return kind(value) if kind in (Path, float) else value
